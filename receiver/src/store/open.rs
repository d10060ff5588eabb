//! The files of staging that stay open between blocks: so many in all, however many bundles are under way. The one that
//! was not used for longest is closed when another is opened, and opened again when its next block comes.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use checkvalve_host::disk::DiskFile;

/// Its group, and its number there.
type Key = (u64, u32);

/// All of them.
pub struct OpenFiles {
    most: AtomicUsize,
    groups: AtomicU64,
    set: Mutex<Set>,
}

#[derive(Default)]
struct Set {
    /// With when each was used last.
    files: BTreeMap<Key, (u64, Arc<dyn DiskFile>)>,
    by_use: BTreeMap<u64, Key>,
    clock: u64,
}

/// Those of one bundle, or of a part of it. They are closed when this is dropped.
pub struct Group {
    all: Arc<OpenFiles>,
    number: u64,
    /// Held while one is opened or closed, so that none is kept that was removed meanwhile.
    opening: Mutex<()>,
}

impl OpenFiles {
    /// Keeps `most` files open.
    #[must_use]
    pub fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { most: AtomicUsize::new(most), groups: AtomicU64::new(0), set: Mutex::default() })
    }

    /// Keeps so many open from now on.
    pub fn limit(&self, most: usize) {
        self.most.store(most, Ordering::Relaxed);
        self.make_room(0);
    }

    /// A group without files.
    #[must_use]
    pub fn group(self: &Arc<Self>) -> Group {
        let number = self.groups.fetch_add(1, Ordering::Relaxed);
        Group { all: Arc::clone(self), number, opening: Mutex::default() }
    }

    /// How many are open.
    #[must_use]
    pub fn count(&self) -> usize {
        self.set().files.len()
    }

    /// Closes what was not used for longest, until `more` find room. Who has one in hand goes on with it.
    fn make_room(&self, more: usize) {
        let most = self.most.load(Ordering::Relaxed).max(1);
        loop {
            // Closing may take as long as the disk does.
            let _closed = {
                let mut set = self.set();
                if set.files.len() + more <= most {
                    return;
                }
                let Some((_, oldest)) = set.by_use.pop_first() else { return };
                set.files.remove(&oldest)
            };
        }
    }

    fn set(&self) -> MutexGuard<'_, Set> {
        self.set.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Set {
    fn find(&mut self, key: Key) -> Option<Arc<dyn DiskFile>> {
        let (used, file) = self.files.get_mut(&key)?;
        self.clock += 1;
        self.by_use.remove(used);
        self.by_use.insert(self.clock, key);
        *used = self.clock;
        Some(Arc::clone(file))
    }

    fn add(&mut self, key: Key, file: Arc<dyn DiskFile>) {
        self.clock += 1;
        self.files.insert(key, (self.clock, file));
        self.by_use.insert(self.clock, key);
    }

    fn remove(&mut self, key: Key) -> Option<Arc<dyn DiskFile>> {
        let (used, file) = self.files.remove(&key)?;
        self.by_use.remove(&used);
        Some(file)
    }
}

impl Group {
    /// File `number`, which `open` opens if it is not open.
    pub fn get(
        &self,
        number: u32,
        open: impl FnOnce() -> io::Result<Box<dyn DiskFile>>,
    ) -> io::Result<Arc<dyn DiskFile>> {
        let _alone = self.opening.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (self.number, number);
        if let Some(found) = self.all.set().find(key) {
            return Ok(found);
        }
        self.all.make_room(1);
        let file: Arc<dyn DiskFile> = open()?.into();
        self.all.set().add(key, Arc::clone(&file));
        Ok(file)
    }

    /// Closes file `number`.
    pub fn close(&self, number: u32) {
        let _alone = self.opening.lock().unwrap_or_else(PoisonError::into_inner);
        let _closed = self.all.set().remove((self.number, number));
    }

    /// Closes all of them.
    pub fn close_all(&self) {
        let _alone = self.opening.lock().unwrap_or_else(PoisonError::into_inner);
        let _closed: Vec<_> = {
            let mut set = self.all.set();
            let keys: Vec<Key> = set.files.range((self.number, 0)..=(self.number, u32::MAX)).map(|(k, _)| *k).collect();
            keys.into_iter().map(|key| set.remove(key)).collect()
        };
    }

    /// Another group, in the same set.
    #[must_use]
    pub fn another(&self) -> Self {
        self.all.group()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.close_all();
    }
}

#[cfg(test)]
mod tests {
    use checkvalve_host::disk::{Disk, OsDisk};

    use super::*;

    #[test]
    fn the_least_recently_used_is_closed_and_opened_again() {
        let dir = crate::testing::dir();
        let all = OpenFiles::new(2);
        let (one, two) = (all.group(), all.group());
        let opened = AtomicUsize::new(0);
        let get = |group: &Group, number: u32| {
            let path = dir.path().join(format!("{}-{number}", group.number));
            let open = || {
                opened.fetch_add(1, Ordering::Relaxed);
                OsDisk.create_new(&path, 0o600).or_else(|_| OsDisk.open_rw(&path))
            };
            group.get(number, open).unwrap()
        };
        let first = get(&one, 1);
        get(&two, 1);
        get(&one, 1);
        assert_eq!(opened.load(Ordering::Relaxed), 2);
        get(&one, 2); // closes that of `two`
        get(&one, 1);
        assert_eq!((opened.load(Ordering::Relaxed), all.count()), (3, 2));
        get(&two, 1);
        get(&two, 2);
        assert_eq!((opened.load(Ordering::Relaxed), all.count()), (5, 2));
        // Who has one goes on with it.
        first.write_all_at(b"x", 0).unwrap();
        assert_eq!(get(&one, 1).len().unwrap(), 1);
        two.close(2);
        assert_eq!(all.count(), 1);
        drop(one);
        assert_eq!((all.count(), all.set().by_use.len()), (0, 0));
    }
}
