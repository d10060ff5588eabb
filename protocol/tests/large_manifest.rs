//! Bundles of very many entries: the memory that announce and hashes take, alone in this process so that it can be measured.

use checkvalve_protocol::crypto::{SigningKey, TrustStore};
use checkvalve_protocol::id::{BundleId, ChannelName};
use checkvalve_protocol::limits::MAX_ENTRIES;
use checkvalve_protocol::manifest::{Announce, Entries, Entry, EntryKind, Hashes, Outcome, Timestamp};
use checkvalve_protocol::path::SafePath;

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

/// A tree of `count` entries, a thousand to a directory.
fn announce(count: usize, size: u64) -> Announce {
    let mut entries = Entries::new();
    entries.push(entry("release-2024.11", EntryKind::Directory { mode: 0o755 }));
    for n in 0..count - 1 {
        let (dir, file) = (n / 1_000, n % 1_000);
        let dir = format!("release-2024.11/p-{dir:04}");
        entries.push(match file {
            0 => entry(&dir, EntryKind::Directory { mode: 0o755 }),
            _ => entry(&format!("{dir}/{file:06}"), EntryKind::File { size, mode: 0o644 }),
        });
    }
    Announce {
        bundle: BundleId(1),
        channel: ChannelName::new("default").unwrap(),
        sequence: 1,
        name: b"release-2024.11".to_vec(),
        created_ms: 0,
        symbol_size: 1_408,
        block_symbols: 128,
        entries,
    }
}

#[test]
fn a_million_entries_are_compact() {
    let key = SigningKey::from_seed([1; 32]);
    let mut trust = TrustStore::new();
    trust.insert(key.public(), "k");
    for (count, size) in [(100_000, 5_000), (MAX_ENTRIES, 0)] {
        let announce = announce(count, size);
        let bytes = announce.sign(&key).unwrap();
        // The signature is over a copy of the payload, which is gone before anything is decoded.
        let budget = (count * 64).max(2 * bytes.len()) + (4 << 20);
        let (opened, peak) = peak_of(|| Announce::open(&bytes, &trust).unwrap());
        assert!(opened.value == announce);
        println!("{count} entries: {} bytes signed, peak {peak} while opening", bytes.len());
        assert!(peak < budget, "{peak} {budget}");

        let files = announce.files().count();
        let outcome = Outcome::Complete { files: vec![[7; 32]; files] };
        let hashes = Hashes { bundle: announce.bundle, announce: opened.digest, outcome };
        let bytes = hashes.sign(&key).unwrap();
        let (read, peak) = peak_of(|| Hashes::open(&bytes, &trust).unwrap());
        assert!(read.value == hashes && read.belongs_to(&opened).is_ok());
        println!("{files} hashes: {} bytes signed, peak {peak} while opening", bytes.len());
        assert!(peak < files * 32 + (4 << 20), "{peak}");
    }
}
