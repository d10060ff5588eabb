//! The disk as the daemons see it: a trait, so that the simulator can fail it, fill it and cut its power.
//!
//! Every path is absolute. No operation follows a symbolic link in the last component of its path. All errors are
//! [`io::Error`]s as the kernel gives them (`ErrorKind::NotFound`, `StorageFull`, `CrossesDevices`, …), so that what a
//! caller decides by kind works the same over [`OsDisk`] and over the simulator's disk.
//!
//! What is durable: contents after [`DiskFile::sync_data`] (contents and length) or [`DiskFile::sync_all`] (times and
//! mode as well); names (created, renamed, removed) after [`Disk::sync_dir`] of the directory they are in;
//! everything at once after [`Disk::sync_fs`]. After a sync that failed, nothing is known of what was written since
//! the last one that did not: write it again to a new file, do not just sync again. If what was to be synced could not be opened,
//! nothing is lost: [`is_loss`] tells which.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

#[doc(hidden)]
pub mod fault;
mod os;

pub use os::OsDisk;

/// What was to be synced could not be opened: nothing was tried, and nothing is lost.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
struct NotOpened(io::Error);

/// Marks the error of whoever opens something to sync it.
#[must_use]
pub fn not_opened(error: io::Error) -> io::Error {
    io::Error::new(error.kind(), NotOpened(error))
}

/// Whether what was written may be lost after a sync failed with this error. False: what was to be synced could not be opened,
/// because it was removed meanwhile or too many files are open.
#[must_use]
pub fn is_loss(error: &io::Error) -> bool {
    !error.get_ref().is_some_and(|inner| inner.is::<NotOpened>())
}

/// A file system tree. Shared between threads; every call blocks until it is done.
pub trait Disk: Send + Sync {
    /// Opens a regular file for reading. Never blocks on a FIFO and never opens a device.
    ///
    /// Errors: `InvalidInput` for anything but a regular file.
    fn open_read(&self, path: &Path) -> io::Result<Box<dyn DiskFile>>;

    /// Creates a regular file for reading and writing with exactly these permission bits, whatever the umask.
    ///
    /// Errors: `AlreadyExists` for anything at `path`, also a dangling symbolic link.
    fn create_new(&self, path: &Path, mode: u32) -> io::Result<Box<dyn DiskFile>>;

    /// Opens a regular file for reading and writing. Errors: as [`Disk::open_read`].
    fn open_rw(&self, path: &Path) -> io::Result<Box<dyn DiskFile>>;

    /// Opens a regular file to append to, creating it with mode 0640 if it is missing. Every write goes to the end of the
    /// file, also those of [`DiskFile::write_all_at`].
    fn open_append_or_create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>>;

    /// What is at `path`; of a symbolic link, the link itself.
    fn lstat(&self, path: &Path) -> io::Result<Meta>;

    /// The names in a directory without `.` and `..`, sorted by their bytes.
    fn read_dir(&self, path: &Path) -> io::Result<Vec<OsString>>;

    /// The target of a symbolic link, as its exact bytes.
    fn read_link(&self, path: &Path) -> io::Result<PathBuf>;

    /// Creates a directory with exactly these permission bits (and setgid, where the directory above hands it down).
    /// Errors: `AlreadyExists`.
    fn create_dir(&self, path: &Path, mode: u32) -> io::Result<()>;

    /// Creates a directory and those above it that are missing, each with exactly these permission bits. A directory that
    /// exists is left as it is. Errors: `NotADirectory`, or `AlreadyExists` for anything else at `path`.
    fn create_dir_all(&self, path: &Path, mode: u32) -> io::Result<()>;

    /// Creates a symbolic link at `path` that holds exactly `target`. Errors: `AlreadyExists`.
    fn symlink(&self, target: &[u8], path: &Path) -> io::Result<()>;

    /// Renames, replacing a file (or an empty directory by a directory) at `to`. Errors: `CrossesDevices`.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Renames and replaces nothing. Errors: `AlreadyExists`; `CrossesDevices`.
    fn rename_noreplace(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes anything but a directory.
    fn remove_file(&self, path: &Path) -> io::Result<()>;

    /// Removes an empty directory. Errors: `DirectoryNotEmpty`.
    fn remove_dir(&self, path: &Path) -> io::Result<()>;

    /// Removes whatever is at `path` with all that is below it, also directories whose modes forbid it to their owner.
    /// Follows no symbolic link. Errors: `NotFound` if there is nothing.
    fn remove_tree(&self, path: &Path) -> io::Result<()>;

    /// Sets the permission bits (`mode & 0o7777`). Errors: `InvalidInput` for a symbolic link, which has none.
    fn set_mode(&self, path: &Path, mode: u32) -> io::Result<()>;

    /// Sets the modification time: seconds since 1970 (may be negative) and 0 to 999,999,999 nanoseconds. Of a symbolic
    /// link, its own. The access time is left alone.
    fn set_mtime(&self, path: &Path, secs: i64, nanos: u32) -> io::Result<()>;

    /// Makes the names in a directory durable.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;

    /// Makes everything durable that was written to the file system that `path` (a file or directory) is on.
    fn sync_fs(&self, path: &Path) -> io::Result<()>;

    /// What this process may still take of the file system that `path` is on.
    fn free_space(&self, path: &Path) -> io::Result<Free>;
}

/// What is free on a file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Free {
    /// Bytes.
    pub bytes: u64,
    /// Files and directories; `u64::MAX` where the file system makes room for them as they come.
    pub files: u64,
}

/// An open file. Offsets and lengths are in bytes; there is no cursor, so threads may share it.
pub trait DiskFile: Send + Sync {
    /// Reads up to `buf.len()` bytes at `offset` and returns how many; 0 only at the end of the file or for an empty `buf`.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize>;

    /// Writes all of `buf` at `offset`; a gap before it reads as zeros. On an error, any part may have been written.
    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()>;

    /// Writes all of `buf` at the end. On an error, any part may have been written.
    fn append(&self, buf: &[u8]) -> io::Result<()>;

    /// Length in bytes.
    fn len(&self) -> io::Result<u64>;

    /// Whether the length is 0.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Cuts or lengthens (with zeros) to `len` bytes.
    fn set_len(&self, len: u64) -> io::Result<()>;

    /// Makes contents and length durable. Waits for the device.
    fn sync_data(&self) -> io::Result<()>;

    /// Makes contents, length, mode and times durable. Waits for the device.
    fn sync_all(&self) -> io::Result<()>;

    /// Asks for a range to be written back soon, without waiting and without promising anything, so that a later sync has
    /// less to wait for. `len` 0 means to the end. Pages that are on the device already may leave the cache. Meant for some
    /// hundred KiB at a time: a call costs tens of microseconds.
    fn start_writeback(&self, offset: u64, len: u64) -> io::Result<()>;

    /// As [`Disk::set_mode`], of this file.
    fn set_mode(&self, mode: u32) -> io::Result<()>;

    /// As [`Disk::set_mtime`], of this file. A later write changes it again.
    fn set_mtime(&self, secs: i64, nanos: u32) -> io::Result<()>;

    /// As [`Disk::lstat`], of this file, whatever its name is now.
    fn meta(&self) -> io::Result<Meta>;
}

/// What kind of thing a name in a directory is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A named pipe.
    Fifo,
    /// A Unix socket.
    Socket,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
    /// Something that this program does not know.
    Unknown,
}

impl Kind {
    /// What to call it in an error, for example `a named pipe`.
    #[must_use]
    pub fn describe(self) -> &'static str {
        match self {
            Self::File => "a regular file",
            Self::Directory => "a directory",
            Self::Symlink => "a symbolic link",
            Self::Fifo => "a named pipe",
            Self::Socket => "a socket",
            Self::CharDevice => "a character device",
            Self::BlockDevice => "a block device",
            Self::Unknown => "neither a file, a directory nor a symbolic link",
        }
    }
}

/// A time of a file: seconds since 1970 (may be negative) and 0 to 999,999,999 nanoseconds after them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct FileTime {
    /// Seconds since 1970-01-01 00:00:00 UTC.
    pub secs: i64,
    /// Nanoseconds after them, below 1,000,000,000.
    pub nanos: u32,
}

/// What `stat(2)` says of a file, as far as the daemons look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Meta {
    /// What it is.
    pub kind: Kind,
    /// Length in bytes of a file, or of a symbolic link's target; of other kinds without meaning.
    pub size: u64,
    /// Permission bits with setuid, setgid and sticky: `st_mode & 0o7777`.
    pub mode: u32,
    /// When the contents were changed last, as far as anyone says.
    pub mtime: FileTime,
    /// When the inode was changed last. Nobody but the kernel sets it.
    pub ctime: FileTime,
    /// The file system.
    pub dev: u64,
    /// The inode in that file system.
    pub ino: u64,
    /// How many names it has.
    pub nlink: u64,
    /// Its owner.
    pub uid: u32,
}

/// Replaces the file at `path` by one with `bytes` and these permission bits, so that at any power cut either what was there
/// before or all of `bytes` is there: temporary file, fsync, rename, fsync of the directory.
///
/// The temporary file is beside it, hidden, named `.NAME.tmp`; one that a crash left is removed first, so only one writer
/// of a path may run at a time.
///
/// Errors: of any of these steps. If the last one (fsync of the directory) failed, the new contents are there, but a power
/// cut may bring the old ones back.
pub fn write_atomic(disk: &dyn Disk, path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let (parent, temporary) = temporary_for(path)?;
    let written = write_new(disk, &temporary, bytes, mode).and_then(|()| disk.rename(&temporary, path));
    if let Err(error) = written {
        // The first error is the one to tell; what is left behind is removed by the next write.
        drop(disk.remove_file(&temporary));
        return Err(error);
    }
    disk.sync_dir(&parent)
}

/// Reads a whole regular file. Errors: those of [`Disk::open_read`]; `FileTooLarge` if it is longer than `limit` bytes.
pub fn read_all(disk: &dyn Disk, path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    read_to_end(disk.open_read(path)?.as_ref(), limit)
}

/// Reads a whole open file from its beginning. Errors: `FileTooLarge` if it is longer than `limit` bytes.
pub fn read_to_end(file: &dyn DiskFile, limit: u64) -> io::Result<Vec<u8>> {
    let too_large = || io::Error::from(io::ErrorKind::FileTooLarge);
    let len = file.len()?;
    if len > limit {
        return Err(too_large());
    }
    let mut bytes = vec![0; usize::try_from(len).map_err(|_| too_large())?];
    let mut filled = 0;
    while filled < bytes.len() {
        match file.read_at(&mut bytes[filled..], filled as u64)? {
            0 => bytes.truncate(filled), // it was cut since
            n => filled += n,
        }
    }
    Ok(bytes)
}

fn write_new(disk: &dyn Disk, path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let file = match disk.create_new(path, mode) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            disk.remove_file(path)?;
            disk.create_new(path, mode)?
        }
        other => other?,
    };
    file.write_all_at(bytes, 0)?;
    file.sync_all()
}

fn temporary_for(path: &Path) -> io::Result<(PathBuf, PathBuf)> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let mut temporary = OsString::from(".");
    // A name near NAME_MAX has no room for more.
    if name.len() + 5 <= 255 {
        temporary.push(name);
    } else {
        temporary.push(format!("{:08x}", crc32fast::hash(name.as_encoded_bytes())));
    }
    temporary.push(".tmp");
    Ok((parent.to_owned(), parent.join(temporary)))
}

#[cfg(test)]
mod tests;
