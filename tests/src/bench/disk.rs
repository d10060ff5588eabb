//! What is known of a directory's disk.

use std::path::Path;

use rustix::fs::statvfs;

const MAGIC: [(u64, &str); 5] = [
    (0x0102_1994, "tmpfs"),
    (0xef53, "ext4"),
    (0x5846_5342, "xfs"),
    (0x9123_683e, "btrfs"),
    (0x794c_7630, "overlayfs"),
];

/// Its file system, and a warning where that is no disk.
pub fn describe(path: &Path) -> String {
    let magic = rustix::fs::statfs(path).map_or(0, |found| found.f_type.cast_unsigned());
    let name = MAGIC.iter().find(|(of, _)| *of == magic).map_or("another file system", |(_, name)| *name);
    let warning = if name == "tmpfs" { ", which is no disk: set TMPDIR" } else { "" };
    format!("{} ({name}{warning})", path.display())
}

/// Bytes that are free there.
pub fn free(path: &Path) -> u64 {
    statvfs(path).map_or(0, |found| found.f_bavail * found.f_frsize)
}
