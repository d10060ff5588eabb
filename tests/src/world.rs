//! Whole sender and receiver in one thread: the real engine and the real delivery over simulated disks, with a simulated
//! line, clocks and hooks between and around them. Everything follows from one seed.
//!
//! 1. [`Script::of`] makes options and a list of events (drops, crashes, disk faults, outages, clock jumps) from a seed.
//! 2. [`run`] plays it: `low` stands for the sender's process, `wire` for the line, `high` for the receiver's process.
//!    In some runs a `peer` who holds the link key forges datagrams beside the sender.
//! 3. Afterwards everything is mended, and a person carries tickets until nothing is lacking (`settle`).
//! 4. What must hold is held against [`book`], [`said`] and [`bounds`] at each step; the first thing that does not is the [`Failure`].
//! 5. [`shrink`] takes away events and options while a script still fails.

mod book;
mod bounds;
mod forge;
mod high;
mod hook;
mod low;
mod machine;
mod memory;
mod pace;
mod peer;
mod play;
mod said;
mod script;
mod settle;
mod shrink;
mod tell;
mod wire;

pub use play::{Failure, Stats, run};
pub use script::{Cut, Event, Fault, Forgery, Options, Script, Side, What};
pub use shrink::shrink;
pub use tell::{Line, read_seeds};
