//! What both daemons of checkvalve share around the sans-IO core, so that it is written once: the disk as a seam that
//! a simulator can take the place of, journals, units and config files, the control socket, logs, exit codes.
#![forbid(unsafe_code)]

pub mod config;
pub mod control;
pub mod disk;
pub mod exit;
pub mod input;
pub mod journal;
pub mod json;
pub mod lock;
pub mod log;
pub mod notify;
pub mod progress;
pub mod say;
pub mod units;
pub mod version;
