//! checkvalve-receiver: the daemon on the high side. It rebuilds bundles from what arrives, proves that they are
//! exactly what was signed, publishes them atomically and hands them to an install hook.

pub mod audit;
pub mod cli;
pub mod config;
pub mod control;
pub mod delivery;
pub mod hook;
pub mod inbox;
pub mod lasting;
pub mod ledger;
pub mod link;
pub mod pipeline;
pub mod ranges;
pub mod run;
pub mod sink;
pub mod store;
#[cfg(test)]
mod testing;
pub mod windows;
