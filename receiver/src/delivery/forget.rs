//! Removes the files of bundles that the ledger forgets: the manifest, the hook's output, and the reason for a refusal.
//! Published content stays where it is, even in quarantine.

use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use checkvalve_host::disk::Disk;
use checkvalve_host::log::{Throttle, escape_path};
use checkvalve_protocol::id::{BundleId, ChannelName};

use super::shared::Clock;
use crate::hook::log::kept_logs;
use crate::inbox::{Address, Inbox};
use crate::ledger::Entry;
use crate::ledger::file::LedgerFile;

/// How many bundles are forgotten at once. Everything else waits while their files are removed.
const AT_ONCE: usize = 256;

/// Forgets.
pub(super) struct Forgetting {
    pub(super) clock: Arc<Clock>,
    pub(super) disk: Arc<dyn Disk>,
    pub(super) ledger: Arc<LedgerFile>,
    pub(super) inbox: Arc<Inbox>,
    /// The directory of manifests and hook logs.
    pub(super) state: PathBuf,
    pub(super) quarantine: PathBuf,
    pub(super) log: Arc<Throttle>,
}

impl Forgetting {
    /// Forgets old bundles and removes their files. True: there may be more.
    pub(super) fn prune(&self) -> bool {
        let gone = self.ledger.lock().prune(AT_ONCE);
        gone.iter().for_each(|entry| self.forget_files(entry));
        gone.len() >= AT_ONCE
    }

    /// Removes the files of forgotten bundles that a crash left behind. If the ledger was lost, files of bundles it does not know
    /// stay, because their sequences are not over in the new one.
    pub(super) fn sweep(&self) {
        let (disk, state) = (self.disk.as_ref(), &self.state);
        for file in self.forgotten(&state.join("manifests")).into_iter().chain(self.forgotten(&state.join("logs"))) {
            self.told(&file, disk.remove_file(&file));
        }
        for directory in self.forgotten(&self.quarantine) {
            self.told(&directory, self.inbox.forget_refusal(&directory));
        }
    }

    fn forget_files(&self, entry: &Entry) {
        let place = Address { id: entry.id, channel: entry.channel.clone(), sequence: entry.sequence };
        if let Err(error) = self.inbox.forget(&place)
            && let Some(suppressed) = self.log.allow(self.clock.now())
        {
            tracing::warn!(bundle = %entry.id, %error, suppressed, "the manifest of an old bundle cannot be removed; the next start does it");
        }
        let Some(channel) = &entry.channel else { return };
        let logs = self.state.join("logs");
        for log in kept_logs(&logs, channel, entry.sequence, entry.id, entry.attempt) {
            self.told(&log, self.disk.remove_file(&log));
        }
    }

    /// The files of forgotten bundles in the channels' directories below `dir`.
    fn forgotten(&self, dir: &Path) -> Vec<PathBuf> {
        let mut forgotten = Vec::new();
        for name in self.names(dir) {
            let Some(channel) = name.to_str().and_then(|name| ChannelName::new(name).ok()) else { continue };
            let dir = dir.join(&name);
            let names = self.names(&dir);
            let ledger = self.ledger.lock();
            let is_over = |sequence| ledger.channel(&channel).is_some_and(|channel| channel.is_over(sequence));
            let is_forgotten = |(sequence, id): (u64, BundleId)| ledger.entry(id).is_none() && is_over(sequence);
            let names = names.into_iter().filter(|name| bundle_of(name).is_some_and(is_forgotten));
            forgotten.extend(names.map(|name| dir.join(name)));
        }
        forgotten
    }

    fn names(&self, dir: &Path) -> Vec<OsString> {
        match self.disk.read_dir(dir) {
            Ok(names) => names,
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Vec::new(),
            Err(error) => {
                self.told(dir, Err(error));
                Vec::new()
            }
        }
    }

    /// The log is told if something could not be removed.
    fn told(&self, path: &Path, removed: io::Result<()>) {
        match removed {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                if let Some(suppressed) = self.log.allow(self.clock.now()) {
                    tracing::warn!(path = %escape_path(path), %error, suppressed, "what is left of an old bundle cannot be removed; the next start does it");
                }
            }
            _ => {}
        }
    }
}

/// The bundle that one of our file names belongs to: `<sequence>-<id>`, then anything after a dot.
fn bundle_of(name: &OsStr) -> Option<(u64, BundleId)> {
    let (sequence, rest) = name.to_str()?.split_once('-')?;
    let id = rest.split_once('.').map_or(rest, |(id, _)| id);
    let is_ours = sequence.len() >= 8 && sequence.bytes().all(|b| b.is_ascii_digit()) && id.len() == 16;
    Some((sequence.parse().ok()?, id.parse().ok()?)).filter(|_| is_ours)
}
