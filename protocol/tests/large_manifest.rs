//! A bundle of 100,000 entries: the memory that its announce takes, alone in this process so that it can be measured.

use checkvalve_protocol::crypto::{SigningKey, TrustStore};
use checkvalve_protocol::id::{BundleId, ChannelName};
use checkvalve_protocol::manifest::{Announce, Entry, EntryKind, Timestamp};
use checkvalve_protocol::path::SafePath;

const ENTRIES: usize = 100_000;
/// What an opened announce of that many entries may take.
const BUDGET: usize = 25_000_000;

/// Runs `work` and gives how many bytes its peak of resident memory lay above what was resident before.
fn peak_of<T>(work: impl FnOnce() -> T) -> (T, usize) {
    // 5 takes the peak back to what is resident now (proc_pid_clear_refs(5)).
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
    let before = resident("VmHWM:");
    let value = work();
    (value, resident("VmHWM:").saturating_sub(before))
}

fn resident(field: &str) -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() * 1024
}

fn entry(path: &str, kind: EntryKind) -> Entry {
    Entry { path: SafePath::new(path).unwrap(), mtime: Timestamp { secs: 1_700_000_000, nanos: 123_456_789 }, kind }
}

#[test]
fn a_hundred_thousand_entries_are_compact() {
    let mut entries = vec![entry("release-2024.11", EntryKind::Directory { mode: 0o755 })];
    for n in 0..ENTRIES as u64 {
        let (dir, file) = (n / 1_000, n % 1_000);
        let dir = format!("release-2024.11/packages-{dir:03}");
        if file == 0 {
            entries.push(entry(&dir, EntryKind::Directory { mode: 0o755 }));
        } else {
            let kind = EntryKind::File { size: 4_096 + n, mode: 0o644 };
            entries.push(entry(&format!("{dir}/object-{file:06}.bin"), kind));
        }
    }
    let key = SigningKey::from_seed([1; 32]);
    let mut trust = TrustStore::new();
    trust.insert(key.public(), "k");
    let announce = Announce {
        bundle: BundleId(1),
        channel: ChannelName::new("default").unwrap(),
        sequence: 1,
        name: b"release-2024.11".to_vec(),
        created_ms: 0,
        entries,
    };
    let bytes = announce.sign(&key).unwrap();
    assert!(bytes.len() < 100 * ENTRIES, "{}", bytes.len());

    let (opened, peak) = peak_of(|| Announce::open(&bytes, &trust).unwrap());
    assert!(opened.value == announce);
    let held = announce.entries.iter().map(|e| size_of_val(e) + e.path.as_bytes().len().next_multiple_of(16) + 8);
    let held: usize = held.sum();
    println!("{} bytes signed, {held} held, peak {peak} while opening", bytes.len());
    assert!(held < BUDGET, "{held}");
    assert!(peak < BUDGET, "{peak}");
    assert_eq!(opened.value.files().count() + 100, ENTRIES);
}
