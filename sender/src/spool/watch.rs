//! inotify on the folders of the spool.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use checkvalve_protocol::id::ChannelName;
use notify::event::{AccessKind, AccessMode, CreateKind, ModifyKind, RenameMode};
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};

use super::{Place, Seen};

/// What the watcher tells.
pub type Tell = Box<dyn Fn(Told) + Send>;

/// One thing that the watcher tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Told {
    /// Something happened to a name.
    Seen(Place, Seen),
    /// Events were lost, or a folder was removed: scan.
    Lost,
}

/// The system's watching does not work.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct WatchError(#[from] notify::Error);

/// Watches folders until it is dropped.
pub struct Watcher {
    inner: RecommendedWatcher,
    folders: BTreeMap<ChannelName, (PathBuf, u64)>,
    /// A watched folder was removed; the next one may well have its inode.
    removed: Arc<AtomicBool>,
}

impl Watcher {
    /// Tells `tell`, from a thread of its own, what happens in `folders`. Errors: [`WatchError`].
    pub fn new(folders: impl IntoIterator<Item = (ChannelName, PathBuf)>, tell: Tell) -> Result<Self, WatchError> {
        let folders: BTreeMap<_, _> = folders.into_iter().map(|(channel, path)| (channel, (path, 0))).collect();
        let by_path: BTreeMap<_, _> =
            folders.iter().map(|(channel, (path, _))| (path.clone(), channel.clone())).collect();
        let removed = Arc::new(AtomicBool::new(false));
        let seen_removed = Arc::clone(&removed);
        let inner = notify::recommended_watcher(move |event: notify::Result<Event>| match event {
            Ok(event) => {
                let is_end = |path| by_path.contains_key(path) && matches!(event.kind, EventKind::Remove(_));
                if event.paths.iter().any(is_end) {
                    seen_removed.store(true, Ordering::Release);
                }
                translate(&by_path, &event).into_iter().for_each(&tell);
            }
            Err(_) => tell(Told::Lost),
        })?;
        Ok(Self { inner, folders, removed })
    }

    /// Watches each folder as it is now: the first time, and again those that were replaced; gives whether there were any.
    /// Errors: the first [`WatchError`]; the other folders are watched.
    pub fn refresh(&mut self) -> Result<bool, WatchError> {
        use std::os::unix::fs::MetadataExt;
        let mut result = Ok(false);
        let removed = self.removed.swap(false, Ordering::Acquire);
        for (path, watched) in self.folders.values_mut() {
            let meta = std::fs::symlink_metadata(&path);
            if removed || meta.is_err() {
                *watched = 0;
            }
            let Ok(meta) = meta else { continue };
            if meta.ino() == *watched {
                continue;
            }
            // The old watch, if any, is of a folder that is gone.
            drop(self.inner.unwatch(path));
            match self.inner.watch(path, RecursiveMode::NonRecursive) {
                Ok(()) => {
                    *watched = meta.ino();
                    result = result.map(|_| true);
                }
                Err(error) => result = result.and(Err(error.into())),
            }
        }
        result
    }
}

fn translate(folders: &BTreeMap<PathBuf, ChannelName>, event: &Event) -> Vec<Told> {
    if event.need_rescan() {
        return vec![Told::Lost];
    }
    let seen = match event.kind {
        EventKind::Create(CreateKind::Folder) => Seen::Touched,
        EventKind::Create(_) => Seen::Created,
        EventKind::Modify(ModifyKind::Name(RenameMode::To)) => Seen::Renamed,
        EventKind::Modify(ModifyKind::Name(RenameMode::From)) | EventKind::Remove(_) => Seen::Removed,
        // Comes after its two halves.
        EventKind::Modify(ModifyKind::Name(_)) => return Vec::new(),
        EventKind::Modify(ModifyKind::Metadata(_)) => Seen::Touched,
        EventKind::Modify(_) => Seen::Written,
        EventKind::Access(AccessKind::Close(AccessMode::Write)) => Seen::Closed,
        _ => return Vec::new(),
    };
    event.paths.iter().filter_map(|path| told(folders, path, seen)).collect()
}

fn told(folders: &BTreeMap<PathBuf, ChannelName>, path: &Path, seen: Seen) -> Option<Told> {
    if let Some(channel) = path.parent().and_then(|parent| folders.get(parent)) {
        return Some(Told::Seen((channel.clone(), path.file_name()?.to_owned()), seen));
    }
    // The folder itself: only its end matters.
    (folders.contains_key(path) && seen == Seen::Removed).then_some(Told::Lost)
}

#[cfg(test)]
mod tests;
