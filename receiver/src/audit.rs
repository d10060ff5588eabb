//! The audit trail: one JSON object a line, appended and synced, never changed.
//!
//! Every line has `schema`, `at` (RFC 3339) and `event`; the rest depends on the event. An event may stand there twice
//! when a crash hit between writing it and what follows; none is lost.
//!
//! Fields and events are added to a schema, never changed. What is to mean something else gets the next one, and its lines
//! `program`, so that an older program, which refuses to read them, can say who wrote them. Lines without a schema have the first.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use checkvalve_host::disk::{Disk, DiskFile};
use checkvalve_host::json::Stamp;
use checkvalve_host::version::Newer;
use checkvalve_protocol::id::{BundleId, ChannelName, KeyId};
use serde::{Deserialize, Serialize};

/// The open audit trail.
pub struct Audit {
    disk: Arc<dyn Disk>,
    file: Mutex<Trail>,
    path: PathBuf,
}

struct Trail {
    file: Box<dyn DiskFile>,
    /// An append failed: the last line may be torn.
    is_ragged: bool,
}

/// Lines of the trail that cannot be read: what they told is not known.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Unreadable {
    /// Numbers of the first of them, from 1.
    pub lines: Vec<u64>,
    /// How many there are.
    pub count: u64,
}

impl Unreadable {
    /// The numbers of the first of them, as text.
    #[must_use]
    pub fn named(&self) -> String {
        self.lines.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
    }
}

/// Which rules a line follows.
#[derive(Deserialize)]
struct Ruled {
    #[serde(default)]
    schema: u32,
    #[serde(default)]
    program: String,
}

/// A line of the trail about a bundle, as it is read again.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
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

/// Of the lines that are written.
const SCHEMA: u32 = 1;
/// Longest line that is read again, in bytes.
const MAX_LINE: usize = 64 << 10;
/// Lines that are named when they cannot be read.
const MAX_NAMED: usize = 20;

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
    schema: u32,
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

    /// Gives `each` line that can be read, from the first on, and which cannot. Errors: of the disk; a [`Newer`] program wrote one.
    pub fn read(&self, each: &mut dyn FnMut(Told)) -> io::Result<Unreadable> {
        let file = self.disk.open_read(&self.path)?;
        let (mut at, mut held) = (0, Vec::new());
        let mut buf = vec![0; MAX_LINE];
        let (mut number, mut unreadable, mut is_long) = (0, Unreadable::default(), false);
        let mut newer = None;
        let mut line = |line: &[u8]| {
            number += 1;
            if let Some(ruled) = serde_json::from_slice::<Ruled>(line).ok().filter(|ruled| ruled.schema > SCHEMA) {
                newer.get_or_insert(ruled);
                return;
            }
            match serde_json::from_slice(line) {
                Ok(told) => each(told),
                // Made when a torn line was ended.
                Err(_) if line.is_empty() => {}
                Err(_) => {
                    unreadable.count += 1;
                    if unreadable.lines.len() < MAX_NAMED {
                        unreadable.lines.push(number);
                    }
                }
            }
        };
        loop {
            let got = file.read_at(&mut buf, at)?;
            if got == 0 {
                if !held.is_empty() || is_long {
                    line(b"torn");
                }
                return match newer {
                    None => Ok(unreadable),
                    Some(Ruled { schema: version, program }) => {
                        let path = self.path.clone();
                        Err(io::Error::other(Newer { path, program, what: "lines", version, known: SCHEMA }))
                    }
                };
            }
            at += got as u64;
            held.extend_from_slice(&buf[..got]);
            let whole = held.iter().rposition(|&b| b == b'\n').map_or(0, |end| end + 1);
            for one in held[..whole].split_inclusive(|&b| b == b'\n') {
                // The rest of one that is too long to be ours.
                line(if std::mem::take(&mut is_long) { b"long" } else { &one[..one.len() - 1] });
            }
            held.drain(..whole);
            if held.len() > MAX_LINE {
                held.clear();
                is_long = true;
            }
        }
    }

    /// As [`Audit::record`]; if that fails, the log says so.
    pub fn note(&self, at_ms: u64, event: &Event<'_>) {
        self.note_all(at_ms, std::slice::from_ref(event));
    }

    /// The same for many events at once.
    pub fn note_all(&self, at_ms: u64, events: &[Event<'_>]) {
        if let Err(error) = self.record_all(at_ms, events) {
            let (event, more) = (serde_json::to_string(&events.first()).unwrap_or_default(), events.len() - 1);
            tracing::error!(%error, event, more, "audit trail cannot be written");
        }
    }

    /// Appends a line; durable when this returns. Where somebody removed the trail, a new one begins. What a full disk tore of the line
    /// before is ended first, so that this one can be read.
    pub fn record(&self, at_ms: u64, event: &Event<'_>) -> io::Result<()> {
        self.record_all(at_ms, std::slice::from_ref(event))
    }

    fn record_all(&self, at_ms: u64, events: &[Event<'_>]) -> io::Result<()> {
        let mut lines = Vec::new();
        for event in events {
            serde_json::to_writer(&mut lines, &Line { schema: SCHEMA, at: Stamp(at_ms), event })?;
            lines.push(b'\n');
        }
        if lines.is_empty() {
            return Ok(());
        }
        let mut trail = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        match self.disk.lstat(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                tracing::error!(path = %self.path.display(), "the audit trail was removed; a new one begins");
                if let Some(parent) = self.path.parent() {
                    self.disk.create_dir_all(parent, 0o750)?;
                }
                *trail = open(self.disk.as_ref(), &self.path)?;
            }
            _ => {}
        }
        if trail.is_ragged {
            end_line(trail.file.as_ref())?;
        }
        trail.is_ragged = true;
        trail.file.append(&lines)?;
        trail.is_ragged = false;
        trail.file.sync_data()
    }
}

fn open(disk: &dyn Disk, path: &Path) -> io::Result<Trail> {
    let file = disk.open_append_or_create(path)?;
    end_line(file.as_ref())?;
    Ok(Trail { file, is_ragged: false })
}

/// Ends the last line, if it is torn.
fn end_line(file: &dyn DiskFile) -> io::Result<()> {
    let (len, mut last) = (file.len()?, [b'\n']);
    if len > 0 {
        file.read_at(&mut last, len - 1)?;
    }
    if last == [b'\n'] { Ok(()) } else { file.append(b"\n") }
}

#[cfg(test)]
mod tests;
