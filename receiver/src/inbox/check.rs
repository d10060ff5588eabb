//! Whether a tree on the disk is exactly what a manifest says.

use std::ffi::{OsStr, OsString};
use std::io;
use std::iter::Peekable;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::vec::IntoIter;

use checkvalve_host::disk::{Disk, Kind, Meta};
use checkvalve_host::log::escape_path;
use checkvalve_protocol::manifest::{Announce, EntryKind, EntryRef};

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
    let mut open = vec![Open::new(disk, dir.to_owned())?];
    for entry in &announce.entries {
        let path = dir.join(entry.path.as_path());
        let parent = path.parent().unwrap_or(dir);
        // Entries come as a tree is walked: a directory is done with when something outside of it comes.
        while let Some(done) = open.pop_if(|open| open.path != parent) {
            done.end()?;
        }
        if let Some(inside) = open.last_mut() {
            inside.pass(OsStr::from_bytes(entry.path.file_name()))?;
        }
        let meta = disk.lstat(&path).map_err(|error| missing(&path, error))?;
        compare(disk, &path, entry, &meta)?;
        match entry.kind {
            EntryKind::Directory { .. } => open.push(Open::new(disk, path)?),
            EntryKind::File { .. } => {
                let hash = hash(disk, &path).map_err(|error| missing(&path, error))?;
                if digests.next() != Some(&hash) {
                    return Err(Mismatch::Differs { path, what: "content" });
                }
            }
            EntryKind::Symlink { .. } => {}
        }
    }
    while let Some(done) = open.pop() {
        done.end()?;
    }
    Ok(())
}

/// A directory that is gone through: what is in it that no entry has named yet. Names come in the order of their bytes, as
/// those of entries do.
struct Open {
    path: PathBuf,
    names: Peekable<IntoIter<OsString>>,
}

impl Open {
    fn new(disk: &dyn Disk, path: PathBuf) -> Result<Self, Mismatch> {
        let names = disk.read_dir(&path).map_err(|error| missing(&path, error))?;
        Ok(Self { path, names: names.into_iter().peekable() })
    }

    /// The next entry is called so.
    fn pass(&mut self, name: &OsStr) -> Result<(), Mismatch> {
        match self.names.peek() {
            Some(found) if found.as_bytes() < name.as_bytes() => Err(Mismatch::Extra(self.path.join(found))),
            Some(found) if found == name => {
                self.names.next();
                Ok(())
            }
            // Looking at it says that it is not there.
            _ => Ok(()),
        }
    }

    fn end(mut self) -> Result<(), Mismatch> {
        self.names.next().map_or(Ok(()), |name| Err(Mismatch::Extra(self.path.join(name))))
    }
}

fn compare(disk: &dyn Disk, path: &Path, entry: EntryRef<'_>, meta: &Meta) -> Result<(), Mismatch> {
    let differs = |what| Err(Mismatch::Differs { path: path.to_owned(), what });
    match entry.kind {
        EntryKind::File { size, mode } => match meta.kind {
            Kind::File if meta.mode != u32::from(mode) => return differs("mode"),
            Kind::File if meta.size != size => return differs("size"),
            Kind::File => {}
            _ => return differs("kind"),
        },
        EntryKind::Directory { mode } => match meta.kind {
            Kind::Directory if meta.mode & 0o777 != u32::from(mode) => return differs("mode"),
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
