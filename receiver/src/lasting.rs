//! Memory for blocks under way that outlives the process: a file on a tmpfs, mapped. After SIGKILL the next run goes on with what
//! was in it, so that only what was on the wire meanwhile is missing; after a power cut there is nothing, as of any memory.
//!
//! The file has a header page (magic, version, boot, pages), a table with the length in pages of the extent that begins
//! at each page (`u32`, 0 for none), and the pages. An extent has its pages allocated by the file system before it is
//! used, since writing to an unallocated page kills the process when the file system is full. It frees them when
//! dropped.
#![allow(unsafe_code)]

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use checkvalve_protocol::receive::{BlockMemory, Extent, ReceivedBlock, recover};
use rustix::fs::{FallocateFlags, fallocate, fstatfs};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

const PAGE: usize = 4_096;
/// `MAGIC`, the boot's id, the number of pages (`u32` little-endian).
const HEAD: usize = 8 + 16 + 4;
/// Ends in the version, which changes with the layout, here and of the records inside. What is of another version is not read: it
/// can come again.
const MAGIC: [u8; 8] = *b"cvblock1";
/// From statfs(2). Elsewhere the kernel would write every block to a disk.
const TMPFS: rustix::fs::FsWord = 0x0102_1994;
/// Most pages that a file can have.
const MOST_PAGES: usize = 1 << 22;

/// The memory.
pub struct Lasting(Arc<SharedMemory>);

struct SharedMemory {
    file: File,
    mapping: Mapping,
    pages: usize,
    free: Mutex<Free>,
}

/// Pages that no extent has: length by first page, no two adjacent.
struct Free(BTreeMap<usize, usize>);

struct Pages {
    shared: Arc<SharedMemory>,
    first: usize,
    pages: usize,
    len: usize,
}

/// Gives `each` the blocks that an earlier run of this boot left in `path`; none if there is no such file, or it is another's.
/// They stay there until [`Lasting::create`]. Errors: the file cannot be read.
pub fn left_behind(path: &Path, boot: [u8; 16], each: &mut dyn FnMut(ReceivedBlock)) -> io::Result<()> {
    let file = match open(path, false) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        file => file?,
    };
    let len = usize::try_from(file.metadata()?.len()).unwrap_or(usize::MAX);
    if len < PAGE || len > offset(MOST_PAGES, MOST_PAGES) {
        return Ok(());
    }
    let mapping = Mapping::new(&file, len)?;
    // SAFETY: nobody else has the file mapped: the lock of the state directory keeps other receivers away.
    let bytes = unsafe { mapping.slice(0, len) };
    let pages = u32::from_le_bytes([bytes[24], bytes[25], bytes[26], bytes[27]]) as usize;
    if bytes[..8] != MAGIC || bytes[8..24] != boot || pages > MOST_PAGES || len != offset(pages, pages) {
        return Ok(());
    }
    let extents = bytes[PAGE..].chunks_exact(4).take(pages).enumerate().filter_map(|(page, entry)| {
        let count = u32::from_le_bytes(entry.try_into().ok()?) as usize;
        let from = (count > 0).then(|| offset(pages, page))?;
        bytes.get(from..from.checked_add(count.checked_mul(PAGE)?)?)
    });
    recover(extents).for_each(each);
    Ok(())
}

impl Lasting {
    /// Makes `path` anew, with room for `bytes`. Errors: it cannot be made, or is not on a tmpfs ([`io::ErrorKind::Unsupported`]).
    pub fn create(path: &Path, boot: [u8; 16], bytes: u64) -> io::Result<Self> {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let file = open(path, true)?;
        if fstatfs(&file)?.f_type != TMPFS {
            std::fs::remove_file(path)?;
            return Err(io::Error::new(io::ErrorKind::Unsupported, "its directory is not on a tmpfs"));
        }
        // Twice the bytes, so that the gaps which blocks of different sizes leave do not matter.
        let pages = usize::try_from(bytes / PAGE as u64 * 2).unwrap_or(MOST_PAGES).min(MOST_PAGES);
        let len = offset(pages, pages);
        file.set_len(len as u64)?;
        let table = offset(pages, 0);
        fallocate(&file, FallocateFlags::empty(), 0, table as u64)?;
        let mapping = Mapping::new(&file, len)?;
        // SAFETY: nobody else has the file mapped, and no extent is there yet.
        let head = unsafe { mapping.slice_mut(0, HEAD) };
        head[8..24].copy_from_slice(&boot);
        head[24..28].copy_from_slice(&u32::try_from(pages).unwrap_or(0).to_le_bytes());
        head[..8].copy_from_slice(&MAGIC);
        let free = Mutex::new(Free(BTreeMap::from([(0, pages)])));
        Ok(Self(Arc::new(SharedMemory { file, mapping, pages, free })))
    }
}

impl BlockMemory for Lasting {
    fn take(&mut self, len: usize) -> Option<Box<dyn Extent>> {
        let shared = &self.0;
        let pages = len.div_ceil(PAGE).max(1);
        let first = shared.lock().take(pages)?;
        let at = offset(shared.pages, first) as u64;
        if fallocate(&shared.file, FallocateFlags::empty(), at, (pages * PAGE) as u64).is_err() {
            shared.lock().give(first, pages);
            return None;
        }
        shared.set_entry(first, u32::try_from(pages).unwrap_or(0));
        Some(Box::new(Pages { shared: Arc::clone(shared), first, pages, len }))
    }
}

impl Extent for Pages {
    fn bytes(&self) -> &[u8] {
        // SAFETY: `Free` gave these pages to this extent alone, and they are allocated.
        unsafe { self.shared.mapping.slice(offset(self.shared.pages, self.first), self.len) }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and `self` is borrowed mutably.
        unsafe { self.shared.mapping.slice_mut(offset(self.shared.pages, self.first), self.len) }
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        self.shared.set_entry(self.first, 0);
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let (at, len) = (offset(self.shared.pages, self.first), self.pages * PAGE);
        if let Err(error) = fallocate(&self.shared.file, flags, at as u64, len as u64) {
            tracing::debug!(%error, "memory is not given back");
        }
        self.shared.lock().give(self.first, self.pages);
    }
}

impl SharedMemory {
    fn lock(&self) -> MutexGuard<'_, Free> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_entry(&self, page: usize, pages: u32) {
        // SAFETY: the table is allocated, and an entry is written only by who holds the page it is of.
        let entry = unsafe { self.mapping.slice_mut(PAGE + page * 4, 4) };
        entry.copy_from_slice(&pages.to_le_bytes());
    }
}

impl Free {
    /// The first run that is long enough.
    fn take(&mut self, pages: usize) -> Option<usize> {
        let (&first, &len) = self.0.iter().find(|(_, len)| **len >= pages)?;
        self.0.remove(&first);
        if len > pages {
            self.0.insert(first + pages, len - pages);
        }
        Some(first)
    }

    fn give(&mut self, mut first: usize, mut pages: usize) {
        if let Some((&before, &len)) = self.0.range(..first).next_back()
            && before + len == first
        {
            self.0.remove(&before);
            (first, pages) = (before, len + pages);
        }
        if let Some(len) = self.0.remove(&(first + pages)) {
            pages += len;
        }
        self.0.insert(first, pages);
    }
}

/// Where a page is in a file that has `pages`.
fn offset(pages: usize, page: usize) -> usize {
    PAGE + (pages * 4).next_multiple_of(PAGE) + page * PAGE
}

fn open(path: &Path, create: bool) -> io::Result<File> {
    // Not through a link, and no other user's.
    let flags = i32::try_from(rustix::fs::OFlags::NOFOLLOW.bits()).unwrap_or(0);
    let file = File::options().read(true).write(true).create_new(create).mode(0o600).custom_flags(flags).open(path)?;
    let metadata = file.metadata()?;
    let ours = metadata.uid() == rustix::process::geteuid().as_raw();
    if !metadata.is_file() || !ours || metadata.mode() & 0o022 != 0 {
        let text = "it is not a file that this user alone may write to";
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, text));
    }
    Ok(file)
}

/// A file in memory, shared with whoever maps it next.
struct Mapping {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: it is memory; who may touch which part when is the contract of `slice` and `slice_mut`.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn new(file: &File, len: usize) -> io::Result<Self> {
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: the kernel chooses the address, so that nothing that is mapped already changes.
        let start = unsafe { mmap(std::ptr::null_mut(), len, access, MapFlags::SHARED, file, 0)? };
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { start, len })
    }

    /// # Safety
    /// Nobody writes to these bytes while the slice lives.
    unsafe fn slice(&self, at: usize, len: usize) -> &[u8] {
        assert!(at <= self.len && len <= self.len - at, "inside of the mapping");
        // SAFETY: inside of the mapping, which lives as long as `self`; the rest is the caller's promise.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr().add(at), len) }
    }

    /// # Safety
    /// Nobody else reads or writes these bytes while the slice lives, and the file has pages for them.
    #[allow(clippy::mut_from_ref)]
    unsafe fn slice_mut(&self, at: usize, len: usize) -> &mut [u8] {
        assert!(at <= self.len && len <= self.len - at, "inside of the mapping");
        // SAFETY: inside of the mapping, which lives as long as `self`; the rest is the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr().add(at), len) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped by `new` with this length, and nothing borrows from `self` any more.
        if let Err(error) = unsafe { munmap(self.start.as_ptr().cast(), self.len) } {
            tracing::debug!(%error, "munmap");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use checkvalve_protocol::id::{BundleId, SessionId};
    use checkvalve_protocol::partition::Oti;
    use checkvalve_protocol::receive::{Limits, Origin, Reassembly, Wanted};
    use checkvalve_protocol::time::Time;
    use checkvalve_protocol::wire::{Content, Header, ObjectKind, Symbol};
    use std::time::Duration;

    const BOOT: [u8; 16] = [7; 16];

    /// Of the machine's own tmpfs, where there is one.
    fn dir() -> Option<tempfile::TempDir> {
        let dir = tempfile::tempdir_in("/dev/shm").ok();
        if dir.is_none() {
            println!("SKIPPED: /dev/shm is no tmpfs that can be written to");
        }
        dir
    }

    fn reassembly(path: &Path) -> Reassembly {
        let seconds = Duration::from_secs(9);
        let limits = Limits { objects: 4, idle: seconds, ask_again: seconds, ..Limits::new(1 << 20) };
        Reassembly::with_memory(limits, Box::new(Lasting::create(path, BOOT, limits.memory).unwrap()))
    }

    fn put(reassembly: &mut Reassembly, bundle: u64, esis: std::ops::Range<u32>) {
        for esi in esis {
            let oti = Oti::new(64 * 100, 64, 100).unwrap();
            let symbol = Symbol { bundle: BundleId(bundle), kind: ObjectKind::Data, sbn: 0, esi, oti };
            let counter = bundle * 1_000 + u64::from(esi);
            let header = Header { sealed: true, session: SessionId(1), counter, content: Content::Symbol(symbol) };
            let want =
                |_: &Symbol| Wanted::Yes { have: Default::default(), parked: Vec::new(), origin: Origin::Signed };
            reassembly.handle(Time(counter), &header, &[esi as u8; 64]).unwrap();
            reassembly.answer_all(Time(counter), want);
        }
    }

    fn found(path: &Path, boot: [u8; 16]) -> Vec<(u64, u32)> {
        let mut found = Vec::new();
        left_behind(path, boot, &mut |block| {
            let symbols = block.received_symbols().map(|(esi, bytes)| assert_eq!(bytes, [esi as u8; 64]));
            found.push((block.bundle().0, u32::try_from(symbols.count()).unwrap()));
        })
        .unwrap();
        found.sort_unstable();
        found
    }

    #[test]
    fn the_next_run_finds_what_was_there() {
        let Some(dir) = dir() else { return };
        let path = dir.path().join("blocks");
        assert_eq!(found(&path, BOOT), []);
        let mut running = reassembly(&path);
        put(&mut running, 1, 0..90);
        put(&mut running, 2, 0..100);
        put(&mut running, 3, 90..110);
        // As if killed now; the one that is complete and not stored too.
        assert_eq!(found(&path, BOOT), [(1, 90), (2, 100), (3, 20)]);
        assert_eq!(found(&path, BOOT).len(), 3, "looking does not take them away");
        let block = running.poll_block().unwrap();
        running.stored(block);
        running.forget(BundleId(3));
        assert_eq!(found(&path, BOOT), [(1, 90)]);
        assert_eq!(found(&path, [8; 16]), [], "another boot's");
        drop(running);
        assert_eq!(found(&path, BOOT), []);
        drop(reassembly(&path));
        assert_eq!(found(&path, BOOT), []);
    }

    #[test]
    fn what_others_may_have_written_is_not_taken_up() {
        let Some(dir) = dir() else { return };
        let path = dir.path().join("blocks");
        let mut running = reassembly(&path);
        put(&mut running, 1, 0..90);
        let denied = || left_behind(&path, BOOT, &mut |_| unreachable!()).unwrap_err().kind();
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o620)).unwrap();
        assert_eq!(denied(), io::ErrorKind::PermissionDenied);
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        assert_eq!(found(&path, BOOT), [(1, 90)]);
        if std::os::unix::fs::chown(&path, Some(12_345), None).is_ok() {
            assert_eq!(denied(), io::ErrorKind::PermissionDenied);
        }
        drop(reassembly(&path));
        assert_eq!(found(&path, BOOT), [], "it is made anew");
    }

    #[test]
    fn what_nothing_needs_any_more_is_given_back() {
        let Some(dir) = dir() else { return };
        let path = dir.path().join("blocks");
        let mut running = reassembly(&path);
        let used = || rustix::fs::stat(&path).unwrap().st_blocks;
        let at = |seconds: u64| Time(seconds * 1_000_000_000);
        let before = used();
        (1..50).for_each(|bundle| put(&mut running, bundle, 0..90));
        running.handle_timeout(at(1));
        while let Some(block) = running.poll_parked() {
            running.recycle(block);
        }
        (1..50).for_each(|bundle| running.forget(BundleId(bundle)));
        (2..11).for_each(|seconds| running.handle_timeout(at(seconds)));
        assert!(used() > before, "the next block needs no new memory");
        (0..20).for_each(|_| running.handle_timeout(at(11)));
        assert_eq!(used(), before);
        put(&mut running, 1, 0..90);
        assert_eq!(running.usage().open_blocks, 1);
    }

    #[test]
    fn what_is_no_such_file_is_left_alone() {
        let Some(dir) = dir() else { return };
        let path = dir.path().join("blocks");
        let mut running = reassembly(&path);
        put(&mut running, 1, 0..90);
        let whole = std::fs::read(&path).unwrap();
        drop(running);
        for len in [0, 1, PAGE - 1, PAGE, whole.len() - 1] {
            std::fs::write(&path, &whole[..len]).unwrap();
            assert_eq!(found(&path, BOOT), [], "{len}");
        }
        // Pages that reach beyond the end.
        let mut bytes = whole.clone();
        bytes[PAGE..PAGE + 4].fill(0xff);
        std::fs::write(&path, &bytes).unwrap();
        assert_eq!(found(&path, BOOT), []);
        std::fs::write(&path, &whole).unwrap();
        assert_eq!(found(&path, BOOT), [(1, 90)]);
        std::fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("elsewhere", &path).unwrap();
        assert!(left_behind(&path, BOOT, &mut |_| {}).is_err());
        drop(Lasting::create(&path, BOOT, 1 << 20).unwrap());
        assert!(std::fs::symlink_metadata(&path).unwrap().is_file());
    }

    #[test]
    fn the_layout_is_that_of_the_version() {
        let Some(dir) = dir() else { return };
        let path = dir.path().join("blocks");
        let limits = Limits { objects: 4, idle: Duration::from_secs(9), ..Limits::new(1 << 20) };
        let mut running = Reassembly::with_memory(limits, Box::new(Lasting::create(&path, BOOT, 8 << 10).unwrap()));
        put(&mut running, 1, 98..102);
        let mut made = std::fs::read(&path).unwrap();
        drop(running);
        let len = made.len();
        made.truncate(made.iter().rposition(|&byte| byte != 0).unwrap() + 1);
        let mut vector = crate::testing::vector("lasting-blocks-1", &made);
        assert!(made == vector, "a layout is never changed: another one has another magic");
        vector.resize(len, 0);
        std::fs::write(&path, &vector).unwrap();
        assert_eq!(found(&path, BOOT), [(1, 4)]);
        // What another version left can come again.
        vector[7] += 1;
        std::fs::write(&path, &vector).unwrap();
        assert_eq!(found(&path, BOOT), []);
    }

    #[test]
    fn no_tmpfs_is_said() {
        let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let path = dir.path().join("blocks");
        match Lasting::create(&path, BOOT, 1 << 20) {
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::Unsupported),
            Ok(_) => println!("SKIPPED: the sources are on a tmpfs"),
        }
    }

    #[test]
    fn pages_come_back_together() {
        let Some(dir) = dir() else { return };
        let path = dir.path().join("blocks");
        let mut memory = Lasting::create(&path, BOOT, 4 << 20).unwrap();
        let used = || rustix::fs::stat(&path).unwrap().st_blocks;
        let before = used();
        let mut taken: Vec<_> = (1..40).map(|n| memory.take(n * 1_000).unwrap()).collect();
        for (n, extent) in taken.iter_mut().enumerate() {
            assert_eq!(extent.bytes().len(), (n + 1) * 1_000);
            extent.bytes_mut().fill(n as u8);
        }
        assert!(taken.iter().enumerate().all(|(n, extent)| extent.bytes().iter().all(|&b| b == n as u8)));
        assert!(used() > before);
        // In an order that joins before, behind and both.
        while !taken.is_empty() {
            drop(taken.swap_remove(taken.len() / 2));
        }
        assert_eq!(used(), before);
        assert_eq!(memory.0.lock().0.len(), 1);
        drop(memory.take(8 << 20).expect("all of it again"));
        assert!(memory.take((8 << 20) + 1).is_none());
    }
}
