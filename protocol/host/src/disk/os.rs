//! The real disk: `std` and `rustix`.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{DirBuilderExt, FileExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{self, Advice, AtFlags, CWD, Mode, OFlags, RenameFlags, Timespec, Timestamps, UTIME_OMIT};
use rustix::io::Errno;

use super::{Disk, DiskFile, FileTime, Free, Kind, Meta, not_opened};

/// The disk of this machine.
#[derive(Debug, Clone, Copy, Default)]
pub struct OsDisk;

struct OsFile(File);

impl Disk for OsDisk {
    fn open_read(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        open_regular(path, OFlags::RDONLY)
    }

    fn create_new(&self, path: &Path, mode: u32) -> io::Result<Box<dyn DiskFile>> {
        let file = open(path, OFlags::RDWR | OFlags::CREATE | OFlags::EXCL, mode)?;
        exact_mode(&file, mode)?;
        Ok(Box::new(OsFile(file)))
    }

    fn open_rw(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        open_regular(path, OFlags::RDWR)
    }

    fn open_append_or_create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        open_regular(path, OFlags::RDWR | OFlags::APPEND | OFlags::CREATE)
    }

    fn lstat(&self, path: &Path) -> io::Result<Meta> {
        Ok(to_meta(&fs::lstat(path)?))
    }

    fn read_dir(&self, path: &Path) -> io::Result<Vec<OsString>> {
        // std's read_dir follows a symbolic link at `path`; an open directory does not.
        let directory = open(path, OFlags::RDONLY | OFlags::DIRECTORY, 0)?;
        let mut names = Vec::new();
        for entry in fs::Dir::new(directory)? {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if name != b"." && name != b".." {
                names.push(OsString::from_vec(name.to_vec()));
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    fn read_link(&self, path: &Path) -> io::Result<PathBuf> {
        std::fs::read_link(path)
    }

    fn create_dir(&self, path: &Path, mode: u32) -> io::Result<()> {
        std::fs::DirBuilder::new().mode(mode).create(path)?;
        // The umask took bits away. A setgid bit that the directory above handed down stays.
        let got = self.lstat(path)?.mode;
        if got & 0o777 == mode & 0o777 { Ok(()) } else { self.set_mode(path, mode | got & 0o2000) }
    }

    fn create_dir_all(&self, path: &Path, mode: u32) -> io::Result<()> {
        match self.create_dir(path, mode) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let parent = path.parent().ok_or(error)?;
                self.create_dir_all(parent, mode)?;
                match self.create_dir(path, mode) {
                    Err(error) if error.kind() == io::ErrorKind::AlreadyExists => is_directory(path, error),
                    other => other,
                }
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => is_directory(path, error),
            // A read-only file system says so even if the directory is there.
            Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => is_directory(path, error),
            other => other,
        }
    }

    fn symlink(&self, target: &[u8], path: &Path) -> io::Result<()> {
        std::os::unix::fs::symlink(std::ffi::OsStr::from_bytes(target), path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::rename(from, to)
    }

    fn rename_noreplace(&self, from: &Path, to: &Path) -> io::Result<()> {
        match fs::renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
            // Some file systems (NFS, older FUSE) cannot; look first then, which leaves a small race.
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => match fs::lstat(to) {
                Err(Errno::NOENT) => std::fs::rename(from, to),
                Ok(_) => Err(Errno::EXIST.into()),
                Err(error) => Err(error.into()),
            },
            other => Ok(other?),
        }
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_file(path)
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_dir(path)
    }

    fn remove_tree(&self, path: &Path) -> io::Result<()> {
        if self.lstat(path)?.kind != Kind::Directory {
            return self.remove_file(path);
        }
        match std::fs::remove_dir_all(path) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                self.allow_removal(path)?;
                std::fs::remove_dir_all(path)
            }
            other => other,
        }
    }

    fn set_mode(&self, path: &Path, mode: u32) -> io::Result<()> {
        match open(path, OFlags::RDONLY, 0) {
            Ok(file) => return fchmod(&file, mode),
            Err(error) => match Errno::from_io_error(&error) {
                // What its owner may not read, and what cannot be opened: through a handle that reads nothing.
                Some(Errno::ACCESS | Errno::NXIO) => {}
                Some(Errno::LOOP) => return Err(io::Error::new(io::ErrorKind::InvalidInput, "a symbolic link")),
                _ => return Err(error),
            },
        }
        let handle = open(path, OFlags::PATH, 0)?;
        if to_meta(&fs::fstat(&handle)?).kind == Kind::Symlink {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a symbolic link"));
        }
        let name = format!("/proc/self/fd/{}", handle.as_raw_fd());
        std::fs::set_permissions(name, PermissionsExt::from_mode(mode & 0o7777))
    }

    fn set_mtime(&self, path: &Path, secs: i64, nanos: u32) -> io::Result<()> {
        Ok(fs::utimensat(CWD, path, &only_mtime(secs, nanos), AtFlags::SYMLINK_NOFOLLOW)?)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        open(path, OFlags::RDONLY | OFlags::DIRECTORY, 0).map_err(not_opened)?.sync_all()
    }

    fn sync_fs(&self, path: &Path) -> io::Result<()> {
        Ok(fs::syncfs(open(path, OFlags::RDONLY, 0).map_err(not_opened)?)?)
    }

    fn free_space(&self, path: &Path) -> io::Result<Free> {
        let stat = fs::statvfs(path)?;
        let files = if stat.f_files == 0 { u64::MAX } else { stat.f_favail };
        Ok(Free { bytes: stat.f_bavail.saturating_mul(stat.f_frsize), files })
    }
}

impl OsDisk {
    fn allow_removal(&self, path: &Path) -> io::Result<()> {
        if self.lstat(path)?.mode & 0o700 != 0o700 {
            self.set_mode(path, 0o700)?;
        }
        for name in self.read_dir(path)? {
            let child = path.join(name);
            if self.lstat(&child)?.kind == Kind::Directory {
                self.allow_removal(&child)?;
            }
        }
        Ok(())
    }
}

impl DiskFile for OsFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        loop {
            match self.0.read_at(buf, offset) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => return other,
            }
        }
    }

    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.0.write_all_at(buf, offset)
    }

    fn append(&self, buf: &[u8]) -> io::Result<()> {
        // Opened for append, the kernel finds the end; otherwise the one owner of the file does.
        self.0.write_all_at(buf, self.len()?)
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn sync_all(&self) -> io::Result<()> {
        self.0.sync_all()
    }

    fn start_writeback(&self, offset: u64, len: u64) -> io::Result<()> {
        // rustix has no sync_file_range. Linux begins asynchronous writeback of the range on DONTNEED, then drops
        // those of its pages that are clean (mm/fadvise.c).
        Ok(fs::fadvise(&self.0, offset, std::num::NonZeroU64::new(len), Advice::DontNeed)?)
    }

    fn set_mode(&self, mode: u32) -> io::Result<()> {
        fchmod(&self.0, mode)
    }

    fn set_mtime(&self, secs: i64, nanos: u32) -> io::Result<()> {
        Ok(fs::futimens(&self.0, &only_mtime(secs, nanos))?)
    }

    fn meta(&self) -> io::Result<Meta> {
        Ok(to_meta(&fs::fstat(&self.0)?))
    }
}

fn open(path: &Path, flags: OFlags, mode: u32) -> io::Result<File> {
    let flags = flags | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
    loop {
        match fs::open(path, flags, Mode::from_raw_mode(mode & 0o7777)) {
            Err(Errno::INTR) => {}
            other => return Ok(File::from(other?)),
        }
    }
}

fn open_regular(path: &Path, flags: OFlags) -> io::Result<Box<dyn DiskFile>> {
    let other_kind = || io::Error::new(io::ErrorKind::InvalidInput, "not a regular file");
    let file = open(path, flags, 0o640).map_err(|error| match Errno::from_io_error(&error) {
        // A symbolic link, a directory opened for writing, a socket.
        Some(Errno::LOOP | Errno::ISDIR | Errno::NXIO) => other_kind(),
        _ => error,
    })?;
    if to_meta(&fs::fstat(&file)?).kind == Kind::File { Ok(Box::new(OsFile(file))) } else { Err(other_kind()) }
}

/// The umask took bits away when the file was created; this gives them back.
fn exact_mode(file: &File, mode: u32) -> io::Result<()> {
    if fs::fstat(file)?.st_mode & 0o7777 == mode & 0o7777 { Ok(()) } else { fchmod(file, mode) }
}

fn fchmod(file: &File, mode: u32) -> io::Result<()> {
    Ok(fs::fchmod(file, Mode::from_raw_mode(mode & 0o7777))?)
}

/// Makes of `error` a success if what is at `path` is a directory, also by way of a symbolic link.
fn is_directory(path: &Path, error: io::Error) -> io::Result<()> {
    if std::fs::metadata(path).is_ok_and(|meta| meta.is_dir()) { Ok(()) } else { Err(error) }
}

fn only_mtime(secs: i64, nanos: u32) -> Timestamps {
    Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        last_modification: Timespec { tv_sec: secs, tv_nsec: i64::from(nanos) },
    }
}

fn to_meta(stat: &fs::Stat) -> Meta {
    let kind = match fs::FileType::from_raw_mode(stat.st_mode) {
        fs::FileType::RegularFile => Kind::File,
        fs::FileType::Directory => Kind::Directory,
        fs::FileType::Symlink => Kind::Symlink,
        fs::FileType::Fifo => Kind::Fifo,
        fs::FileType::Socket => Kind::Socket,
        fs::FileType::CharacterDevice => Kind::CharDevice,
        fs::FileType::BlockDevice => Kind::BlockDevice,
        _ => Kind::Unknown,
    };
    let time = |secs, nanos| FileTime { secs, nanos: u32::try_from(nanos).unwrap_or(0) };
    Meta {
        kind,
        size: u64::try_from(stat.st_size).unwrap_or(0),
        mode: stat.st_mode & 0o7777,
        mtime: time(stat.st_mtime, stat.st_mtime_nsec as i64),
        ctime: time(stat.st_ctime, stat.st_ctime_nsec as i64),
        dev: stat.st_dev,
        ino: stat.st_ino,
        nlink: stat.st_nlink,
        uid: stat.st_uid,
    }
}
