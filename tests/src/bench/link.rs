//! Whole daemons, tmpfs to tmpfs: one file, from the rename into the spool to the hook's start.

use std::time::Instant;

use super::gbits;
use crate::daemon::Usage;
use crate::pair::Pair;
use crate::shell::wait_until;
use crate::tree;

/// What one transfer took.
#[derive(Clone, Copy, Debug)]
pub struct Transfer {
    /// `rate` that the sender was told, in Gbit/s on the wire.
    pub rate: f64,
    /// Gbit/s of the file, from rename to hook.
    pub goodput: f64,
    /// The sender's usage.
    pub sender: Usage,
    /// The receiver's.
    pub receiver: Usage,
}

/// Transfers `bytes` at each of `rates` (Gbit/s) until one arrives; the first that does. Otherwise None.
pub fn fastest(mtu: u16, gso: bool, bytes: u64, rates: &[f64]) -> Option<Transfer> {
    rates.iter().find_map(|rate| transfer(mtu, gso, bytes, *rate))
}

/// Transfers a file of `bytes` random bytes. None when it did not arrive in one pass.
///
/// # Panics
/// When a daemon does not run.
pub fn transfer(mtu: u16, gso: bool, bytes: u64, rate: f64) -> Option<Transfer> {
    let mut pair = Pair::setup().mtu(mtu).gso(gso).rate(&format!("{rate} Gbit/s")).on_tmpfs().start();
    tree::large(&pair.place("image"), bytes, 1);
    let started = Instant::now();
    let image = pair.drop("image");
    let limit = std::time::Duration::from_secs(180);
    let arrived = wait_until(limit, || {
        let installed = !pair.hook_runs().is_empty();
        let lost = || pair.receiver_status()?.find("default", "image").map(|found| found.state == "incomplete");
        if installed { Some(true) } else { (lost() == Some(true)).then_some(false) }
    });
    let seconds = started.elapsed().as_secs_f64();
    if arrived != Some(true) {
        return None;
    }
    pair.assert_identical(&image);
    let (sender, receiver) = (pair.stop_sender().usage, pair.stop_receiver().usage);
    Some(Transfer { rate, goodput: gbits(bytes, seconds), sender, receiver })
}
