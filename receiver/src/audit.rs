//! The audit trail: one JSON object a line, appended and synced, never changed.
//!
//! Every line has `at` (RFC 3339) and `event`; the rest depends on the event. An event may stand there twice
//! when a crash hit between writing it and what follows; none is lost.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use checkvalve_host::disk::{Disk, DiskFile};
use checkvalve_host::json::Stamp;
use checkvalve_protocol::id::{BundleId, ChannelName, KeyId};
use serde::{Deserialize, Serialize};

/// The open audit trail.
pub struct Audit {
    disk: Arc<dyn Disk>,
    file: Mutex<Box<dyn DiskFile>>,
    path: PathBuf,
}

/// A line of the trail about a bundle, as it is read again.
#[derive(Debug, Clone, Deserialize)]
pub struct Told {
    /// When.
    pub at: Stamp,
    /// What happened.
    pub event: String,
    /// To which bundle.
    #[serde(default)]
    pub bundle: Option<BundleId>,
    /// Its channel.
    #[serde(default)]
    pub channel: Option<ChannelName>,
    /// Its number there.
    #[serde(default)]
    pub sequence: u64,
    /// Of several sequences, the last.
    #[serde(default)]
    pub through: Option<u64>,
    /// Who signed it.
    #[serde(default)]
    pub signer: Option<KeyId>,
    /// What that key was called.
    #[serde(default)]
    pub signer_name: Option<String>,
    /// Published: BLAKE3 of its signed announce, in hexadecimal digits.
    #[serde(default)]
    pub manifest: Option<String>,
    /// Why it was refused or withdrawn.
    #[serde(default)]
    pub reason: Option<String>,
    /// A hook: how often it was started.
    #[serde(default)]
    pub attempt: Option<u32>,
    /// A hook: what became of the bundle.
    #[serde(default)]
    pub outcome: Option<String>,
    /// A hook: how it ended, for people.
    #[serde(default)]
    pub ended: Option<String>,
}

/// Longest line that is read again, in bytes.
const MAX_LINE: usize = 64 << 10;

/// What happened.
#[derive(Debug, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event<'a> {
    /// A bundle was proven and is in the inbox.
    Published {
        /// Which.
        #[serde(flatten)]
        bundle: Subject<'a>,
        /// Sum of its files' sizes in bytes.
        bytes: u64,
        /// BLAKE3 of its signed announce, in hexadecimal digits.
        manifest: String,
    },
    /// A bundle went to quarantine.
    Quarantined {
        /// Which.
        #[serde(flatten)]
        bundle: Subject<'a>,
        /// The rule that it broke.
        rule: &'a str,
        /// The same for people.
        reason: &'a str,
    },
    /// The sender gave a bundle up.
    Withdrawn {
        /// Which.
        #[serde(flatten)]
        bundle: Subject<'a>,
        /// Why.
        reason: &'a str,
    },
    /// A bundle is held for an operator.
    Held {
        /// Which.
        #[serde(flatten)]
        bundle: Subject<'a>,
        /// Why, for programs.
        code: &'a str,
        /// The same for people.
        reason: &'a str,
    },
    /// Files of a bundle did not have the content that was signed, and were thrown away.
    Spoilt {
        /// Which.
        #[serde(flatten)]
        bundle: Subject<'a>,
        /// How many.
        files: u64,
        /// Their bytes.
        bytes: u64,
    },
    /// An operator let a bundle that was held come.
    Approved {
        /// Which.
        #[serde(flatten)]
        bundle: Subject<'a>,
    },
    /// An operator undid a refusal, or asked for a hook to run again.
    Retried {
        /// Which.
        #[serde(flatten)]
        bundle: Subject<'a>,
        /// What it was.
        from: &'a str,
    },
    /// An operator gave a bundle up.
    Rejected {
        /// Which.
        #[serde(flatten)]
        bundle: Subject<'a>,
        /// Of several sequences of which nothing was known, the last.
        #[serde(skip_serializing_if = "Option::is_none")]
        through: Option<u64>,
    },
    /// A hook ran.
    Hook {
        /// For which bundle.
        #[serde(flatten)]
        bundle: Subject<'a>,
        /// `install`.
        stage: &'a str,
        /// How often it was started for this bundle, this time included.
        attempt: u32,
        /// What became of the bundle: `installed`, `failed`, `quarantined` or `again`.
        outcome: &'a str,
        /// How the process ended, for people.
        ended: &'a str,
    },
    /// A key is trusted from now on.
    TrustAdded {
        /// The key.
        key: KeyId,
        /// What it is called.
        name: &'a str,
    },
    /// A key is trusted no more.
    TrustRemoved {
        /// The key.
        key: KeyId,
        /// What it was called.
        name: &'a str,
    },
}

/// The bundle that an event is about.
#[derive(Debug, Serialize)]
pub struct Subject<'a> {
    /// Its id.
    pub bundle: Option<BundleId>,
    /// Its channel.
    pub channel: Option<&'a ChannelName>,
    /// Its number in the channel.
    pub sequence: u64,
    /// Its name, escaped.
    pub name: String,
    /// The key that signed it.
    pub signer: Option<KeyId>,
    /// What that key is called.
    pub signer_name: Option<&'a str>,
}

#[derive(Serialize)]
struct Line<'a> {
    at: Stamp,
    #[serde(flatten)]
    event: &'a Event<'a>,
}

impl Audit {
    /// Opens or creates the trail at `path`. A last line that a power cut tore is ended, so that what follows can be read.
    pub fn open(disk: &Arc<dyn Disk>, path: &Path) -> io::Result<Self> {
        let file = Mutex::new(open(disk.as_ref(), path)?);
        Ok(Self { disk: Arc::clone(disk), file, path: path.to_owned() })
    }

    /// Gives `each` line that can be read, from the first on.
    pub fn read(&self, each: &mut dyn FnMut(Told)) -> io::Result<()> {
        let file = self.disk.open_read(&self.path)?;
        let (mut at, mut held) = (0, Vec::new());
        let mut buf = vec![0; MAX_LINE];
        loop {
            let got = file.read_at(&mut buf, at)?;
            if got == 0 {
                return Ok(());
            }
            at += got as u64;
            held.extend_from_slice(&buf[..got]);
            let whole = held.iter().rposition(|&b| b == b'\n').map_or(0, |end| end + 1);
            held[..whole]
                .split(|&b| b == b'\n')
                .filter_map(|line| serde_json::from_slice(line).ok())
                .for_each(&mut *each);
            held.drain(..whole);
            if held.len() > MAX_LINE {
                held.clear(); // no line of ours
            }
        }
    }

    /// Appends a line; durable when this returns. Where somebody removed the trail, a new one begins.
    pub fn record(&self, at_ms: u64, event: &Event<'_>) -> io::Result<()> {
        let mut line = serde_json::to_vec(&Line { at: Stamp(at_ms), event }).map_err(io::Error::other)?;
        line.push(b'\n');
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        match self.disk.lstat(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                tracing::error!(path = %self.path.display(), "the audit trail was removed; a new one begins");
                if let Some(parent) = self.path.parent() {
                    self.disk.create_dir_all(parent, 0o750)?;
                }
                *file = open(self.disk.as_ref(), &self.path)?;
            }
            _ => {}
        }
        file.append(&line)?;
        file.sync_data()
    }
}

fn open(disk: &dyn Disk, path: &Path) -> io::Result<Box<dyn DiskFile>> {
    let file = disk.open_append_or_create(path)?;
    let (len, mut last) = (file.len()?, [b'\n']);
    if len > 0 {
        file.read_at(&mut last, len - 1)?;
    }
    if last != [b'\n'] {
        file.append(b"\n")?;
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use checkvalve_host::disk::OsDisk;

    fn event() -> Event<'static> {
        Event::TrustAdded { key: KeyId([1; 8]), name: "a \"b\"\n" }
    }

    #[test]
    fn lines_are_appended_also_after_a_torn_one() {
        let dir = crate::testing::dir();
        let path = dir.path().join("audit.jsonl");
        let disk: Arc<dyn Disk> = Arc::new(OsDisk);
        Audit::open(&disk, &path).unwrap().record(7, &event()).unwrap();
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, [&whole[..], &whole[..20]].concat()).unwrap();
        Audit::open(&disk, &path).unwrap().record(8, &event()).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<Option<serde_json::Value>> = text.lines().map(|line| serde_json::from_str(line).ok()).collect();
        assert_eq!(lines.len(), 3);
        assert_eq!(lines[0].as_ref().unwrap()["event"], "trust_added");
        assert!(lines[1].is_none());
        assert_eq!(lines[2].as_ref().unwrap()["at"], "1970-01-01T00:00:00.008Z");
    }

    #[test]
    fn a_trail_that_was_removed_begins_anew() {
        let dir = crate::testing::dir();
        let path = dir.path().join("state/audit.jsonl");
        std::fs::create_dir(dir.path().join("state")).unwrap();
        let disk: Arc<dyn Disk> = Arc::new(OsDisk);
        let audit = Audit::open(&disk, &path).unwrap();
        audit.record(1, &event()).unwrap();
        std::fs::remove_dir_all(dir.path().join("state")).unwrap();
        audit.record(2, &event()).unwrap();
        audit.record(3, &event()).unwrap();
        let mut told = Vec::new();
        audit.read(&mut |line| told.push(line.at.0)).unwrap();
        assert_eq!(told, [2, 3]);
    }
}
