//! Where claimed bundles are kept: one directory a bundle, `CHANNEL/ID/`, with what was dropped in `content/`, the signed
//! announce in `announce` and, once it was read, the files' hashes in `hashes`.
//!
//! Claiming and letting go are renames, so the holding area must be on the file system, and under the mount, of the
//! spool: `state/bundles` where that holds, else `.checkvalve` in the spool, else in the channel's own folder. The
//! directory is the record of a claim: whatever is found here after a crash was claimed and not yet let go.

mod names;

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use checkvalve_host::disk::{self, Disk, Kind, Meta};
use checkvalve_protocol::id::{BundleId, ChannelName};
use checkvalve_protocol::limits::MAX_MANIFEST_LEN;

/// Name of the folder for refused bundles in a channel's folder of the spool.
pub const FAILED: &str = ".failed";
const IN_SPOOL: &str = ".checkvalve";
const IN_STATE: &str = "bundles";
const CONTENT: &str = "content";
const ANNOUNCE: &str = "announce";
const HASHES: &str = "hashes";
const PRIVATE: u32 = 0o700;

/// The holding area.
#[derive(Debug, Clone)]
pub struct Holding {
    spool: PathBuf,
    state: PathBuf,
    /// Where new claims of a channel go.
    bases: BTreeMap<ChannelName, PathBuf>,
}

/// The directory of one claimed bundle.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Home {
    channel: ChannelName,
    id: BundleId,
    dir: PathBuf,
}

/// A claimed bundle that was found in the holding area.
#[derive(Debug)]
pub struct Found {
    /// Its directory.
    pub home: Home,
    /// What was dropped, or nothing if the claim did not come that far or the bundle was let go.
    pub name: Option<OsString>,
    /// When it was claimed, as far as the file system tells: for putting several into order.
    pub order: (i64, u32),
}

impl Holding {
    /// Creates the folders of `channels` in the spool and finds for each a place to which it can be renamed.
    ///
    /// Errors: those of creating folders and of trying a rename, with the path in question.
    pub fn open(
        disk: &dyn Disk,
        spool: &Path,
        state: &Path,
        channels: impl IntoIterator<Item = ChannelName>,
    ) -> Result<Self, (PathBuf, io::Error)> {
        let mut holding = Self::closed(spool, state);
        for channel in channels {
            let folder = holding.folder(&channel);
            holding.ensure_folder(disk, &channel).map_err(|e| (folder.clone(), e))?;
            let base = holding.base_for(disk, &channel).map_err(|e| (folder, e))?;
            holding.bases.insert(channel, base);
        }
        Ok(holding)
    }

    /// A holding area to look at with [`Holding::scan`], where nothing is created.
    #[must_use]
    pub fn closed(spool: &Path, state: &Path) -> Self {
        Self { spool: spool.to_owned(), state: state.to_owned(), bases: BTreeMap::new() }
    }

    /// The spool's folder of a channel.
    #[must_use]
    pub fn folder(&self, channel: &ChannelName) -> PathBuf {
        self.spool.join(channel.as_str())
    }

    /// Creates the spool's folder of a channel if it is missing. Errors: those of creating it; `NotADirectory`.
    pub fn ensure_folder(&self, disk: &dyn Disk, channel: &ChannelName) -> io::Result<()> {
        let folder = self.folder(channel);
        match disk.lstat(&folder) {
            Ok(meta) if meta.kind == Kind::Directory => Ok(()),
            Ok(_) => Err(io::ErrorKind::NotADirectory.into()),
            // Whoever may write into the spool may write into a channel.
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let mode = disk.lstat(&self.spool)?.mode;
                disk.create_dir(&folder, mode)
            }
            Err(e) => Err(e),
        }
    }

    /// Renames `name` out of the channel's folder of the spool into a new directory for bundle `id`. Not durable yet: see
    /// [`Holding::sync_claim`].
    ///
    /// Errors: those of `rename(2)`; `NotFound` if the name is gone. The bundle is then where it was.
    pub fn claim(&self, disk: &dyn Disk, channel: &ChannelName, name: &OsStr, id: BundleId) -> io::Result<Home> {
        self.claim_as(disk, channel, name, name, id)
    }

    /// As [`Holding::claim`], under another name than it has in the spool.
    pub fn claim_as(
        &self,
        disk: &dyn Disk,
        channel: &ChannelName,
        name: &OsStr,
        to: &OsStr,
        id: BundleId,
    ) -> io::Result<Home> {
        let base = match self.bases.get(channel) {
            Some(base) => base.clone(),
            None => self.base_for(disk, channel)?,
        };
        let home = Home::new(&base, channel, id);
        disk.create_dir_all(&home.root(), PRIVATE)?;
        // The rename may reach the disk before the directory that it leads to has a name there, and then nothing leads to
        // the bundle any more.
        let renamed = home
            .sync_names(disk)
            .and_then(|()| disk.rename_noreplace(&self.folder(channel).join(name), &home.root().join(to)));
        if let Err(error) = renamed {
            home.remove_empty(disk);
            return Err(error);
        }
        Ok(home)
    }

    /// Makes the claim durable: it happened on both sides of the rename.
    /// Errors: those of fsync.
    pub fn sync_claim(&self, disk: &dyn Disk, home: &Home) -> io::Result<()> {
        disk.sync_dir(&home.root())?;
        disk.sync_dir(&self.folder(&home.channel))
    }

    /// The directory of a bundle that was claimed earlier, wherever it was put then. None: it is not held any more.
    /// Errors: those of `lstat`, when it may or may not be.
    pub fn find(&self, disk: &dyn Disk, channel: &ChannelName, id: BundleId) -> io::Result<Option<Home>> {
        for base in self.all_bases(channel) {
            let home = Home::new(&base, channel, id);
            match disk.lstat(&home.dir) {
                Ok(_) => return Ok(Some(home)),
                Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(None)
    }

    /// All that is held, in order of claiming as far as the file system tells. What has no business here is left out.
    /// Errors: those of reading directories.
    pub fn scan(&self, disk: &dyn Disk) -> io::Result<Vec<Found>> {
        let mut found = Vec::new();
        for base in self.bases_on_disk(disk)? {
            for channel_name in list(disk, &base)? {
                let Some(channel) = channel_name.to_str().and_then(|name| ChannelName::new(name).ok()) else {
                    continue;
                };
                for id_name in list(disk, &base.join(&channel_name))? {
                    let Some(id) = id_name.to_str().and_then(|name| name.parse().ok()) else { continue };
                    let home = Home::new(&base, &channel, id);
                    let name = home.name(disk)?;
                    let meta = disk.lstat(&home.root()).ok();
                    found.push(Found { home, name, order: meta.map_or((0, 0), |m| (m.mtime.secs, m.mtime.nanos)) });
                }
            }
        }
        found.sort_by(|a, b| a.order.cmp(&b.order).then_with(|| a.name.cmp(&b.name)));
        Ok(found)
    }

    /// Moves a bundle that is given up to `.failed` in its channel's folder, beside a file that says `reason`; gives where
    /// it is now. A crash in between leaves it held, to be moved again.
    ///
    /// Errors: those of creating, writing and renaming; it is then still held.
    pub fn fail(&self, disk: &dyn Disk, home: &Home, reason: &str) -> io::Result<Option<PathBuf>> {
        let failed = self.folder(&home.channel).join(FAILED);
        let Some(name) = home.name(disk)? else {
            home.remove(disk)?;
            return Ok(None);
        };
        self.ensure_folder(disk, &home.channel)?;
        // Whoever may write into the channel's folder may tidy this one up.
        disk.create_dir_all(&failed, disk.lstat(&self.folder(&home.channel))?.mode)?;
        // Make the name of `.failed` durable: if it were lost, everything moved there would be lost with it.
        disk.sync_dir(&self.folder(&home.channel))?;
        let text = format!("{reason}\n");
        let temporary = failed.join(".reason.tmp");
        remove_if_there(disk, &temporary)?;
        let file = disk.create_new(&temporary, 0o644)?;
        file.write_all_at(text.as_bytes(), 0).and_then(|()| file.sync_all())?;
        for number in 0_u32.. {
            let (target, note) = names::pair(&name, number);
            let (target, note) = (failed.join(target), failed.join(note));
            if disk.lstat(&target).is_ok() {
                continue;
            }
            let noted = match disk.rename_noreplace(&temporary, &note) {
                // A crash may have left it there without its bundle. Anything else there is somebody's.
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => match disk::read_all(disk, &note, 1 << 20) {
                    Ok(there) if there == text.as_bytes() => disk.remove_file(&temporary),
                    _ => continue,
                },
                other => other,
            };
            let moved = noted.and_then(|()| disk.rename_noreplace(&home.root().join(&name), &target));
            match moved {
                Ok(()) => {
                    disk.sync_dir(&failed)?;
                    home.remove(disk)?;
                    return Ok(Some(target));
                }
                Err(error) => {
                    // Without its bundle the note would only mislead.
                    drop(disk.remove_file(&note));
                    if error.kind() != io::ErrorKind::AlreadyExists {
                        return Err(error);
                    }
                }
            }
        }
        Err(io::ErrorKind::AlreadyExists.into())
    }

    /// Finds the first of the possible places that a rename from the channel's folder reaches. `st_dev` alone does not tell:
    /// bind mounts and the sandboxes of service managers have the same and refuse to rename.
    fn base_for(&self, disk: &dyn Disk, channel: &ChannelName) -> io::Result<PathBuf> {
        let probe = self.folder(channel).join(".checkvalve-probe.tmp");
        let mut last = io::Error::from(io::ErrorKind::CrossesDevices);
        for base in self.all_bases(channel) {
            disk.create_dir_all(&base, PRIVATE)?;
            let reached = base.join(format!(".probe-{channel}.tmp"));
            remove_if_there(disk, &probe)?;
            remove_if_there(disk, &reached)?;
            drop(disk.create_new(&probe, 0o600)?);
            let renamed = disk.rename(&probe, &reached);
            let here = if renamed.is_ok() { &reached } else { &probe };
            disk.remove_file(here)?;
            match renamed {
                Ok(()) => {
                    base.parent().map_or(Ok(()), |parent| disk.sync_dir(parent))?;
                    return Ok(base);
                }
                Err(e) if e.kind() == io::ErrorKind::CrossesDevices => {
                    drop(disk.remove_dir(&base));
                    last = e;
                }
                Err(e) => return Err(e),
            }
        }
        Err(last)
    }

    fn all_bases(&self, channel: &ChannelName) -> [PathBuf; 3] {
        [self.state.join(IN_STATE), self.spool.join(IN_SPOOL), self.folder(channel).join(IN_SPOOL)]
    }

    /// Every place where bundles may be held, also for channels that are no longer configured.
    fn bases_on_disk(&self, disk: &dyn Disk) -> io::Result<Vec<PathBuf>> {
        let mut bases = vec![self.state.join(IN_STATE), self.spool.join(IN_SPOOL)];
        for folder in list(disk, &self.spool)? {
            bases.push(self.spool.join(folder).join(IN_SPOOL));
        }
        Ok(bases)
    }
}

impl Home {
    fn new(base: &Path, channel: &ChannelName, id: BundleId) -> Self {
        let dir = base.join(channel.as_str()).join(id.to_string());
        Self { channel: channel.clone(), id, dir }
    }

    /// The bundle.
    #[must_use]
    pub fn id(&self) -> BundleId {
        self.id
    }

    /// Its channel.
    #[must_use]
    pub fn channel(&self) -> &ChannelName {
        &self.channel
    }

    /// The directory that the bundle's name is in: the `root` of its plan and its readers.
    #[must_use]
    pub fn root(&self) -> PathBuf {
        self.dir.join(CONTENT)
    }

    /// The name of what was dropped, if it is there. Errors: those of reading the directory.
    pub fn name(&self, disk: &dyn Disk) -> io::Result<Option<OsString>> {
        Ok(list(disk, &self.root())?.into_iter().next())
    }

    /// What was dropped, looked at. Errors: `NotFound`; those of `lstat`.
    pub fn meta(&self, disk: &dyn Disk) -> io::Result<Meta> {
        let name = self.name(disk)?.ok_or(io::ErrorKind::NotFound)?;
        disk.lstat(&self.root().join(name))
    }

    /// Gives what is held as one bundle to another, `id`, durably. Errors: those of renaming and of fsync; it may then be held
    /// as either.
    pub fn reassign(&self, disk: &dyn Disk, id: BundleId) -> io::Result<Self> {
        let moved = Self { dir: self.dir.with_file_name(id.to_string()), id, ..self.clone() };
        disk.rename_noreplace(&self.dir, &moved.dir)?;
        self.dir.parent().map_or(Ok(()), |parent| disk.sync_dir(parent))?;
        Ok(moved)
    }

    /// Writes the signed announce. Not durable by itself: it can be made again from the content, and its digest is known.
    /// Errors: those of writing.
    pub fn write_announce(&self, disk: &dyn Disk, bytes: &[u8]) -> io::Result<()> {
        self.write(disk, ANNOUNCE, bytes)
    }

    /// Reads the signed announce. Errors: those of reading.
    pub fn read_announce(&self, disk: &dyn Disk) -> io::Result<Vec<u8>> {
        disk::read_all(disk, &self.dir.join(ANNOUNCE), MAX_MANIFEST_LEN as u64)
    }

    /// Lengths in bytes of the signed announce and of the list of hashes; 0 for what is not there.
    #[must_use]
    pub fn manifest_len(&self, disk: &dyn Disk) -> (u64, u64) {
        let len = |name| disk.lstat(&self.dir.join(name)).map_or(0, |meta| meta.size);
        (len(ANNOUNCE), len(HASHES))
    }

    /// Writes the hashes of the regular files. Not durable by itself. Errors: those of writing.
    pub fn write_hashes(&self, disk: &dyn Disk, hashes: &[[u8; 32]]) -> io::Result<()> {
        self.write(disk, HASHES, hashes.as_flattened())
    }

    /// Reads the hashes. Errors: those of reading; `InvalidData` if it is not a list of hashes.
    pub fn read_hashes(&self, disk: &dyn Disk) -> io::Result<Vec<[u8; 32]>> {
        let bytes = disk::read_all(disk, &self.dir.join(HASHES), MAX_MANIFEST_LEN as u64)?;
        match bytes.as_chunks() {
            (hashes, []) => Ok(hashes.to_vec()),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    /// Removes the bundle and all that is known of it here. Done if it is gone already. Errors: those of removing.
    pub fn remove(&self, disk: &dyn Disk) -> io::Result<()> {
        match disk.remove_tree(&self.dir) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    /// Makes what is in it durable, and that it is there. Errors: those of fsync.
    pub fn sync(&self, disk: &dyn Disk) -> io::Result<()> {
        disk.sync_dir(&self.root())?;
        let mut dir = Some(self.dir.as_path());
        // The bundle's own directory, the channel's and the base: each may be new.
        for _ in 0..3 {
            let Some(path) = dir else { break };
            disk.sync_dir(path)?;
            dir = path.parent();
        }
        Ok(())
    }

    /// Makes the way to the bundle's content durable, from the outside inwards: the base, the channel's directory and the
    /// bundle's own may each be new.
    fn sync_names(&self, disk: &dyn Disk) -> io::Result<()> {
        let names: Vec<_> = self.dir.ancestors().take(3).collect();
        names.into_iter().rev().try_for_each(|dir| disk.sync_dir(dir))
    }

    fn write(&self, disk: &dyn Disk, name: &str, bytes: &[u8]) -> io::Result<()> {
        let path = self.dir.join(name);
        let temporary = self.dir.join(format!(".{name}.tmp"));
        remove_if_there(disk, &temporary)?;
        disk.create_new(&temporary, 0o600)?.write_all_at(bytes, 0)?;
        disk.rename(&temporary, &path)
    }

    /// Undoes the beginning of a claim; what is left behind is removed at the next start.
    fn remove_empty(&self, disk: &dyn Disk) {
        if disk.remove_dir(&self.root()).is_ok() {
            drop(disk.remove_dir(&self.dir));
        }
    }
}

/// The bundle's name as bytes.
#[must_use]
pub fn name_bytes(name: OsString) -> Vec<u8> {
    name.into_vec()
}

fn list(disk: &dyn Disk, dir: &Path) -> io::Result<Vec<OsString>> {
    match disk.read_dir(dir) {
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(Vec::new()),
        other => other,
    }
}

fn remove_if_there(disk: &dyn Disk, path: &Path) -> io::Result<()> {
    match disk.remove_file(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests;
