//! Exact snapshots of trees, taken of a bundle before it is dropped and compared with what arrives.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Everything about one directory entry that must survive the transfer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// What it is and what it holds.
    pub content: Content,
    /// Permission bits, with setuid, setgid and sticky; 0 for a symlink.
    pub mode: u32,
    /// Modification time: seconds since 1970 and nanoseconds.
    pub mtime: (i64, i64),
}

/// What an entry holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// A regular file.
    File {
        /// Length in bytes.
        size: u64,
        /// BLAKE3 of its bytes.
        hash: blake3::Hash,
    },
    /// A directory; its entries are nodes of their own.
    Directory,
    /// A symlink and the exact bytes it holds.
    Symlink(PathBuf),
    /// Anything else (fifo, socket, device).
    Special,
}

/// Every entry below and including one path, by path relative to it (the path itself is "").
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Snapshot(pub BTreeMap<PathBuf, Node>);

impl Snapshot {
    /// Takes the picture. Never follows a symlink.
    ///
    /// # Panics
    /// When something cannot be read.
    pub fn of(root: &Path) -> Self {
        let mut nodes = BTreeMap::new();
        visit(root, PathBuf::new(), &mut nodes);
        Self(nodes)
    }

    /// Number of entries, the root included.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is not even a root.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Sum of the regular files' sizes, in bytes.
    pub fn bytes(&self) -> u64 {
        self.0.values().map(|node| if let Content::File { size, .. } = node.content { size } else { 0 }).sum()
    }

    /// The first ten differences, a line each; empty when both are the same in every respect.
    pub fn differences(&self, other: &Self) -> String {
        let mut text = String::new();
        let paths = self.0.keys().chain(other.0.keys().filter(|path| !self.0.contains_key(*path)));
        let differing = paths.filter(|path| self.0.get(*path) != other.0.get(*path));
        for path in differing.take(10) {
            let _ = writeln!(text, "{path:?}: {:?} became {:?}", self.0.get(path), other.0.get(path));
        }
        text
    }
}

fn visit(path: &Path, relative: PathBuf, nodes: &mut BTreeMap<PathBuf, Node>) {
    let meta = match path.symlink_metadata() {
        // Gone since its directory was read: a daemon's temporary file.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && !relative.as_os_str().is_empty() => return,
        meta => meta.unwrap_or_else(|error| panic!("{path:?}: {error}")),
    };
    let kind = meta.file_type();
    let content = if kind.is_dir() {
        let entries = path.read_dir().unwrap_or_else(|error| panic!("{path:?}: {error}"));
        for entry in entries {
            let name = entry.unwrap_or_else(|error| panic!("{path:?}: {error}")).file_name();
            let below =
                if relative.as_os_str().as_bytes().is_empty() { name.clone().into() } else { relative.join(&name) };
            visit(&path.join(&name), below, nodes);
        }
        Content::Directory
    } else if kind.is_symlink() {
        Content::Symlink(path.read_link().unwrap_or_else(|error| panic!("{path:?}: {error}")))
    } else if kind.is_file() {
        let mut hasher = blake3::Hasher::new();
        let mut file = std::fs::File::open(path).unwrap_or_else(|error| panic!("{path:?}: {error}"));
        let size = std::io::copy(&mut file, &mut hasher).unwrap_or_else(|error| panic!("{path:?}: {error}"));
        Content::File { size, hash: hasher.finalize() }
    } else {
        Content::Special
    };
    let mode = if kind.is_symlink() { 0 } else { meta.mode() & 0o7777 };
    nodes.insert(relative, Node { content, mode, mtime: (meta.mtime(), meta.mtime_nsec()) });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree;

    #[test]
    fn sees_each_kind_of_difference() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("tree");
        tree::odd(&root, 50, 7);
        let before = Snapshot::of(&root);
        assert_eq!(before.differences(&Snapshot::of(&root)), "");

        let file =
            root.join("d0").read_dir().unwrap().flatten().find(|e| e.file_type().unwrap().is_file()).unwrap().path();
        let mtime = std::fs::metadata(&file).unwrap().modified().unwrap();
        let mut bytes = std::fs::read(&file).unwrap();
        bytes.push(1);
        std::fs::write(&file, &bytes).unwrap();
        std::fs::File::options().write(true).open(&file).unwrap().set_modified(mtime).unwrap();
        assert_eq!(before.differences(&Snapshot::of(&root)).lines().count(), 1, "content");
        bytes.pop();
        std::fs::write(&file, &bytes).unwrap();
        assert_eq!(before.differences(&Snapshot::of(&root)).lines().count(), 1, "modification time");
        std::fs::File::options().write(true).open(&file).unwrap().set_modified(mtime).unwrap();
        assert_eq!(before, Snapshot::of(&root));
        std::fs::remove_file(root.join("link to a file")).unwrap();
        std::os::unix::fs::symlink("d1", root.join("link to a file")).unwrap();
        assert!(before.differences(&Snapshot::of(&root)).contains("link to a file"));
    }
}
