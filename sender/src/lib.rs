//! The low side of checkvalve: takes bundles out of a spool directory and transmits them over one-way UDP.
//!
//! The daemon's decisions are in [`engine`], which a simulator can drive; threads, sockets and clocks are in [`run`].
#![deny(unsafe_code)]

pub mod adopt;
pub mod bundle;
pub mod bundles;
pub mod cli;
pub mod config;
pub mod control;
pub mod engine;
pub mod holding;
pub mod ledger;
pub mod link;
pub mod pipeline;
pub mod run;
pub mod spool;
pub mod trouble;
pub mod work;
