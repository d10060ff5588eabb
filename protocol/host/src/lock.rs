//! Lock files: one daemon a state directory, also when someone starts a second by hand.

use std::fs::{File, TryLockError};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

/// A lock that this process holds until it is dropped or the process ends, however it ends.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

/// Why a lock was not taken.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another process holds it.
    #[error("{path}: another daemon is running{}", .holder.map_or_else(String::new, |pid| format!(" (process {pid})")))]
    Held {
        /// The lock file.
        path: PathBuf,
        /// The process that holds it, as it wrote there itself.
        holder: Option<u32>,
    },
    /// The file cannot be created or locked.
    #[error("{path}: {error}")]
    Io {
        /// The lock file.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
}

impl Lock {
    /// Takes the lock at `path` without waiting. The file (mode 0600) is created if it is missing, holds the number of this
    /// process, and stays.
    pub fn acquire(path: &Path) -> Result<Self, LockError> {
        let io = |error| LockError::Io { path: path.to_owned(), error };
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let mut file = File::from(rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR).map_err(|e| io(e.into()))?);
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut text = String::new();
                drop(file.take(32).read_to_string(&mut text));
                return Err(LockError::Held { path: path.to_owned(), holder: text.trim().parse().ok() });
            }
            Err(TryLockError::Error(error)) => return Err(io(error)),
        }
        // The number is only for people; a full disk does not keep the daemon from starting.
        drop(file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id())));
        Ok(Self { _file: file })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_one_holds_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let lock = Lock::acquire(&path).unwrap();
        let told = Lock::acquire(&path).unwrap_err().to_string();
        assert!(told.ends_with(&format!("another daemon is running (process {})", std::process::id())), "{told}");
        drop(lock);
        drop(Lock::acquire(&path).unwrap());
        Lock::acquire(&path).unwrap();
        assert!(matches!(Lock::acquire(&dir.path().join("no/lock")), Err(LockError::Io { .. })));
        std::os::unix::fs::symlink(&path, dir.path().join("link")).unwrap();
        assert!(matches!(Lock::acquire(&dir.path().join("link")), Err(LockError::Io { .. })));
    }
}
