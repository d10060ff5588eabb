//! The sans-IO core of checkvalve.
//!
//! No sockets, files, clocks, threads or global random numbers in here: time is a `now` argument and random bytes
//! are passed in. `SPEC.md` beside this crate describes every byte.
#![forbid(unsafe_code)]

pub mod admit;
pub mod beacon;
pub mod codec;
pub mod crypto;
pub mod extension;
pub mod fec;
pub mod id;
pub mod limits;
pub mod manifest;
pub mod partition;
pub mod path;
pub mod ranges;
pub mod receive;
pub mod seal;
pub mod ticket;
pub mod time;
pub mod transmit;
pub mod wire;
