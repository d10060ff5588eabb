//! The engine over a real directory, every piece of work done at once, the pipeline a list of jobs.

mod crashes;
mod rig;
mod scenes;
mod tickets;
