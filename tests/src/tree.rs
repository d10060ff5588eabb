//! Trees to drop: many small files with every oddity that a bundle may hold, and large files.

use std::ffi::OsString;
use std::fs::{File, Permissions};
use std::io::Write;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, utimensat};

use crate::rng::Rng;

/// Makes at `root` a tree of `files` small files in directories of 100, and beside them one of each oddity: modes 0644,
/// 0755, 0600, 0444; names with blanks, quotes, newlines, non-ASCII, bytes that are no UTF-8, leading dashes and dots,
/// 255 bytes; empty files, an empty directory, directories of mode 0700 and 0750; symlinks to a file, a directory, up
/// and down again, to nothing; modification times before 1970, with nanoseconds, and after 2038.
///
/// # Panics
/// When the file system refuses.
pub fn odd(root: &Path, files: usize, seed: u64) {
    let mut rng = Rng::new(seed);
    std::fs::create_dir_all(root).expect("the root can be made");
    let mut directories = vec![root.to_owned()];
    for number in 0..files {
        let directory = root.join(format!("d{}", number / 100));
        if number % 100 == 0 {
            std::fs::create_dir(&directory).expect("a directory can be made");
            directories.push(directory.clone());
        }
        let size = match rng.below(20) {
            0 => 0,
            1 => rng.below(64 << 10),
            _ => rng.below(4 << 10),
        };
        let mode = [0o644, 0o644, 0o755, 0o600, 0o444][number % 5];
        let path = directory.join(odd_name(number, &mut rng));
        file(&path, &rng.bytes(usize::try_from(size).expect("small")), mode);
        touch(&path, odd_time(number, &mut rng));
    }
    std::fs::create_dir(root.join("empty")).expect("a directory can be made");
    std::fs::create_dir_all(root.join("a/b/c")).expect("directories can be made");
    file(&root.join("a/b/c/deep"), b"deep", 0o640);
    directories.extend([root.join("empty"), root.join("a"), root.join("a/b"), root.join("a/b/c")]);
    for (target, name) in [
        ("a/b/c/deep", "link to a file"),
        ("a/b", "link to a directory"),
        ("nothing here", "link to nothing"),
        ("../../d0", "a/b/up and down"),
        ("./a/./b", "link with dots"),
    ] {
        symlink(target, root.join(name)).expect("a symlink can be made");
        touch(&root.join(name), (1_234_567_890, 987_654_321));
    }
    // Times and modes of directories last: making entries changes the times.
    for (number, directory) in directories.iter().enumerate().rev() {
        let mode = [0o755, 0o700, 0o750][number % 3];
        std::fs::set_permissions(directory, Permissions::from_mode(mode)).expect("a mode can be set");
        touch(directory, odd_time(number, &mut rng));
    }
}

/// Makes a file of `size` random bytes, quickly; returns its path.
///
/// # Panics
/// When the file system refuses.
pub fn large(path: &Path, size: u64, seed: u64) -> PathBuf {
    let mut rng = Rng::new(seed);
    let mut out = File::create(path).expect("a file can be made");
    let mut buf = vec![0; 1 << 20];
    let mut left = size;
    while left > 0 {
        rng.fill(&mut buf);
        let part = left.min(1 << 20);
        out.write_all(&buf[..usize::try_from(part).expect("at most 1 MiB")]).expect("there is space");
        left -= part;
    }
    path.to_owned()
}

/// Makes a file with exactly these bytes and this mode.
///
/// # Panics
/// When the file system refuses.
pub fn file(path: &Path, bytes: &[u8], mode: u32) {
    std::fs::write(path, bytes).unwrap_or_else(|error| panic!("{path:?}: {error}"));
    std::fs::set_permissions(path, Permissions::from_mode(mode)).expect("a mode can be set");
}

/// Sets the modification time of `path` itself, also when it is a symlink.
///
/// # Panics
/// When the file system refuses.
pub fn touch(path: &Path, (secs, nanos): (i64, i64)) {
    let time = Timespec { tv_sec: secs, tv_nsec: nanos };
    let times = Timestamps { last_access: time, last_modification: time };
    utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap_or_else(|error| panic!("{path:?}: {error}"));
}

fn odd_name(number: usize, rng: &mut Rng) -> OsString {
    let mut name = format!("{number}").into_bytes();
    match number % 16 {
        0 => name.extend(b" with blanks "),
        1 => name.extend(b"'single' \"double\" `back`"),
        2 => name.extend(b"\nnew\r\nline\ttab"),
        3 => name.extend("-grüße-漢字-🦀".bytes()),
        4 => name.extend([0xff, 0xfe, 0x80]),
        5 => name.splice(0..0, *b"--").for_each(drop),
        6 => name.splice(0..0, *b".").for_each(drop),
        7 => name.resize(255, b'x'),
        8 => name.extend(b"\\*?[a-z]{b,c}$HOME;&|<>"),
        9 => name.extend([0x1b, b'[', b'3', b'1', b'm', 0x07, 0x7f]),
        10 => name.extend(b".part"),
        _ => name.extend(format!("-{:x}.dat", rng.below(1 << 30)).bytes()),
    }
    OsString::from_vec(name)
}

fn odd_time(number: usize, rng: &mut Rng) -> (i64, i64) {
    let nanos = i64::try_from(rng.below(1_000_000_000)).expect("below a second");
    match number % 50 {
        0 => (0, 0),
        1 => (-86_400, nanos),
        2 => (4_102_444_800, nanos),
        _ => (1_500_000_000 + i64::try_from(rng.below(200_000_000)).expect("small"), nanos),
    }
}
