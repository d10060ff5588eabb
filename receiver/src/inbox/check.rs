//! Whether a tree on the disk is exactly what a manifest says.

use std::ffi::{OsStr, OsString};
use std::io;
use std::iter::Peekable;
use std::ops::ControlFlow;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::vec::IntoIter;

use checkvalve_host::disk::{Disk, Kind};
use checkvalve_host::log::escape_path;
use checkvalve_protocol::manifest::{Announce, EntryKind, EntryRef};

/// What differs where a file is in the place of a directory, or the like.
const KIND: &str = "kind";
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
    /// Its modification time is what a file system makes of the signed one that cannot hold that exactly.
    #[error("{}: its modification time is as near to the signed one as this file system can hold", escape_path(.0))]
    Time(PathBuf),
    /// It cannot be read.
    #[error("{}: {error}", escape_path(.path))]
    Disk {
        /// The path.
        path: PathBuf,
        /// What the disk said.
        error: io::Error,
    },
}

impl Mismatch {
    /// Where.
    #[must_use]
    pub fn path(&self) -> &Path {
        match self {
            Self::Missing(path) | Self::Extra(path) | Self::Time(path) => path,
            Self::Differs { path, .. } | Self::Disk { path, .. } => path,
        }
    }

    /// What, in a word or two.
    #[must_use]
    pub fn what(&self) -> String {
        match self {
            Self::Missing(_) => "missing".to_owned(),
            Self::Extra(_) => "extra".to_owned(),
            Self::Differs { what, .. } => (*what).to_owned(),
            Self::Time(_) => "modification time as far as the file system can hold it".to_owned(),
            Self::Disk { error, .. } => error.to_string(),
        }
    }
}

/// Compares the tree in `dir`, which holds the bundle's own name and nothing else, with the announce and the hashes of
/// its files in order. Reads every byte. Errors: the first difference, but for [`Mismatch::Time`], which is none.
pub fn check(disk: &dyn Disk, dir: &Path, announce: &Announce, digests: &[[u8; 32]]) -> Result<(), Mismatch> {
    let mut first = Ok(());
    differences(disk, dir, announce, digests, &mut |found| {
        if matches!(found, Mismatch::Time(_)) {
            return ControlFlow::Continue(());
        }
        first = Err(found);
        ControlFlow::Break(())
    });
    first
}

/// The same, with every difference, as long as `found` goes on. What is in a directory that is not there is not named.
pub fn differences(
    disk: &dyn Disk,
    dir: &Path,
    announce: &Announce,
    digests: &[[u8; 32]],
    found: &mut dyn FnMut(Mismatch) -> ControlFlow<()>,
) {
    // Broken off: nobody wants to know more.
    let _ = walk(disk, dir, announce, digests, found);
}

fn walk(
    disk: &dyn Disk,
    dir: &Path,
    announce: &Announce,
    digests: &[[u8; 32]],
    found: &mut dyn FnMut(Mismatch) -> ControlFlow<()>,
) -> ControlFlow<()> {
    let mut digests = digests.iter();
    let mut open = match OpenFile::new(disk, dir.to_owned()) {
        Ok(root) => vec![root],
        Err(mismatch) => return found(mismatch),
    };
    let mut gone: Option<PathBuf> = None;
    for entry in &announce.entries {
        let path = dir.join(entry.path.as_path());
        let digest = matches!(entry.kind, EntryKind::File { .. }).then(|| digests.next()).flatten();
        if gone.as_ref().is_some_and(|gone| path.starts_with(gone)) {
            continue;
        }
        let parent = path.parent().unwrap_or(dir);
        // Entries come as a tree is walked: a directory is done with when something outside of it comes.
        while let Some(mut done) = open.pop_if(|open| open.path != parent) {
            done.extra(None).into_iter().try_for_each(&mut *found)?;
        }
        if let Some(inside) = open.last_mut() {
            inside.extra(Some(OsStr::from_bytes(entry.path.file_name()))).into_iter().try_for_each(&mut *found)?;
        }
        // Where it is another thing than a directory, or none, that is said once.
        let mut is_there = true;
        for mismatch in compare(disk, &path, entry, digest) {
            is_there &= !matches!(
                mismatch,
                Mismatch::Missing(_) | Mismatch::Disk { .. } | Mismatch::Differs { what: KIND, .. }
            );
            found(mismatch)?;
        }
        if let EntryKind::Directory { .. } = entry.kind {
            match OpenFile::new(disk, path.clone()) {
                Ok(inside) => open.push(inside),
                Err(unreadable) => {
                    if is_there {
                        found(unreadable)?;
                    }
                    gone = Some(path);
                }
            }
        }
    }
    while let Some(mut done) = open.pop() {
        done.extra(None).into_iter().try_for_each(&mut *found)?;
    }
    ControlFlow::Continue(())
}

/// A directory that is gone through: what is in it that no entry has named yet. Names come in the order of their bytes, as
/// those of entries do.
struct OpenFile {
    path: PathBuf,
    names: Peekable<IntoIter<OsString>>,
}

impl OpenFile {
    fn new(disk: &dyn Disk, path: PathBuf) -> Result<Self, Mismatch> {
        let names = disk.read_dir(&path).map_err(|error| missing(&path, error))?;
        Ok(Self { path, names: names.into_iter().peekable() })
    }

    /// What comes before the next entry, which is called so; with None all that is left.
    fn extra(&mut self, next: Option<&OsStr>) -> Vec<Mismatch> {
        let before = |name: &OsString| next.is_none_or(|next| name.as_bytes() < next.as_bytes());
        let names: Vec<OsString> = std::iter::from_fn(|| self.names.next_if(before)).collect();
        // Skip the entry itself; `compare` finds out whether it is there.
        self.names.next_if(|name| next.is_some_and(|next| name == next));
        names.into_iter().map(|name| Mismatch::Extra(self.path.join(name))).collect()
    }
}

/// How one entry differs, and the hash of its contents if it is a file.
fn compare(disk: &dyn Disk, path: &Path, entry: EntryRef<'_>, digest: Option<&[u8; 32]>) -> Vec<Mismatch> {
    let differs = |what| Mismatch::Differs { path: path.to_owned(), what };
    let meta = match disk.lstat(path) {
        Ok(meta) => meta,
        Err(error) => return vec![missing(path, error)],
    };
    let mut all = Vec::new();
    match (entry.kind, meta.kind) {
        (EntryKind::File { size, mode }, Kind::File) => {
            all.extend((meta.mode != u32::from(mode)).then(|| differs("mode")));
            all.extend((meta.size != size).then(|| differs("size")));
        }
        (EntryKind::Directory { mode }, Kind::Directory) => {
            all.extend((meta.mode & 0o777 != u32::from(mode)).then(|| differs("mode")));
        }
        (EntryKind::Symlink { target }, Kind::Symlink) => match disk.read_link(path) {
            Err(error) => all.push(missing(path, error)),
            Ok(found) => all.extend((found.as_os_str().as_bytes() != target.as_bytes()).then(|| differs("target"))),
        },
        _ => return vec![differs(KIND)],
    }
    if matches!(entry.kind, EntryKind::File { size, .. } if size == meta.size) {
        match hash(disk, path) {
            Err(error) => all.push(missing(path, error)),
            Ok(found) => all.extend((digest != Some(&found)).then(|| differs("content"))),
        }
    }
    let (signed, found) = ((entry.mtime.secs, entry.mtime.nanos), (meta.mtime.secs, meta.mtime.nanos));
    // What was written to has another time, too.
    let is_written = |one: &Mismatch| matches!(one, Mismatch::Differs { what: "size" | "content" | "target", .. });
    if signed != found && !all.iter().any(is_written) {
        let near = is_as_near_as_can_be(signed, found);
        all.push(if near { Mismatch::Time(path.to_owned()) } else { differs("modification time") });
    }
    all
}

/// Whether a file system may have made `found` of a signed time that it cannot hold: it has steps of up to two seconds, or its range
/// ends before, no earlier than in 2038 or no later than in 1901. In seconds and nanoseconds since 1970.
fn is_as_near_as_can_be(signed: (i64, u32), found: (i64, u32)) -> bool {
    let is_step = found < signed && signed.0.abs_diff(found.0) < 2;
    let is_end = found.0 >= i32::MAX.into() && signed.0 > found.0 || found.0 <= i32::MIN.into() && signed.0 < found.0;
    is_step || is_end
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_may_be_coarser_or_at_the_end_of_what_a_file_system_holds() {
        let early = i64::from(i32::MIN);
        let late = 15_032_385_535; // the last second of ext4
        for (signed, found) in [
            ((100, 999_999_999), (100, 0)),
            ((100, 999_999_999), (100, 999_999_900)),
            ((101, 1), (100, 0)),
            ((-11_644_473_600, 5), (early, 0)),
            ((i64::MAX, 0), (late, 0)),
            ((i64::MAX, 0), (i32::MAX.into(), 0)),
        ] {
            assert!(is_as_near_as_can_be(signed, found), "{signed:?} {found:?}");
        }
        for (signed, found) in [((100, 0), (100, 1)), ((100, 0), (98, 0)), ((0, 0), (early, 0)), ((late, 0), (0, 0))] {
            assert!(!is_as_near_as_can_be(signed, found), "{signed:?} {found:?}");
        }
    }
}
