//! Which beacon first named the newest sequence of each channel: what says less is an alarm only if it was made after that one.
//!
//! A key's beacons have an order of their own: epoch, session, counter. In the history of one state the newest sequence never falls
//! along it, whatever is late or recorded; where it does, two histories are mixed. For two keys only their clocks tell.
//!
//! Kept in `named.json` in the state directory, since what was recorded comes after a restart, too. It is a guard against false
//! alarms and nothing else: one that is missing or damaged is empty, and is filled by the next beacons.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use checkvalve_host::disk::{Disk, read_all};
use checkvalve_host::version::PROGRAM;
use checkvalve_protocol::beacon::Beacon;
use checkvalve_protocol::id::{ChannelName, KeyId};
use serde::{Deserialize, Serialize};

/// Of what is written; a file with another one is as good as none.
const SCHEMA: u32 = 1;
/// Longest file that is read, in bytes.
const MAX_LEN: u64 = 16 << 20;
/// How often it is written at most, in milliseconds.
const WRITE_MS: u64 = 1_000;
/// Channels of which it is kept in mind; ledgers have no more of them.
const MOST: usize = 4_096;

/// The beacon that named a sequence first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Naming {
    sequence: u64,
    key: KeyId,
    epoch: u64,
    session: u64,
    counter: u64,
    clock_ms: u64,
}

#[derive(Serialize, Deserialize)]
struct Written {
    schema: u32,
    program: String,
    channels: BTreeMap<ChannelName, Naming>,
}

/// The newest sequence of each channel that a beacon has named.
pub(super) struct Named {
    disk: Arc<dyn Disk>,
    path: PathBuf,
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    channels: BTreeMap<ChannelName, Naming>,
    changed: bool,
    written_ms: u64,
}

impl Naming {
    fn of(key: KeyId, beacon: &Beacon, sequence: u64) -> Self {
        let (epoch, session) = (beacon.epoch.number, beacon.session_number);
        Self { sequence, key, epoch, session, counter: beacon.counter, clock_ms: beacon.clock_ms }
    }

    fn is_before(&self, later: &Self) -> bool {
        if self.key == later.key {
            (self.epoch, self.session, self.counter) < (later.epoch, later.session, later.counter)
        } else {
            self.clock_ms < later.clock_ms
        }
    }
}

impl Named {
    pub(super) fn open(disk: Arc<dyn Disk>, path: PathBuf) -> Self {
        let read = read_all(disk.as_ref(), &path, MAX_LEN).ok();
        let written = read.and_then(|bytes| serde_json::from_slice::<Written>(&bytes).ok());
        let channels = written.filter(|w| w.schema == SCHEMA).map(|w| w.channels).unwrap_or_default();
        Self { disk, path, kept: Mutex::new(Kept { channels, ..Kept::default() }) }
    }

    /// A beacon that counts says that this is the newest sequence. True: it was made after one that named a newer one.
    pub(super) fn hear(&self, channel: &ChannelName, key: KeyId, beacon: &Beacon, sequence: u64) -> bool {
        let says = Naming::of(key, beacon, sequence);
        let mut kept = self.lock();
        match kept.channels.get(channel) {
            Some(newest) if newest.sequence >= sequence => newest.sequence > sequence && newest.is_before(&says),
            None if sequence == 0 || kept.channels.len() >= MOST => false,
            _ => {
                kept.channels.insert(channel.clone(), says);
                kept.changed = true;
                false
            }
        }
    }

    /// Writes it down if it has changed: without a sync, for which nothing should wait. A disk that does not take it is told of by
    /// others.
    pub(super) fn save(&self, now_ms: u64) {
        let channels = {
            let mut kept = self.lock();
            if !kept.changed || kept.written_ms.abs_diff(now_ms) < WRITE_MS {
                return;
            }
            (kept.changed, kept.written_ms) = (false, now_ms);
            kept.channels.clone()
        };
        if self.write(channels).is_err() {
            self.lock().changed = true;
        }
    }

    fn write(&self, channels: BTreeMap<ChannelName, Naming>) -> io::Result<()> {
        let json = serde_json::to_vec(&Written { schema: SCHEMA, program: PROGRAM.to_owned(), channels })?;
        let temporary = self.path.with_file_name(".named.json.tmp");
        match self.disk.remove_file(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        self.disk.create_new(&temporary, 0o640)?.write_all_at(&json, 0)?;
        self.disk.rename(&temporary, &self.path)
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
