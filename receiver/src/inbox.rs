//! From staging to the inbox in one rename, or to quarantine.
//!
//! 1. [`Inbox::finish`]: what is left to make: empty files, symlinks, modes and times.
//! 2. [`Inbox::record`]: the manifest is kept in the state directory, for `verify` and the hook.
//! 3. [`Inbox::settle`]: all of it is made durable.
//! 4. [`Inbox::publish`]: one rename, and an fsync of the directory that it went to.
//!
//! Each step may be done again after a crash, and the bundle is in the inbox after the rename or not at all.

pub mod check;
mod quarantine;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use checkvalve_host::disk::{Disk, DiskFile, Kind, not_opened, read_all};
use checkvalve_host::json::Stamp;
use checkvalve_protocol::admit::{Trust, Verdict, admit, admit_hashes};
use checkvalve_protocol::id::{BundleId, ChannelName};
use checkvalve_protocol::limits::MAX_MANIFEST_LEN;
use checkvalve_protocol::manifest::{Announce, EntryKind, ManifestError, Opened, Outcome};
use serde::{Deserialize, Serialize};

use crate::store::tree::Tree;

/// Of an untrusted announce, so many bytes are kept in quarantine.
const KEPT_ANNOUNCE: usize = 1 << 20;
const COPY: usize = 256 << 10;
/// Files in a directory of the quarantine.
const ANNOUNCE: &str = "announce";
const REASON: &str = "reason.json";

/// How contents are made durable before a bundle is published.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Durability {
    /// One sync of the whole file system.
    #[default]
    Syncfs,
    /// An fsync of every file and directory of the bundle; of one with symlinks, whose times no fsync reaches, as
    /// [`Durability::Syncfs`].
    Fsync,
}

/// Runs a sync.
pub type Synced<'a> = &'a dyn Fn(&dyn Fn() -> io::Result<()>) -> io::Result<()>;

/// Why a bundle's files are not as they shall be.
#[derive(Debug, thiserror::Error)]
pub enum FinishError {
    /// It may be tried again.
    #[error("{0}")]
    Disk(#[from] io::Error),
    /// A sync failed. If that is a loss ([`is_loss`](checkvalve_host::disk::is_loss)), what was written may be lost although it can be
    /// read, and no later sync tells.
    #[error("sync: {0}")]
    Sync(#[source] io::Error),
}

/// Why the recorded manifest of a bundle cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// It cannot be read.
    #[error("{0}")]
    Disk(#[from] io::Error),
    /// No key that is trusted now signed it.
    #[error("{0}")]
    Manifest(#[from] ManifestError),
}

/// Where published and refused bundles go.
pub struct Inbox {
    disk: Arc<dyn Disk>,
    inbox: PathBuf,
    quarantine: PathBuf,
    manifests: PathBuf,
    staging: PathBuf,
    durability: Durability,
}

/// Which bundle, as far as its place is concerned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// The bundle.
    pub id: BundleId,
    /// Its channel. None: even that is unknown, which leads to quarantine only.
    pub channel: Option<ChannelName>,
    /// Its number in the channel.
    pub sequence: u64,
}

/// How publishing went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Published {
    /// It is in the inbox.
    Now,
    /// Something else is where it belongs, or it went there before; staging has nothing to move.
    Taken,
}

/// Why a bundle is in quarantine: the content of `reason.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reason {
    /// The bundle's id.
    pub bundle: BundleId,
    /// Its channel; null if that is not known.
    pub channel: Option<ChannelName>,
    /// Its number in the channel.
    pub sequence: u64,
    /// Its name, bytes that are not printable escaped.
    pub name: String,
    /// Which rule it broke, in one word for programs: those of the manifest, or `content`, `hook`, `sequence`, `inbox`.
    pub rule: String,
    /// The same for people.
    pub reason: String,
    /// The key that signed it, if a trusted one did, or the one that it names.
    pub signer: Option<String>,
    /// When.
    pub at: Stamp,
}

impl Inbox {
    /// `inbox`, `quarantine` and `staging` exist, the latter on the file system of `inbox`; `manifests` is created as needed. All
    /// paths absolute.
    #[must_use]
    pub fn new(
        disk: Arc<dyn Disk>,
        inbox: PathBuf,
        quarantine: PathBuf,
        manifests: PathBuf,
        staging: PathBuf,
        durability: Durability,
    ) -> Self {
        Self { disk, inbox, quarantine, manifests, staging, durability }
    }

    /// `inbox/<channel>/<sequence, 8 digits>`.
    #[must_use]
    pub fn path(&self, channel: &ChannelName, sequence: u64) -> PathBuf {
        self.inbox.join(channel.as_str()).join(format!("{sequence:08}"))
    }

    /// `quarantine/<channel>/<sequence>-<id>`.
    #[must_use]
    pub fn quarantine_path(&self, place: &Address) -> PathBuf {
        let channel = place.channel.as_ref().map_or("unknown", ChannelName::as_str);
        self.quarantine.join(channel).join(format!("{:08}-{}", place.sequence, place.id))
    }

    /// Step 1. Every regular file with bytes is in its place already. `synced` is given each sync, and runs it.
    pub fn finish(&self, tree: &Tree, synced: Synced<'_>) -> Result<(), FinishError> {
        let disk = self.disk.as_ref();
        tree.close();
        tree.create_directories()?;
        let entries = &tree.announce().entries;
        for (_, span) in tree.files().iter().enumerate().filter(|&(index, _)| !tree.is_finished(index)) {
            let entry = entries.at(span.entry as usize);
            let (path, EntryKind::File { mode, .. }) = (tree.root().join(entry.path.as_path()), entry.kind) else {
                unreachable!("spans are of files")
            };
            if span.size == 0 {
                match disk.create_new(&path, u32::from(mode)) {
                    Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error.into()),
                    _ => {}
                }
            }
            // What is behind the proven bytes is nobody's.
            if disk.lstat(&path)?.size > span.size {
                disk.set_mode(&path, 0o600)?;
                disk.open_rw(&path)?.set_len(span.size)?;
            }
            disk.set_mode(&path, u32::from(mode))?;
            disk.set_mtime(&path, entry.mtime.secs, entry.mtime.nanos)?;
        }
        for entry in entries {
            if let EntryKind::Symlink { target } = entry.kind {
                let path = tree.root().join(entry.path.as_path());
                if let Err(error) = disk.symlink(target.as_bytes(), &path) {
                    if error.kind() != io::ErrorKind::AlreadyExists {
                        return Err(error.into());
                    }
                    disk.remove_file(&path)?;
                    disk.symlink(target.as_bytes(), &path)?;
                }
                disk.set_mtime(&path, entry.mtime.secs, entry.mtime.nanos)?;
            }
        }
        if self.durability == Durability::Fsync {
            for span in tree.files().iter() {
                let path = tree.root().join(entries.at(span.entry as usize).path.as_path());
                synced(&|| self.sync_file(&path)).map_err(FinishError::Sync)?;
            }
        }
        // From the innermost outwards: a directory's mode may forbid what is still to be done in it.
        for entry in entries.iter().rev() {
            if let EntryKind::Directory { mode } = entry.kind {
                let path = tree.root().join(entry.path.as_path());
                disk.set_mtime(&path, entry.mtime.secs, entry.mtime.nanos)?;
                disk.set_mode(&path, u32::from(mode))?;
                if self.durability == Durability::Fsync && is_readable(mode) {
                    synced(&|| disk.sync_dir(&path)).map_err(FinishError::Sync)?;
                }
            }
        }
        Ok(disk.set_mode(tree.root(), 0o755)?)
    }

    /// Step 2. `announce` and `hashes` are the files of the signed objects.
    pub fn record(&self, place: &Address, announce: &Path, hashes: &Path) -> io::Result<()> {
        let disk = self.disk.as_ref();
        for (path, from) in self.manifest_paths(place).iter().zip([announce, hashes]) {
            let dir = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
            disk.create_dir_all(dir, 0o750)?;
            // Without an fsync of its own it is as durable as the rest: once all is synced, before the bundle is published.
            let whole = self.durability == Durability::Fsync;
            let to = if whole { path.with_extension("part") } else { path.clone() };
            match disk.remove_file(&to) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            let source = disk.open_read(from)?;
            let copy = disk.create_new(&to, 0o640)?;
            copy_file(source.as_ref(), copy.as_ref())?;
            if whole {
                copy.sync_all()?;
                disk.rename(&to, path)?;
                disk.sync_dir(dir)?;
            }
        }
        Ok(())
    }

    /// Step 3. Errors: what was written may be lost although it can be read.
    pub fn settle(&self, tree: &Tree) -> io::Result<()> {
        match self.durability {
            // Symlinks and unreadable directories cannot be synced alone, only with the whole file system.
            Durability::Fsync if tree.announce().entries.iter().all(|entry| can_be_synced(entry.kind)) => {
                self.disk.sync_dir(tree.root())
            }
            Durability::Fsync | Durability::Syncfs => {
                self.disk.sync_fs(tree.root())?;
                let device = |path: &Path| self.disk.lstat(path).map(|meta| meta.dev).map_err(not_opened);
                if device(&self.manifests)? != device(tree.root())? {
                    self.disk.sync_fs(&self.manifests)?;
                }
                Ok(())
            }
        }
    }

    /// Step 4. `root` is the directory that holds the bundle's own name.
    pub fn publish(&self, root: &Path, channel: &ChannelName, sequence: u64) -> io::Result<Published> {
        let to = self.path(channel, sequence);
        let parent = self.inbox.join(channel.as_str());
        match self.disk.create_dir(&parent, 0o755) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        let published = match self.disk.rename_noreplace(root, &to) {
            Ok(()) => Published::Now,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Published::Taken,
            Err(error) if error.kind() == io::ErrorKind::NotFound && self.disk.lstat(&to).is_ok() => Published::Taken,
            Err(error) => return Err(error),
        };
        self.keep_names(channel)?;
        Ok(published)
    }

    /// Makes what a channel has in the inbox survive a power cut. Whoever made a name may have died before it was synced,
    /// so the channel's own is synced each time.
    pub fn keep_names(&self, channel: &ChannelName) -> io::Result<()> {
        self.disk.sync_dir(&self.inbox.join(channel.as_str()))?;
        self.disk.sync_dir(&self.inbox)
    }

    /// The signed announce and hashes of a published bundle.
    pub fn recorded(&self, place: &Address) -> io::Result<(Vec<u8>, Vec<u8>)> {
        let [announce, hashes] = self.manifest_paths(place);
        let read = |path: &Path| read_all(self.disk.as_ref(), path, MAX_MANIFEST_LEN as u64);
        Ok((read(&announce)?, read(&hashes)?))
    }

    /// Opens the recorded manifest of a published bundle: its announce, and the hashes of its files in order. One after the other,
    /// so that neither's signed bytes are in memory for longer than they are read.
    pub fn manifest(&self, place: &Address, trust: &Trust) -> Result<(Announce, Vec<[u8; 32]>), RecordError> {
        let [announce, hashes] = self.manifest_paths(place);
        let read = |path: &Path| read_all(self.disk.as_ref(), path, MAX_MANIFEST_LEN as u64);
        let refused = |verdict: Verdict| RecordError::Manifest(verdict.error().clone());
        let announce = admit(place.id, &read(&announce)?, None, trust).map_err(refused)?.announce;
        let Opened { value, signer, digest, .. } = announce;
        let outcome = admit_hashes(&value, signer, &digest, &read(&hashes)?, trust).map_err(refused)?.outcome;
        Ok((value, files_of(Some(outcome))))
    }

    /// Removes the record of a bundle that nobody needs any more, and why it was refused.
    pub fn forget(&self, place: &Address) -> io::Result<()> {
        self.manifest_paths(place).iter().try_for_each(|path| self.remove_if_there(path))?;
        self.forget_refusal(&self.quarantine_path(place))
    }

    fn manifest_paths(&self, place: &Address) -> [PathBuf; 2] {
        let channel = place.channel.as_ref().map_or("unknown", ChannelName::as_str);
        let name = |kind| self.manifests.join(channel).join(format!("{:08}-{}.{kind}", place.sequence, place.id));
        [name("announce"), name("hashes")]
    }

    fn remove_if_there(&self, path: &Path) -> io::Result<()> {
        match self.disk.remove_file(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    fn sync_file(&self, path: &Path) -> io::Result<()> {
        self.open_to_sync(path).map_err(not_opened)?.sync_all()
    }

    /// Its mode may forbid to open it.
    fn open_to_sync(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let mode = match self.disk.open_read(path) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => self.disk.lstat(path)?.mode,
            other => return other,
        };
        self.disk.set_mode(path, 0o600)?;
        let file = self.disk.open_read(path)?;
        file.set_mode(mode)?;
        Ok(file)
    }
}

fn is_readable(mode: u16) -> bool {
    mode & 0o400 != 0
}

fn can_be_synced<T>(kind: EntryKind<T>) -> bool {
    match kind {
        EntryKind::File { .. } => true,
        EntryKind::Directory { mode } => is_readable(mode),
        EntryKind::Symlink { .. } => false,
    }
}

/// Opens the recorded manifest of a published bundle. Errors: as [`admit`].
pub fn open_record(
    bundle: BundleId,
    announce: &[u8],
    hashes: &[u8],
    trust: &Trust,
) -> Result<(Announce, Vec<[u8; 32]>), ManifestError> {
    let admitted = admit(bundle, announce, Some(hashes), trust).map_err(|verdict| verdict.error().clone())?;
    Ok((admitted.announce.value, files_of(admitted.outcome)))
}

fn files_of(outcome: Option<Outcome>) -> Vec<[u8; 32]> {
    match outcome {
        Some(Outcome::Complete { files }) => files,
        Some(Outcome::Withdrawn { .. }) | None => Vec::new(),
    }
}

fn copy_file(from: &dyn DiskFile, to: &dyn DiskFile) -> io::Result<()> {
    let (mut buf, mut at) = (vec![0; COPY], 0);
    loop {
        match from.read_at(&mut buf, at)? {
            0 => return Ok(()),
            n => {
                to.write_all_at(&buf[..n], at)?;
                at += n as u64;
            }
        }
    }
}

/// Copies a tree of files, directories and symlinks with modes and times.
fn copy_tree(disk: &dyn Disk, from: &Path, to: &Path) -> io::Result<()> {
    let meta = disk.lstat(from)?;
    match meta.kind {
        Kind::Directory => {
            disk.create_dir(to, 0o700)?;
            for name in disk.read_dir(from)? {
                copy_tree(disk, &from.join(&name), &to.join(&name))?;
            }
            disk.set_mode(to, meta.mode)?;
        }
        Kind::Symlink => {
            disk.symlink(disk.read_link(from)?.as_os_str().as_encoded_bytes(), to)?;
        }
        _ => {
            let (source, copy) = (disk.open_read(from)?, disk.create_new(to, meta.mode)?);
            copy_file(source.as_ref(), copy.as_ref())?;
        }
    }
    disk.set_mtime(to, meta.mtime.secs, meta.mtime.nanos)
}
