//! What the tests of the pair are made of: a one-way link between two network namespaces, the two daemons as real
//! processes with real config files, trees of odd files, and exact comparison of what was dropped with what arrived.
//!
//! Everything here may panic: a harness that cannot do what a test asked for must fail that test loudly.
#![forbid(unsafe_code)]

pub mod bench;
pub mod daemon;
pub mod fuzz;
pub mod link;
pub mod mount;
pub mod netns;
pub mod pair;
pub mod relay;
pub mod rng;
pub mod shell;
pub mod sim;
pub mod simdisk;
pub mod skip;
pub mod snapshot;
pub mod tree;
pub mod world;
