//! From the rename into the spool to the hook's first line.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::pair::Pair;
use crate::tree;

/// Drops `count` files of `size` bytes, one after another, and returns how long each took, shortest first.
///
/// The clock stops when the hook, a shell script, has started `date`: some two milliseconds are the shell's own.
///
/// # Panics
/// When one does not arrive.
pub fn measure(size: u64, count: u32) -> Vec<Duration> {
    let pair = Pair::setup().on_tmpfs().lay();
    let mark = pair.dir.path().join("mark");
    let script = format!("#!/bin/sh\n/bin/date +%s%N >{0}.new && /bin/mv {0}.new {0}\n", mark.display());
    std::fs::write(&pair.high.hook, script).expect("the hook can be written");
    let mut pair = pair;
    pair.start_receiver();
    pair.start_sender();
    let mut took = Vec::new();
    for number in 0..count {
        let name = format!("file-{number}");
        tree::large(&pair.place(&name), size, u64::from(number));
        let started = SystemTime::now();
        std::fs::rename(pair.place(&name), pair.low.spool.join("default").join(&name)).expect("the spool is there");
        let nanos: u64 = pair.wait_for("the hook", || std::fs::read_to_string(&mark).ok()?.trim().parse().ok());
        std::fs::remove_file(&mark).expect("the mark is there");
        let started = started.duration_since(UNIX_EPOCH).expect("after 1970");
        took.push(Duration::from_nanos(nanos).saturating_sub(started));
        std::thread::sleep(Duration::from_millis(50));
    }
    took.sort();
    took
}
