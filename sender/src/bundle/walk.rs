//! Looks at a tree and plans a bundle of it.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use checkvalve_host::disk::{Disk, FileTime, Kind, Meta};
use checkvalve_protocol::limits::MAX_ENTRIES;
use checkvalve_protocol::manifest::{Announce, Entries, Entry, EntryKind, Timestamp};
use checkvalve_protocol::path::{LinkTarget, SafePath};

use super::{FileFingerprint, Identity, Plan, RefuseReason, Shown, is_carried};

const SET_ID: u32 = 0o6000;
const SET_USER_ID: u32 = 0o4000;
const PERMISSIONS: u32 = 0o777;

/// Plans the bundle `identity` of what is at `root`/`identity.name`: a file, or a directory with all below it, in the
/// order of [`SafePath`] (each directory before what is in it, names by their bytes).
///
/// Nothing is followed out of the tree. A file that this process may not read is found out here, before the bundle has
/// a sequence. Setgid and sticky bits of directories are dropped, since they are inherited from shared directories and
/// mean nothing to what is inside; set-id bits of files are refused.
///
/// Errors: [`RefuseReason`], which names the path.
pub fn plan(disk: &dyn Disk, root: &Path, identity: Identity) -> Result<Plan, RefuseReason> {
    let mut walk = Walk { disk, root, entries: Entries::new(), files: Vec::new() };
    let top = walk.path(identity.name.clone())?;
    if walk.look(&top)?.kind == Kind::Symlink {
        return Err(RefuseReason::BareSymlink(Shown::new(top.as_bytes())));
    }
    walk.tree(top)?;
    let Identity { bundle, channel, sequence, name, created_ms, symbol_size, block_symbols } = identity;
    let entries = walk.entries;
    let announce = Announce { bundle, channel, sequence, name, created_ms, symbol_size, block_symbols, entries };
    Ok(Plan { announce, files: walk.files, broken: None })
}

struct Walk<'a> {
    disk: &'a dyn Disk,
    root: &'a Path,
    entries: Entries,
    files: Vec<FileFingerprint>,
}

impl Walk<'_> {
    /// Walks without recursion: a tree's depth is its owner's to choose.
    fn tree(&mut self, top: SafePath) -> Result<(), RefuseReason> {
        let mut open: Vec<(SafePath, VecDeque<std::ffi::OsString>)> = Vec::new();
        open.extend(self.entry(top)?);
        while let Some((directory, names)) = open.last_mut() {
            let Some(name) = names.pop_front() else {
                open.pop();
                continue;
            };
            let path = child(directory, &name)?;
            open.extend(self.entry(path)?);
        }
        Ok(())
    }

    /// Adds what is at `path`; gives it back with the names in it if it is a directory.
    fn entry(&mut self, path: SafePath) -> Result<Option<(SafePath, VecDeque<std::ffi::OsString>)>, RefuseReason> {
        if self.entries.len() == MAX_ENTRIES {
            return Err(RefuseReason::TooManyEntries);
        }
        let meta = self.look(&path)?;
        let mut inside = None;
        let kind = match meta.kind {
            Kind::File => {
                let fingerprint = self.file(&path, meta)?;
                self.files.push(fingerprint);
                EntryKind::File { size: meta.size, mode: permissions(meta.mode) }
            }
            Kind::Directory => {
                let names = self.disk.read_dir(&self.absolute(&path)).map_err(|e| refuse(&path, e))?;
                inside = Some((path.clone(), VecDeque::from(names)));
                EntryKind::Directory { mode: permissions(meta.mode) }
            }
            _ => EntryKind::Symlink { target: self.link(&path)? },
        };
        self.entries.push(Entry { path, mtime: timestamp(meta.mtime), kind });
        Ok(inside)
    }

    /// What is at `path`, if it is something that can be sent.
    fn look(&self, path: &SafePath) -> Result<Meta, RefuseReason> {
        let meta = self.disk.lstat(&self.absolute(path)).map_err(|e| refuse(path, e))?;
        if !is_carried(meta.kind) {
            return Err(RefuseReason::Kind { path: Shown::new(path.as_bytes()), kind: meta.kind });
        }
        let forbidden = if meta.kind == Kind::Directory { SET_USER_ID } else { SET_ID };
        if meta.kind != Kind::Symlink && meta.mode & forbidden != 0 {
            return Err(RefuseReason::SetId { path: Shown::new(path.as_bytes()), mode: meta.mode });
        }
        Ok(meta)
    }

    /// Whether the file can be read is only known by opening it, unless its mode leaves no doubt.
    fn file(&self, path: &SafePath, meta: Meta) -> Result<FileFingerprint, RefuseReason> {
        let fingerprint = FileFingerprint::of(&meta);
        let own = meta.uid == rustix::process::geteuid().as_raw() && meta.mode & 0o400 != 0;
        if !own && meta.mode & 0o444 != 0o444 {
            let file = self.disk.open_read(&self.absolute(path)).map_err(|e| refuse(path, e))?;
            let opened = file.meta().map_err(|e| refuse(path, e))?;
            if fingerprint.difference(&opened).is_some() {
                return Err(RefuseReason::Changed { path: Shown::new(path.as_bytes()) });
            }
        }
        Ok(fingerprint)
    }

    fn link(&self, path: &SafePath) -> Result<LinkTarget, RefuseReason> {
        let target = self.disk.read_link(&self.absolute(path)).map_err(|e| refuse(path, e))?;
        let bytes = target.as_os_str().as_bytes();
        LinkTarget::new(path, bytes).map_err(|error| RefuseReason::Link {
            path: Shown::new(path.as_bytes()),
            target: Shown::new(bytes),
            error,
        })
    }

    fn path(&self, name: Vec<u8>) -> Result<SafePath, RefuseReason> {
        let shown = Shown::new(&name);
        SafePath::new(name).map_err(|error| RefuseReason::Path { path: shown, error })
    }

    fn absolute(&self, path: &SafePath) -> std::path::PathBuf {
        self.root.join(path.as_path())
    }
}

fn child(directory: &SafePath, name: &OsStr) -> Result<SafePath, RefuseReason> {
    directory.join(name.as_bytes()).map_err(|error| {
        let path = [directory.as_bytes(), b"/", name.as_bytes()].concat();
        RefuseReason::Path { path: Shown::new(&path), error }
    })
}

fn refuse(path: &SafePath, error: std::io::Error) -> RefuseReason {
    RefuseReason::io(path.as_bytes(), error)
}

fn permissions(mode: u32) -> u16 {
    // Nine bits fit into sixteen.
    u16::try_from(mode & PERMISSIONS).unwrap_or_default()
}

fn timestamp(time: FileTime) -> Timestamp {
    Timestamp { secs: time.secs, nanos: time.nanos }
}
