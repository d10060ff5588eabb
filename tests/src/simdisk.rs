//! A simulated disk in memory. It is deterministic for a seed, and fails, fills up, turns read-only and loses power at the
//! operations it is told to.
//!
//! A power cut loses everything that POSIX lets it lose, so that a missing sync shows:
//! - file contents: each write since the last sync is kept, lost or torn by sectors, independently of the others; the length
//!   may be kept without the bytes, which then read as zeros;
//! - modes and times that were not synced: the old or the new ones remain;
//! - names: the file system has a journal, so unsynced changes are cut off at one point in time, and a rename is kept or lost as
//!   a whole; whatever [`Disk::sync_dir`] made durable stays, but a directory whose own name is lost takes its contents with it;
//! - writes before a failed sync of their file: each is durable or not, and no later sync changes that. Until the crash, reads
//!   still return what was written, as from the page cache.
//!
//! Like the kernel, it follows symbolic links in the middle of paths and returns the kernel's errors. It enforces modes as for a
//! user who owns everything, unless [`SimDisk::as_root`] was called.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use checkvalve_host::disk::{Disk, DiskFile, FileTime, Free, Kind, Meta, not_opened};

mod durable;
mod fault;
mod file;
mod names;
mod world;

pub use fault::{Op, PowerCut};

use fault::Verdict;
use file::{Access, SimFile};
use world::{Body, World, errno};

/// The disk. Clones share their content.
#[derive(Clone)]
pub struct SimDisk {
    world: Arc<Mutex<World>>,
}

/// What [`SimDisk::tree`] finds under a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Its path from the root.
    pub path: PathBuf,
    /// What.
    pub kind: Kind,
    /// Permission bits.
    pub mode: u32,
    /// Modification time.
    pub mtime: FileTime,
    /// Contents of a file, target of a symbolic link.
    pub bytes: Vec<u8>,
}

impl SimDisk {
    /// An empty disk without limits. `seed` decides what half-done operations leave behind.
    pub fn new(seed: u64) -> Self {
        Self { world: Arc::new(Mutex::new(World::new(seed))) }
    }

    /// Stops enforcing modes, as for root.
    pub fn as_root(self) -> Self {
        self.lock().enforce_modes = false;
        self
    }

    /// Sets the clock that stamps files.
    pub fn set_time(&self, now: FileTime) {
        self.lock().now = now;
    }

    /// Makes the empty directory at `path` a file system of its own, with another device number.
    pub fn mount(&self, path: &Path) {
        self.lock().mount(path);
    }

    /// Limits the capacity of `path`'s file system, in bytes; `None` for no limit. A limit below its current use makes it full.
    pub fn set_capacity(&self, path: &Path, bytes: Option<u64>) {
        self.lock().device_mut(path).capacity = bytes;
    }

    /// How many bytes the file system of `path` holds.
    pub fn used(&self, path: &Path) -> u64 {
        self.lock().device_mut(path).used
    }

    /// Sets whether writing to the file system of `path` fails with EROFS.
    pub fn set_read_only(&self, path: &Path, read_only: bool) {
        self.lock().device_mut(path).read_only = read_only;
    }

    /// Puts something that no daemon would create (a FIFO, a device) at `path`.
    pub fn plant(&self, path: &Path, kind: Kind) {
        let mut world = self.lock();
        let (dir, name) = world.parent(path).expect("a parent");
        world.create(dir, name, 0o644, Body::Special(kind)).expect("room");
    }

    /// Flips the bits of `mask` in the byte at `offset` of a file, like a bad medium. Nothing else changes.
    pub fn rot(&self, path: &Path, offset: usize, mask: u8) {
        self.lock().rot(path, offset, mask);
    }

    /// Makes the operation after `nth` others, counted from now, fail with `errno`.
    pub fn fail_nth(&self, nth: u64, errno: i32) {
        self.lock().faults.arm(None, nth, Verdict::Fail(errno), false);
    }

    /// Makes the operation of this kind after `nth` others of the same kind fail with `errno`.
    pub fn fail_op(&self, op: Op, nth: u64, errno: i32) {
        self.lock().faults.arm(Some(op), nth, Verdict::Fail(errno), false);
    }

    /// Makes all operations of this kind fail with `errno` until [`SimDisk::heal`].
    pub fn fail_every(&self, op: Op, errno: i32) {
        self.lock().faults.arm(Some(op), 0, Verdict::Fail(errno), true);
    }

    /// Makes the operation after `nth` others and all later ones fail with `errno`, as when a disk is pulled out.
    pub fn fail_from(&self, nth: u64, errno: i32) {
        self.lock().faults.arm(None, nth, Verdict::Fail(errno), true);
    }

    /// Cuts the power in the operation after `nth` others: it is done, half done or not done, and then the calling thread
    /// unwinds with [`PowerCut`] (see [`SimDisk::until_power_cut`]). Until [`SimDisk::crash`] everything fails with EIO.
    pub fn cut_power_at(&self, nth: u64) {
        self.lock().faults.arm(None, nth, Verdict::Cut, false);
    }

    /// Runs `body` until it ends or the power is cut. Returns `None` if the power was cut.
    pub fn until_power_cut<T>(body: impl FnOnce() -> T) -> Option<T> {
        match std::panic::catch_unwind(std::panic::AssertUnwindSafe(body)) {
            Ok(value) => Some(value),
            Err(payload) if payload.is::<PowerCut>() => None,
            Err(payload) => std::panic::resume_unwind(payload),
        }
    }

    /// Cancels all armed faults, and counts operations from 0 again. Capacity and read-only stay.
    pub fn heal(&self) {
        self.lock().faults.reset();
    }

    /// Does something that the process does not do. Faults do not affect it, and its operations are not counted.
    pub fn outside<T>(&self, body: impl FnOnce() -> T) -> T {
        let faults = std::mem::take(&mut self.lock().faults);
        let done = body();
        self.lock().faults = faults;
        done
    }

    /// How many operations there were since the beginning or [`SimDisk::heal`], including failed ones.
    pub fn operations(&self) -> u64 {
        self.lock().faults.total()
    }

    /// How many of these operations were of this kind.
    pub fn count(&self, op: Op) -> u64 {
        self.lock().faults.count(op)
    }

    /// Cuts the power and restores it. `seed` decides whether changes that were not durable are kept, lost or torn. Files that
    /// were open return EIO. Armed faults are cancelled.
    pub fn crash(&self, seed: u64) {
        self.lock().crash(seed);
    }

    /// Simulates that the process is killed and starts again. Nothing is lost, but files that were open return EIO. Armed faults
    /// are cancelled.
    pub fn kill(&self) {
        self.lock().kill();
    }

    /// Everything below the directory at `path`, sorted by path, without counting as operations.
    pub fn tree(&self, path: &Path) -> Vec<Found> {
        self.lock().tree(path)
    }

    fn lock(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts an operation and does it, unless it is to fail.
    fn op<T>(&self, op: Op, body: impl FnOnce(&mut World) -> io::Result<T>) -> io::Result<T> {
        self.torn_op(op, |world, verdict| match verdict {
            Verdict::Pass => body(world),
            Verdict::Fail(code) => Err(errno(code)),
            Verdict::Cut if world.rng.chance(500) => body(world),
            Verdict::Cut => Err(errno(errno::IO)),
        })
    }

    /// Like [`SimDisk::op`], for an operation that may be done in part.
    fn torn_op<T>(&self, op: Op, body: impl FnOnce(&mut World, Verdict) -> io::Result<T>) -> io::Result<T> {
        let mut world = self.lock();
        let verdict = world.faults.next(op);
        let result = body(&mut world, verdict);
        drop(world);
        if matches!(verdict, Verdict::Cut) {
            drop(result);
            // Unlike `panic_any`, this does not call the panic hook, which would print something.
            std::panic::resume_unwind(Box::new(PowerCut));
        }
        result
    }

    fn open(&self, world: &mut World, ino: u64, access: Access) -> Box<dyn DiskFile> {
        Box::new(SimFile::new(self.clone(), world, ino, access))
    }

    fn open_regular(&self, op: Op, path: &Path, access: Access) -> io::Result<Box<dyn DiskFile>> {
        self.op(op, |world| {
            let ino = match world.resolve(path, false) {
                Err(error) if access == Access::Append && error.kind() == io::ErrorKind::NotFound => {
                    let (dir, name) = world.parent(path)?;
                    world.create(dir, name, 0o640, Body::file())?
                }
                other => other.map_err(a_link)?,
            };
            if world.kind(ino) != Kind::File {
                return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
            }
            world.allow(ino, if access == Access::Read { 0o400 } else { 0o600 })?;
            if access != Access::Read {
                world.writable(ino)?;
            }
            Ok(self.open(world, ino, access))
        })
    }
}

/// Maps ELOOP to invalid input, like the real disk, which cannot tell a final link that it does not follow from a loop.
fn a_link(error: io::Error) -> io::Error {
    if error.raw_os_error() == Some(errno::LOOP) { io::ErrorKind::InvalidInput.into() } else { error }
}

impl Disk for SimDisk {
    fn open_read(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        self.open_regular(Op::OpenRead, path, Access::Read)
    }

    fn create_new(&self, path: &Path, mode: u32) -> io::Result<Box<dyn DiskFile>> {
        self.op(Op::CreateNew, |world| {
            let (dir, name) = world.parent(path)?;
            let ino = world.create(dir, name, mode, Body::file())?;
            Ok(self.open(world, ino, Access::Write))
        })
    }

    fn open_rw(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        self.open_regular(Op::OpenRw, path, Access::Write)
    }

    fn open_append_or_create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        self.open_regular(Op::OpenAppendOrCreate, path, Access::Append)
    }

    fn lstat(&self, path: &Path) -> io::Result<Meta> {
        self.op(Op::Lstat, |world| {
            let ino = world.resolve(path, false)?;
            Ok(world.meta(ino))
        })
    }

    fn read_dir(&self, path: &Path) -> io::Result<Vec<OsString>> {
        self.op(Op::ReadDir, |world| {
            let ino = world.resolve(path, false)?;
            let names = world.entries(ino)?.keys().cloned().collect();
            world.allow(ino, 0o400)?;
            Ok(names)
        })
    }

    fn read_link(&self, path: &Path) -> io::Result<PathBuf> {
        self.op(Op::ReadLink, |world| world.read_link(path))
    }

    fn create_dir(&self, path: &Path, mode: u32) -> io::Result<()> {
        self.op(Op::CreateDir, |world| {
            let (dir, name) = world.parent(path)?;
            world.create(dir, name, mode, Body::directory()).map(drop)
        })
    }

    fn create_dir_all(&self, path: &Path, mode: u32) -> io::Result<()> {
        self.op(Op::CreateDirAll, |world| world.create_dir_all(path, mode))
    }

    fn symlink(&self, target: &[u8], path: &Path) -> io::Result<()> {
        self.op(Op::Symlink, |world| {
            if target.is_empty() {
                return Err(errno(errno::NOENT));
            }
            let (dir, name) = world.parent(path)?;
            world.create(dir, name, 0o777, Body::Symlink(target.to_vec())).map(drop)
        })
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.op(Op::Rename, |world| world.rename(from, to, true))
    }

    fn rename_noreplace(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.op(Op::RenameNoreplace, |world| world.rename(from, to, false))
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.op(Op::RemoveFile, |world| world.remove(path, false))
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        self.op(Op::RemoveDir, |world| world.remove(path, true))
    }

    fn remove_tree(&self, path: &Path) -> io::Result<()> {
        self.torn_op(Op::RemoveTree, |world, verdict| match verdict {
            Verdict::Pass => world.remove_tree(path, u64::MAX),
            Verdict::Fail(code) => {
                let most = world.rng.below(4);
                world.remove_tree(path, most)?;
                Err(errno(code))
            }
            Verdict::Cut => {
                let most = world.rng.below(8);
                world.remove_tree(path, most)
            }
        })
    }

    fn set_mode(&self, path: &Path, mode: u32) -> io::Result<()> {
        self.op(Op::SetMode, |world| {
            let ino = world.resolve(path, false).map_err(a_link)?;
            world.set_mode(ino, mode)
        })
    }

    fn set_mtime(&self, path: &Path, secs: i64, nanos: u32) -> io::Result<()> {
        self.op(Op::SetMtime, |world| {
            let ino = world.resolve(path, false)?;
            world.set_mtime(ino, FileTime { secs, nanos })
        })
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.torn_op(Op::SyncDir, |world, verdict| {
            let ino = opened(verdict).and_then(|()| world.resolve(path, false));
            let ino = ino.and_then(|ino| world.entries(ino).map(|_| ino));
            let ino = ino.and_then(|ino| world.allow(ino, 0o400).map(|()| ino)).map_err(not_opened)?;
            world.sync_dir(ino, verdict)
        })
    }

    fn sync_fs(&self, path: &Path) -> io::Result<()> {
        self.torn_op(Op::SyncFs, |world, verdict| {
            let ino = opened(verdict).and_then(|()| world.resolve(path, false));
            let ino = ino.and_then(|ino| world.allow(ino, 0o400).map(|()| ino)).map_err(not_opened)?;
            world.sync_fs(ino, verdict)
        })
    }

    fn free_space(&self, path: &Path) -> io::Result<Free> {
        self.op(Op::FreeSpace, |world| {
            let ino = world.resolve(path, true)?;
            Ok(Free { bytes: world.free(ino), files: u64::MAX })
        })
    }
}

/// Too many open files: what is to be synced is not opened, and nothing is tried.
fn opened(verdict: Verdict) -> io::Result<()> {
    if verdict == Verdict::Fail(errno::MFILE) { Err(errno(errno::MFILE)) } else { Ok(()) }
}

#[cfg(test)]
mod tests;
