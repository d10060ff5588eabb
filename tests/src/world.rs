//! Runs a complete sender and receiver in one thread: the real engine and the real delivery on simulated disks, connected by a
//! simulated line, with simulated clocks and hooks. One seed determines everything.
//!
//! 1. [`Script::of`] derives options and a list of events (drops, crashes, disk faults, outages, clock jumps) from a seed.
//! 2. [`run`] plays the script: `low` stands for the sender's process, `wire` for the line, `high` for the receiver's process.
//!    In some runs, a `peer` who holds the link key sends forged datagrams beside the sender.
//! 3. At the end, everything is repaired, and an operator carries tickets until nothing is missing (`settle`).
//! 4. [`book`], [`said`] and [`bounds`] check the invariants at each step. The first violation is the [`Failure`].
//! 5. [`shrink`] removes events and options as long as the script still fails.

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
