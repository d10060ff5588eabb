//! Copies a file or a tree into the spool, exactly: contents, modes, times, symlinks.

use std::fs::{self, File, FileTimes, Permissions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use checkvalve_host::disk::{Disk, OsDisk};

type Failed = (PathBuf, io::Error);

/// Copies `from` (with `link`: makes hard links to its files) to `to`, which must not be there, and makes it durable.
///
/// A symlink that is named itself is followed; those in a tree are copied. Errors: the path that could not be read or
/// written, and why. What was copied until then is left.
pub(super) fn tree(from: &Path, to: &Path, link: bool) -> Result<(), Failed> {
    let meta = fs::metadata(from).map_err(at(from))?;
    let real = from.canonicalize().map_err(at(from))?;
    if meta.is_dir() {
        let inside = to.canonicalize_parent().is_some_and(|parent| parent.starts_with(&real));
        if inside {
            return Err((from.to_owned(), io::Error::new(io::ErrorKind::InvalidInput, "the spool is in it")));
        }
        directory(&real, to, link)?;
    } else {
        leaf(&real, to, &meta, link)?;
    }
    OsDisk.sync_fs(to).map_err(at(to))
}

fn directory(from: &Path, to: &Path, link: bool) -> Result<(), Failed> {
    // Modes and times last: a directory may forbid to write into it, and writing changes its time.
    let mut done: Vec<(PathBuf, fs::Metadata)> = Vec::new();
    let mut rest = vec![(from.to_owned(), to.to_owned())];
    while let Some((from, to)) = rest.pop() {
        let meta = fs::symlink_metadata(&from).map_err(at(&from))?;
        if !meta.is_dir() {
            leaf(&from, &to, &meta, link)?;
            continue;
        }
        OsDisk.create_dir(&to, 0o700).map_err(at(&to))?;
        for entry in fs::read_dir(&from).map_err(at(&from))? {
            let name = entry.map_err(at(&from))?.file_name();
            rest.push((from.join(&name), to.join(&name)));
        }
        done.push((to, meta));
    }
    for (path, meta) in done.into_iter().rev() {
        fs::set_permissions(&path, Permissions::from_mode(meta.mode() & 0o7777)).map_err(at(&path))?;
        OsDisk.set_mtime(&path, meta.mtime(), nanos(&meta)).map_err(at(&path))?;
    }
    Ok(())
}

fn leaf(from: &Path, to: &Path, meta: &fs::Metadata, link: bool) -> Result<(), Failed> {
    if meta.is_symlink() {
        let target = fs::read_link(from).map_err(at(from))?;
        OsDisk.symlink(target.as_os_str().as_bytes(), to).map_err(at(to))?;
        return OsDisk.set_mtime(to, meta.mtime(), nanos(meta)).map_err(at(to));
    }
    if !meta.is_file() {
        let error = io::Error::new(io::ErrorKind::InvalidInput, "only files, directories and symlinks can be sent");
        return Err((from.to_owned(), error));
    }
    if link {
        return fs::hard_link(from, to).map_err(at(from));
    }
    // Shares the blocks where the file system can.
    fs::copy(from, to).map_err(at(from))?;
    let times = || File::options().read(true).open(to)?.set_times(FileTimes::new().set_modified(meta.modified()?));
    times().map_err(at(to))
}

fn nanos(meta: &fs::Metadata) -> u32 {
    u32::try_from(meta.mtime_nsec()).unwrap_or_default()
}

fn at(path: &Path) -> impl Fn(io::Error) -> Failed + '_ {
    |error| (path.to_owned(), error)
}

trait CanonicalizeParent {
    fn canonicalize_parent(&self) -> Option<PathBuf>;
}

impl CanonicalizeParent for Path {
    fn canonicalize_parent(&self) -> Option<PathBuf> {
        self.parent()?.canonicalize().ok()
    }
}
