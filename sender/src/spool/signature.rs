//! What something in the spool looks like, so that two looks tell whether it changed in between.

use std::io;
use std::path::Path;

use checkvalve_host::disk::{Disk, FileTime, Kind};

/// A file's or a whole tree's appearance. Two that are equal mean that nothing in it was written, added, removed or
/// renamed between them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signature {
    /// What it is.
    pub kind: Kind,
    /// How many names its inode has.
    pub links: u64,
    ino: u64,
    entries: u64,
    bytes: u64,
    newest: FileTime,
    unreadable: u64,
}

impl Signature {
    /// Looks at `path` and all below it. What cannot be looked at inside is counted; whoever plans the bundle will say so.
    /// Errors: those of `lstat` of `path` itself.
    pub fn of(disk: &dyn Disk, path: &Path) -> io::Result<Self> {
        let top = disk.lstat(path)?;
        let mut looks = Self {
            kind: top.kind,
            links: top.nlink,
            ino: top.ino,
            entries: 0,
            bytes: 0,
            newest: FileTime { secs: i64::MIN, nanos: 0 },
            unreadable: 0,
        };
        let mut rest = vec![path.to_owned()];
        while let Some(path) = rest.pop() {
            let Ok(meta) = disk.lstat(&path) else {
                looks.unreadable += 1;
                continue;
            };
            looks.entries += 1;
            looks.newest = looks.newest.max(meta.mtime).max(meta.ctime);
            if meta.kind != Kind::Directory {
                looks.bytes = looks.bytes.saturating_add(meta.size);
                continue;
            }
            match disk.read_dir(&path) {
                Ok(names) => rest.extend(names.into_iter().map(|name| path.join(name))),
                Err(_) => looks.unreadable += 1,
            }
        }
        Ok(looks)
    }
}
