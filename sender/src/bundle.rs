//! A bundle as it lies on the disk: what is in it ([`plan`]), and its bytes ([`Reader`], [`SpotReader`]).
//!
//! A plan is taken once, signed and announced; every byte that is read later is checked to come from the same,
//! unchanged files, so that nothing is ever sent half old, half new.

mod error;
mod reader;
mod walk;

use checkvalve_host::disk::{FileTime, Kind, Meta};
use checkvalve_protocol::id::{BundleId, ChannelName};
use checkvalve_protocol::manifest::Announce;

pub use error::{ReadError, RefuseReason, Shown};
pub use reader::{Reader, SpotReader};
pub use walk::plan;

/// What names a bundle before anything in it was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The bundle.
    pub bundle: BundleId,
    /// Its channel.
    pub channel: ChannelName,
    /// Its number in the channel, from 1.
    pub sequence: u64,
    /// The name of what was dropped: one component of a path, any bytes.
    pub name: Vec<u8>,
    /// When it was claimed, in milliseconds since 1970.
    pub created_ms: u64,
    /// T of its data object in bytes.
    pub symbol_size: u16,
    /// B of its data object in symbols.
    pub block_symbols: u16,
}

/// What a bundle consists of, and what its files looked like when that was found out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// What will be signed and announced.
    pub announce: Announce,
    /// One for each regular file, in the order of [`Announce::files`].
    files: Vec<FileFingerprint>,
    /// Set when the bundle can no longer be read: reading fails with this at once.
    broken: Option<String>,
}

/// What tells that a file is still the one that was planned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileFingerprint {
    size: u64,
    mtime: FileTime,
    ctime: FileTime,
    dev: u64,
    ino: u64,
    nlink: u64,
}

impl Plan {
    /// A plan that can only be withdrawn: every read fails with [`ReadError::Broken`] and `reason`.
    #[must_use]
    pub fn broken(announce: Announce, reason: impl Into<String>) -> Self {
        Self { announce, files: Vec::new(), broken: Some(reason.into()) }
    }

    /// Length of the data object in bytes.
    #[must_use]
    pub fn data_len(&self) -> u64 {
        self.announce.data_len()
    }

    /// BLAKE3 over what the files looked like (size, mtime, ctime, inode; not the device, whose number may change at
    /// a reboot). The same value later means that nobody touched them in between.
    #[must_use]
    pub fn fingerprint(&self) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new();
        for file in &self.files {
            hasher.update(&file.size.to_le_bytes());
            for time in [file.mtime, file.ctime] {
                hasher.update(&time.secs.to_le_bytes());
                hasher.update(&time.nanos.to_le_bytes());
            }
            hasher.update(&file.ino.to_le_bytes());
        }
        hasher.finalize().into()
    }
}

impl FileFingerprint {
    /// Of what `stat(2)` says.
    #[must_use]
    pub fn of(meta: &Meta) -> Self {
        let Meta { size, mtime, ctime, dev, ino, nlink, .. } = *meta;
        Self { size, mtime, ctime, dev, ino, nlink }
    }

    /// What is different now, for people; nothing if it is still the same file with the same contents.
    ///
    /// Making or removing a hard link moves ctime and changes no contents, so a ctime that moved together with the
    /// number of links is not a difference.
    #[must_use]
    pub fn difference(&self, now: &Meta) -> Option<&'static str> {
        let now = Self::of(now);
        if (self.dev, self.ino) != (now.dev, now.ino) {
            Some("it was replaced by another file")
        } else if now.size > self.size {
            Some("it grew")
        } else if now.size < self.size {
            Some("it shrank")
        } else if self.mtime != now.mtime || (self.ctime != now.ctime && self.nlink == now.nlink) {
            Some("it was modified")
        } else {
            None
        }
    }
}

/// Whether `kind` can be in a bundle.
fn is_carried(kind: Kind) -> bool {
    matches!(kind, Kind::File | Kind::Directory | Kind::Symlink)
}

#[cfg(test)]
mod tests;
