//! A whole transmit session driven into a whole receive session over a simulated line, in virtual time, from one seed.
//!
//! 1. [`Low`] transmits a [`Bundle`]'s three objects: real schedule, real pacer, real sealing.
//! 2. [`Line`] loses, delays, doubles, corrupts and truncates what it carries.
//! 3. [`High`] opens, reassembles and decodes, and keeps the objects in memory.
//!
//! `Low` is also what tests of the real receiver forge their bundles with: it transmits whatever it is given.

pub mod bundle;
pub mod high;
pub mod line;
pub mod low;

pub use self::bundle::Bundle;
pub use self::high::High;
pub use self::line::{Line, Shape};
pub use self::low::Low;
