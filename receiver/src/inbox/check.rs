//! Whether a tree on the disk is exactly what a manifest says.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use checkvalve_host::disk::{Disk, Kind, Meta};
use checkvalve_host::log::escape_path;
use checkvalve_protocol::manifest::{Announce, Entry, EntryKind};

/// Bytes read at a time.
const READ: usize = 256 << 10;

/// How a tree differs from its manifest, or why that cannot be told.
#[derive(Debug, thiserror::Error)]
pub enum Mismatch {
    /// Something is not there.
    #[error("{}: is not there", escape_path(.0))]
    Missing(PathBuf),
    /// Something is there that should not be.
    #[error("{}: is not in the manifest", escape_path(.0))]
    Extra(PathBuf),
    /// Something has another kind, size, mode, time or target.
    #[error("{}: {what} differs from the manifest", escape_path(.path))]
    Differs {
        /// The path.
        path: PathBuf,
        /// What differs, one word.
        what: &'static str,
    },
    /// It cannot be read.
    #[error("{}: {error}", escape_path(.path))]
    Disk {
        /// The path.
        path: PathBuf,
        /// What the disk said.
        error: io::Error,
    },
}

/// Compares the tree in `dir`, which holds the bundle's own name and nothing else, with the announce and the hashes of
/// its files in order. Reads every byte. Errors: the first difference.
pub fn check(disk: &dyn Disk, dir: &Path, announce: &Announce, digests: &[[u8; 32]]) -> Result<(), Mismatch> {
    let mut digests = digests.iter();
    let mut expected: Vec<(PathBuf, BTreeSet<OsString>)> = Vec::new();
    let root = BTreeSet::from([OsStr::from_bytes(&announce.name).to_owned()]);
    names(disk, dir, &root)?;
    for entry in &announce.entries {
        let path = dir.join(entry.path.as_path());
        let parent = path.parent().unwrap_or(dir);
        // Entries come as a tree is walked: a directory is full when something outside of it comes.
        while expected.last().is_some_and(|(open, _)| open != parent) {
            if let Some((open, children)) = expected.pop() {
                names(disk, &open, &children)?;
            }
        }
        if let Some((_, children)) = expected.last_mut() {
            children.insert(OsStr::from_bytes(entry.path.file_name()).to_owned());
        }
        let meta = disk.lstat(&path).map_err(|error| missing(&path, error))?;
        compare(disk, &path, entry, &meta)?;
        match entry.kind {
            EntryKind::Directory { .. } => expected.push((path, BTreeSet::new())),
            EntryKind::File { .. } => {
                let hash = hash(disk, &path).map_err(|error| missing(&path, error))?;
                if digests.next() != Some(&hash) {
                    return Err(Mismatch::Differs { path, what: "content" });
                }
            }
            EntryKind::Symlink { .. } => {}
        }
    }
    while let Some((open, children)) = expected.pop() {
        names(disk, &open, &children)?;
    }
    Ok(())
}

fn compare(disk: &dyn Disk, path: &Path, entry: &Entry, meta: &Meta) -> Result<(), Mismatch> {
    let differs = |what| Err(Mismatch::Differs { path: path.to_owned(), what });
    match &entry.kind {
        EntryKind::File { size, mode } => match meta.kind {
            Kind::File if meta.mode != u32::from(*mode) => return differs("mode"),
            Kind::File if meta.size != *size => return differs("size"),
            Kind::File => {}
            _ => return differs("kind"),
        },
        EntryKind::Directory { mode } => match meta.kind {
            Kind::Directory if meta.mode & 0o777 != u32::from(*mode) => return differs("mode"),
            Kind::Directory => {}
            _ => return differs("kind"),
        },
        EntryKind::Symlink { target } => {
            if meta.kind != Kind::Symlink {
                return differs("kind");
            }
            let found = disk.read_link(path).map_err(|error| missing(path, error))?;
            if found.as_os_str().as_bytes() != target.as_bytes() {
                return differs("target");
            }
        }
    }
    if (meta.mtime.secs, meta.mtime.nanos) == (entry.mtime.secs, entry.mtime.nanos) {
        Ok(())
    } else {
        differs("modification time")
    }
}

fn names(disk: &dyn Disk, dir: &Path, expected: &BTreeSet<OsString>) -> Result<(), Mismatch> {
    for name in disk.read_dir(dir).map_err(|error| missing(dir, error))? {
        if !expected.contains(&name) {
            return Err(Mismatch::Extra(dir.join(name)));
        }
    }
    Ok(())
}

fn hash(disk: &dyn Disk, path: &Path) -> io::Result<[u8; 32]> {
    let file = disk.open_read(path)?;
    let (mut hasher, mut buf, mut at) = (blake3::Hasher::new(), vec![0; READ], 0);
    loop {
        match file.read_at(&mut buf, at)? {
            0 => return Ok(hasher.finalize().into()),
            n => {
                hasher.update(&buf[..n]);
                at += n as u64;
            }
        }
    }
}

fn missing(path: &Path, error: io::Error) -> Mismatch {
    match error.kind() {
        io::ErrorKind::NotFound => Mismatch::Missing(path.to_owned()),
        _ => Mismatch::Disk { path: path.to_owned(), error },
    }
}
