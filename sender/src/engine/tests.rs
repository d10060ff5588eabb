//! The engine over a real directory, every piece of work done at once, the pipeline a list of jobs.

mod adopting;
mod announced;
mod crashes;
mod extremes;
mod retaining;
mod rig;
mod scenes;
mod tickets;
