//! Why a bundle is refused before it has a sequence, and why reading it failed later.

use std::fmt;
use std::io;
use std::path::Path;

use checkvalve_host::disk::Kind;
use checkvalve_host::log::escape_bytes;
use checkvalve_protocol::id::ChannelName;
use checkvalve_protocol::limits::{MAX_ENTRIES, MAX_SEQUENCE};
use checkvalve_protocol::manifest::ManifestError;
use checkvalve_protocol::path::PathError;

const NFILE: i32 = rustix::io::Errno::NFILE.raw_os_error();
const MFILE: i32 = rustix::io::Errno::MFILE.raw_os_error();

/// A path in a bundle, escaped so that a line of log or a terminal can show it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown(String);

impl Shown {
    /// Escapes the bytes of a path.
    #[must_use]
    pub fn new(bytes: &[u8]) -> Self {
        Self(escape_bytes(bytes))
    }

    /// Escapes a path.
    #[must_use]
    pub fn path(path: &Path) -> Self {
        Self::new(path.as_os_str().as_encoded_bytes())
    }
}

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.0)
    }
}

/// Why what was dropped is no bundle. It takes no sequence and goes to `.failed`.
#[derive(Debug, thiserror::Error)]
pub enum RefuseReason {
    /// It is gone.
    #[error("{0} vanished")]
    Vanished(Shown),
    /// Neither a file, a directory nor a symlink.
    #[error("{path} is {}, which cannot be sent", kind.describe())]
    Kind {
        /// Where.
        path: Shown,
        /// What it is.
        kind: Kind,
    },
    /// A symlink by itself: there is no directory inside which it could point.
    #[error("{0} is a symlink; drop what it points to, or a directory that holds both")]
    BareSymlink(Shown),
    /// Setuid or setgid bits on a file, or setuid on a directory.
    #[error("{path} has mode {mode:o}: setuid and setgid are not sent; remove them with chmod")]
    SetId {
        /// Where.
        path: Shown,
        /// Its permission bits.
        mode: u32,
    },
    /// The sender's user may not read it.
    #[error("{path} cannot be read: {error}")]
    Unreadable {
        /// Where.
        path: Shown,
        /// What the system said.
        error: io::Error,
    },
    /// A path that no bundle may have.
    #[error("{path} {error}")]
    Path {
        /// Where.
        path: Shown,
        /// The rule.
        error: PathError,
    },
    /// A symlink that leaves the bundle, or is no symlink that may be sent.
    #[error("{path} is a symlink whose target {target} {error}")]
    Link {
        /// Where.
        path: Shown,
        /// Where it points.
        target: Shown,
        /// The rule.
        error: PathError,
    },
    /// Too many entries.
    #[error("it has more than {MAX_ENTRIES} files, directories and links; drop it in several parts or as an archive")]
    TooManyEntries,
    /// The manifest breaks another of its rules, or is too long.
    #[error("{0}")]
    Manifest(#[from] ManifestError),
    /// Its channel has no number left for it.
    #[error("channel {0} has given out its last sequence, {MAX_SEQUENCE}; drop it into another channel")]
    NoSequence(ChannelName),
    /// It changed while it was looked at.
    #[error("{path} was changed while it was being looked at")]
    Changed {
        /// Where.
        path: Shown,
    },
    /// The disk failed, not the bundle: it may work later.
    #[error("{path}: {error}")]
    Disk {
        /// Where.
        path: Shown,
        /// What the system said.
        error: io::Error,
    },
}

impl RefuseReason {
    /// Whether trying again later may help, so that the bundle should wait rather than be refused.
    #[must_use]
    pub fn is_temporary(&self) -> bool {
        matches!(self, Self::Disk { .. })
    }

    /// What an I/O error at `path` means: gone, not ours to read, or the disk.
    pub(crate) fn io(path: &[u8], error: io::Error) -> Self {
        let path = Shown::new(path);
        match error.kind() {
            io::ErrorKind::NotFound => Self::Vanished(path),
            // The system is short of something, which is not the bundle's fault.
            io::ErrorKind::OutOfMemory
            | io::ErrorKind::Interrupted
            | io::ErrorKind::WouldBlock
            | io::ErrorKind::StorageFull
            | io::ErrorKind::QuotaExceeded => Self::Disk { path, error },
            _ if matches!(error.raw_os_error(), Some(NFILE | MFILE)) => Self::Disk { path, error },
            // A directory or file took the place of what was there a moment ago.
            _ if is_something_else(&error) => Self::Changed { path },
            _ => Self::Unreadable { path, error },
        }
    }
}

/// Why a bundle's data could not be read as announced. It is withdrawn.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// A file is not what it was when the bundle was announced.
    #[error("{path} changed while it was being sent: {what}")]
    Changed {
        /// Where.
        path: Shown,
        /// What is different.
        what: &'static str,
    },
    /// A file is gone.
    #[error("{path} vanished while it was being sent")]
    Vanished {
        /// Where.
        path: Shown,
    },
    /// The system failed to read it.
    #[error("{path} cannot be read: {error}")]
    Io {
        /// Where.
        path: Shown,
        /// What the system said.
        error: String,
    },
    /// What is read now is not what was sent before.
    #[error("{path} is not what was sent before")]
    Different {
        /// Where.
        path: Shown,
    },
    /// It was known before reading that it cannot be read.
    #[error("{0}")]
    Broken(String),
    /// [`Reader::finish`](super::Reader::finish) was called before all was read.
    #[error("not all of it was read")]
    Unfinished,
}

impl ReadError {
    pub(super) fn io(path: &[u8], error: &io::Error) -> Self {
        let path = Shown::new(path);
        match error.kind() {
            io::ErrorKind::NotFound => Self::Vanished { path },
            _ if is_something_else(error) => Self::Changed { path, what: "it was replaced by something else" },
            _ => Self::Io { path, error: error.to_string() },
        }
    }
}

/// Whether there is something else than the file or directory that was there a moment ago: a directory, a link, a FIFO.
fn is_something_else(error: &io::Error) -> bool {
    const LOOP: i32 = rustix::io::Errno::LOOP.raw_os_error();
    matches!(error.kind(), io::ErrorKind::NotADirectory | io::ErrorKind::InvalidInput)
        || error.raw_os_error() == Some(LOOP)
}
