//! A disk that fails at the operation it is told to, or lets something else happen there, for tests that go through every
//! step of something.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Disk, DiskFile, Free, Meta};

/// Wraps a disk, counts the operations on it and on the files opened through it (from 0), and fails the one it is told to.
///
/// A write that fails writes the first half of its bytes. Everything else that fails does nothing.
pub struct FailNth {
    inner: Arc<dyn Disk>,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    done: Vec<&'static str>,
    fail: Option<Fail>,
    interrupt: Option<(usize, Box<dyn FnOnce() + Send>)>,
}

#[derive(Clone, Copy)]
struct Fail {
    nth: usize,
    errno: i32,
    all_after: bool,
}

struct FaultFile {
    inner: Box<dyn DiskFile>,
    state: Arc<Mutex<State>>,
}

impl FailNth {
    /// A disk over `inner` that fails nothing yet.
    #[must_use]
    pub fn new(inner: Arc<dyn Disk>) -> Self {
        Self { inner, state: Arc::default() }
    }

    /// Lets operation `nth` (counted from 0 since now) fail with `errno`, and only that one.
    pub fn fail_once(&self, nth: usize, errno: i32) {
        self.arm(Some(Fail { nth, errno, all_after: false }));
    }

    /// Lets operation `nth` (counted from 0 since now) and all that follow it fail with `errno`, as if the disk had gone or
    /// the process had been killed there.
    pub fn fail_from(&self, nth: usize, errno: i32) {
        self.arm(Some(Fail { nth, errno, all_after: true }));
    }

    /// Calls `what` before operation `nth` (counted from 0 since now), in the thread that does this operation.
    pub fn interrupt(&self, nth: usize, what: impl FnOnce() + Send + 'static) {
        *lock(&self.state) = State { interrupt: Some((nth, Box::new(what))), ..State::default() };
    }

    /// Fails nothing from now on, and counts from 0 again.
    pub fn heal(&self) {
        self.arm(None);
    }

    /// The operations since the count began, failed ones with them, each by the name of its method.
    #[must_use]
    pub fn operations(&self) -> Vec<&'static str> {
        lock(&self.state).done.clone()
    }

    fn arm(&self, fail: Option<Fail>) {
        *lock(&self.state) = State { fail, ..State::default() };
    }

    fn step(&self, what: &'static str) -> io::Result<()> {
        step(&self.state, what)
    }

    fn file(&self, inner: Box<dyn DiskFile>) -> Box<dyn DiskFile> {
        Box::new(FaultFile { inner, state: Arc::clone(&self.state) })
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

fn step(state: &Mutex<State>, what: &'static str) -> io::Result<()> {
    let mut state = lock(state);
    let n = state.done.len();
    state.done.push(what);
    let fail = state.fail;
    let due = state.interrupt.take_if(|(nth, _)| *nth == n);
    drop(state);
    if let Some((_, interrupt)) = due {
        interrupt();
    }
    match fail {
        Some(fail) if n == fail.nth || (fail.all_after && n > fail.nth) => {
            Err(io::Error::from_raw_os_error(fail.errno))
        }
        _ => Ok(()),
    }
}

impl Disk for FailNth {
    fn open_read(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        self.step("open_read")?;
        Ok(self.file(self.inner.open_read(path)?))
    }
    fn create_new(&self, path: &Path, mode: u32) -> io::Result<Box<dyn DiskFile>> {
        self.step("create_new")?;
        Ok(self.file(self.inner.create_new(path, mode)?))
    }
    fn open_rw(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        self.step("open_rw")?;
        Ok(self.file(self.inner.open_rw(path)?))
    }
    fn open_append_or_create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        self.step("open_append_or_create")?;
        Ok(self.file(self.inner.open_append_or_create(path)?))
    }
    fn lstat(&self, path: &Path) -> io::Result<Meta> {
        self.step("lstat")?;
        self.inner.lstat(path)
    }
    fn read_dir(&self, path: &Path) -> io::Result<Vec<OsString>> {
        self.step("read_dir")?;
        self.inner.read_dir(path)
    }
    fn read_link(&self, path: &Path) -> io::Result<PathBuf> {
        self.step("read_link")?;
        self.inner.read_link(path)
    }
    fn create_dir(&self, path: &Path, mode: u32) -> io::Result<()> {
        self.step("create_dir")?;
        self.inner.create_dir(path, mode)
    }
    fn create_dir_all(&self, path: &Path, mode: u32) -> io::Result<()> {
        self.step("create_dir_all")?;
        self.inner.create_dir_all(path, mode)
    }
    fn symlink(&self, target: &[u8], path: &Path) -> io::Result<()> {
        self.step("symlink")?;
        self.inner.symlink(target, path)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.step("rename")?;
        self.inner.rename(from, to)
    }
    fn rename_noreplace(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.step("rename_noreplace")?;
        self.inner.rename_noreplace(from, to)
    }
    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.step("remove_file")?;
        self.inner.remove_file(path)
    }
    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        self.step("remove_dir")?;
        self.inner.remove_dir(path)
    }
    fn remove_tree(&self, path: &Path) -> io::Result<()> {
        self.step("remove_tree")?;
        self.inner.remove_tree(path)
    }
    fn set_mode(&self, path: &Path, mode: u32) -> io::Result<()> {
        self.step("set_mode")?;
        self.inner.set_mode(path, mode)
    }
    fn set_mtime(&self, path: &Path, secs: i64, nanos: u32) -> io::Result<()> {
        self.step("set_mtime")?;
        self.inner.set_mtime(path, secs, nanos)
    }
    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.step("sync_dir")?;
        self.inner.sync_dir(path)
    }
    fn sync_fs(&self, path: &Path) -> io::Result<()> {
        self.step("sync_fs")?;
        self.inner.sync_fs(path)
    }
    fn free_space(&self, path: &Path) -> io::Result<Free> {
        self.step("free_space")?;
        self.inner.free_space(path)
    }
}

impl FaultFile {
    fn step(&self, what: &'static str) -> io::Result<()> {
        step(&self.state, what)
    }
}

impl DiskFile for FaultFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.step("read_at")?;
        self.inner.read_at(buf, offset)
    }
    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        if let Err(error) = self.step("write_all_at") {
            self.inner.write_all_at(&buf[..buf.len() / 2], offset)?;
            return Err(error);
        }
        self.inner.write_all_at(buf, offset)
    }
    fn append(&self, buf: &[u8]) -> io::Result<()> {
        if let Err(error) = self.step("append") {
            self.inner.append(&buf[..buf.len() / 2])?;
            return Err(error);
        }
        self.inner.append(buf)
    }
    fn len(&self) -> io::Result<u64> {
        self.step("len")?;
        self.inner.len()
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.step("set_len")?;
        self.inner.set_len(len)
    }
    fn sync_data(&self) -> io::Result<()> {
        self.step("sync_data")?;
        self.inner.sync_data()
    }
    fn sync_all(&self) -> io::Result<()> {
        self.step("sync_all")?;
        self.inner.sync_all()
    }
    fn start_writeback(&self, offset: u64, len: u64) -> io::Result<()> {
        self.step("start_writeback")?;
        self.inner.start_writeback(offset, len)
    }
    fn set_mode(&self, mode: u32) -> io::Result<()> {
        self.step("set_mode")?;
        self.inner.set_mode(mode)
    }
    fn set_mtime(&self, secs: i64, nanos: u32) -> io::Result<()> {
        self.step("set_mtime")?;
        self.inner.set_mtime(secs, nanos)
    }
    fn meta(&self) -> io::Result<Meta> {
        self.step("meta")?;
        self.inner.meta()
    }
}
