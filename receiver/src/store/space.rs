//! How much staging may still take, counted as the disk does: in pages and in files. What was not signed for has a part of it
//! only, and so has each channel and each signing key, whichever channels it signs for.

use std::collections::BTreeMap;
use std::iter::Sum;
use std::ops::{Add, Range};
use std::sync::{Mutex, MutexGuard, PoisonError};

use checkvalve_host::disk::Free;
use checkvalve_protocol::id::{ChannelName, KeyTag};
use serde::{Deserialize, Serialize};

pub use crate::ranges::PAGE;
use crate::ranges::pages;

/// One inode in so many that are free is left alone.
const SPARE_FILES: u64 = 16;
/// Once staging had as many files as before so often, all that it counts is made. It is asked about four times a second.
const UNCHANGED: u32 = 240;

/// What something takes of the disk, and of the memory that stays taken with it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Bytes on the disk: whole pages, and one for each file and directory.
    pub bytes: u64,
    /// Files and directories: inodes.
    pub files: u64,
    /// Ranges of bytes that are remembered.
    pub ranges: u64,
    /// Unfinished blocks of which symbols are kept.
    pub blocks: u64,
}

/// Where staging ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of the disk that are left alone.
    pub reserve: u64,
    /// Most bytes in staging.
    pub quota: u64,
    /// Most files and directories in staging.
    pub files: u64,
    /// Most bytes of bundles that nobody signed for.
    pub unsigned_bytes: u64,
    /// Most files and directories of bundles that nobody signed for.
    pub unsigned_files: u64,
    /// Most bundles at once that nobody signed for.
    pub unsigned_bundles: u64,
    /// Most ranges of all bundles together, each some tens of bytes of memory. Half of them for what nobody signed for.
    pub ranges: u64,
    /// Most unfinished blocks of which symbols are kept. Half of them for what nobody signed for.
    pub parked_blocks: u64,
}

/// What the bundles of one channel, or of one key, may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// Most bytes.
    pub bytes: u64,
    /// Most files and directories.
    pub files: u64,
    /// Most ranges.
    pub ranges: u64,
    /// Most unfinished blocks of which symbols are kept.
    pub blocks: u64,
}

impl Share {
    /// No limit.
    pub const ALL: Self = Self { bytes: u64::MAX, files: u64::MAX, ranges: u64::MAX, blocks: u64::MAX };

    fn cost(self) -> Cost {
        let Self { bytes, files, ranges, blocks } = self;
        Cost { bytes, files, ranges, blocks }
    }
}

/// What keeps something out of staging.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Bound {
    /// The disk has only its reserve left.
    Disk,
    /// `quota`.
    Quota,
    /// `limits.files`.
    Files,
    /// The file system has few inodes left.
    Inodes,
    /// What memory has room for of ranges and of unfinished blocks.
    Pieces,
    /// What the bundles of its channel may take.
    Channel,
    /// What the bundles of its key may take.
    Key,
    /// What nobody signed for may take.
    Unsigned,
    /// Something did a while ago, and there is room by now.
    Passed,
}

/// Whom a bundle counts for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// Its channel.
    pub channel: ChannelName,
    /// The key that signed it, by its tag in the bundle's id.
    pub key: KeyTag,
}

/// Room in staging. What is free is asked of the disk now and then, and counted down in between by what is written.
/// What is promised to be written is kept apart: it is not on the disk yet, and nothing must take its place.
///
/// The owner of what is counted is None where nobody signed for it.
pub struct Space {
    limits: Limits,
    used: Mutex<Used>,
}

struct Used {
    free: u64,
    /// What the disk had inodes for when it was asked, those that staging takes among them.
    most_files: u64,
    /// Files and directories in staging when it was asked last, and how often in a row they were as many.
    asked_with: u64,
    unchanged: u32,
    /// Bytes that are about to be written.
    promised: u64,
    all: Cost,
    unsigned: Cost,
    unsigned_bundles: u64,
    channels: BTreeMap<ChannelName, (Cost, Share)>,
    /// What the bundles of each key take; no entry: nothing.
    keys: BTreeMap<KeyTag, Cost>,
    key_share: Share,
}

impl Default for Used {
    fn default() -> Self {
        Self {
            free: 0,
            most_files: u64::MAX,
            asked_with: 0,
            unchanged: 0,
            promised: 0,
            all: Cost::default(),
            unsigned: Cost::default(),
            unsigned_bundles: 0,
            channels: BTreeMap::new(),
            keys: BTreeMap::new(),
            key_share: Share::ALL,
        }
    }
}

impl Cost {
    /// Of a file of `len` bytes.
    #[must_use]
    pub fn file(len: u64) -> Self {
        Self { bytes: PAGE.saturating_add(len.div_ceil(PAGE).saturating_mul(PAGE)), files: 1, ..Self::default() }
    }

    /// Of so many directories, or files without their contents.
    #[must_use]
    pub fn files(count: u64) -> Self {
        Self { bytes: count.saturating_mul(PAGE), files: count, ..Self::default() }
    }

    /// Of so many bytes of contents, in one piece.
    #[must_use]
    pub fn bytes(len: u64) -> Self {
        Self { bytes: len.div_ceil(PAGE).saturating_mul(PAGE), ..Self::default() }
    }

    /// Of a range of an object, in this place of a file.
    #[must_use]
    pub fn range(range: &Range<u64>) -> Self {
        Self { bytes: pages(range).saturating_mul(PAGE), ranges: 1, ..Self::default() }
    }

    /// Of a range of the data object. In its file it begins elsewhere in a page, so it may be in one page more.
    #[must_use]
    pub fn range_of_data(range: &Range<u64>) -> Self {
        Self::range(range) + Self::bytes(PAGE)
    }

    /// How much of each this has beyond `other`.
    pub(super) fn beyond(self, other: Self) -> Self {
        Self {
            bytes: self.bytes.saturating_sub(other.bytes),
            files: self.files.saturating_sub(other.files),
            ranges: self.ranges.saturating_sub(other.ranges),
            blocks: self.blocks.saturating_sub(other.blocks),
        }
    }

    fn covers(self, other: Self) -> bool {
        other.beyond(self) == Self::default()
    }

    /// Without what an `old` part took, which becomes `new`.
    pub(super) fn exchanged(self, old: Self, new: Self) -> Self {
        debug_assert!(self.covers(old), "{old:?} was counted in {self:?}");
        self.beyond(old) + new
    }
}

impl Add for Cost {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self {
            bytes: self.bytes.saturating_add(other.bytes),
            files: self.files.saturating_add(other.files),
            ranges: self.ranges.saturating_add(other.ranges),
            blocks: self.blocks.saturating_add(other.blocks),
        }
    }
}

impl Sum for Cost {
    fn sum<I: Iterator<Item = Self>>(costs: I) -> Self {
        costs.fold(Self::default(), Add::add)
    }
}

impl Limits {
    /// `reserve` and `quota` in bytes; of what nobody signed for an eighth of that, 65,536 files and 64 bundles.
    #[must_use]
    pub fn new(reserve: u64, quota: u64) -> Self {
        Self {
            reserve,
            quota,
            files: u64::MAX,
            unsigned_bytes: quota / 8,
            unsigned_files: 1 << 16,
            unsigned_bundles: 64,
            ranges: 1 << 20,
            parked_blocks: 1 << 20,
        }
    }
}

impl Space {
    /// Nothing of it is taken, and nothing is known to be free before [`Space::refresh`].
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self { limits, used: Mutex::default() }
    }

    /// What the disk has.
    pub fn refresh(&self, free: Free) {
        let mut used = self.lock();
        used.free = free.bytes;
        // Some are left to what is no part of staging: names in the inbox, logs, the quarantine.
        let spare = free.files / SPARE_FILES;
        let now = used.all.files.saturating_add(free.files - spare);
        // What is counted and not made yet is free as well. It must not be room for more, unless it is little.
        let is_little = used.all.files <= spare;
        used.unchanged = if used.all.files == used.asked_with { used.unchanged.saturating_add(1) } else { 0 };
        used.asked_with = used.all.files;
        used.most_files = if is_little || used.unchanged >= UNCHANGED { now } else { now.min(used.most_files) };
    }

    /// Most files and directories in staging: `limits.files`, or what the disk has if that is less.
    #[must_use]
    pub fn most_files(&self) -> u64 {
        self.lock().most_files.min(self.limits.files)
    }

    /// Whether so much more would fit.
    #[must_use]
    pub fn fits(&self, cost: Cost, owner: Option<&Owner>) -> bool {
        self.bound(cost, owner).is_none()
    }

    /// What keeps so much more out. None: it would fit.
    #[must_use]
    pub fn bound(&self, cost: Cost, owner: Option<&Owner>) -> Option<Bound> {
        self.lock().bound(&self.limits, cost, owner)
    }

    /// What keeps so much more of the bundles of a key out, as far as its own share goes.
    #[must_use]
    pub fn bound_of_key(&self, key: KeyTag, cost: Cost) -> Option<Bound> {
        self.lock().bound_of_key(key, cost)
    }

    /// What cost `old` costs `new` now, whatever the limits. What that frees shows when the disk is asked again.
    pub fn change(&self, old: Cost, new: Cost, owner: Option<&Owner>) {
        self.lock().change(old, new, owner);
    }

    /// What cost `old` costs `new` now. False: it would not fit, and nothing has changed.
    #[must_use]
    pub fn exchange(&self, old: Cost, new: Cost, owner: Option<&Owner>) -> bool {
        let mut used = self.lock();
        let fits = used.bound(&self.limits, new.beyond(old), owner).is_none();
        if fits {
            used.change(old, new, owner);
        }
        fits
    }

    /// `cost` is about to be written, and has its place until [`Space::settle`]. False: it would not fit.
    #[must_use]
    pub fn promise(&self, cost: Cost, owner: Option<&Owner>) -> bool {
        let mut used = self.lock();
        let fits = used.bound(&self.limits, cost, owner).is_none();
        if fits {
            used.count(Cost::default(), cost, owner);
            used.promised += cost.bytes;
        }
        fits
    }

    /// What was promised is written, and counted for itself, or is not going to be written.
    pub fn settle(&self, cost: Cost, owner: Option<&Owner>) {
        let mut used = self.lock();
        debug_assert!(used.promised >= cost.bytes, "it was promised");
        used.promised = used.promised.saturating_sub(cost.bytes);
        used.count(cost, Cost::default(), owner);
    }

    /// What was counted for one owner is another's. There is no limit to that, only to what comes after it.
    pub fn move_class(&self, cost: Cost, from: Option<&Owner>, to: Option<&Owner>) {
        let mut used = self.lock();
        used.count(cost, Cost::default(), from);
        used.count(Cost::default(), cost, to);
    }

    /// What the bundles of a channel may take from now on.
    pub fn set_share(&self, channel: &ChannelName, share: Share) {
        self.lock().channels.entry(channel.clone()).or_insert((Cost::default(), share)).1 = share;
    }

    /// What the bundles of one key may take from now on.
    pub fn set_key_share(&self, share: Share) {
        self.lock().key_share = share;
    }

    /// One more bundle that nobody signed for. False: there are too many.
    #[must_use]
    pub fn begin_unsigned(&self) -> bool {
        let mut used = self.lock();
        let fits = used.unsigned_bundles < self.limits.unsigned_bundles;
        used.unsigned_bundles += u64::from(fits);
        fits
    }

    /// The same, whatever the limit.
    pub fn count_unsigned(&self) {
        self.lock().unsigned_bundles += 1;
    }

    /// One less.
    pub fn end_unsigned(&self) {
        let mut used = self.lock();
        debug_assert!(used.unsigned_bundles > 0, "it was counted");
        used.unsigned_bundles = used.unsigned_bundles.saturating_sub(1);
    }

    /// Where staging ends.
    #[must_use]
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// Bytes in staging.
    #[must_use]
    pub fn staged(&self) -> u64 {
        self.used().bytes
    }

    /// All that staging takes.
    #[must_use]
    pub fn used(&self) -> Cost {
        self.lock().all
    }

    /// What of it nobody signed for.
    #[must_use]
    pub fn unsigned(&self) -> Cost {
        self.lock().unsigned
    }

    /// How many bundles nobody signed for.
    #[must_use]
    pub fn unsigned_bundles(&self) -> u64 {
        self.lock().unsigned_bundles
    }

    /// What the bundles of a channel take.
    #[must_use]
    pub fn of(&self, channel: &ChannelName) -> Cost {
        self.lock().channels.get(channel).map(|(cost, _)| *cost).unwrap_or_default()
    }

    /// What the bundles of a key take.
    #[must_use]
    pub fn of_key(&self, key: KeyTag) -> Cost {
        self.lock().keys.get(&key).copied().unwrap_or_default()
    }

    /// The key whose bundles take most of what `amount` tells, and how much of it.
    #[must_use]
    pub fn largest_key(&self, amount: fn(&Cost) -> u64) -> Option<(KeyTag, u64)> {
        let used = self.lock();
        used.keys.iter().map(|(&key, cost)| (key, amount(cost))).max_by_key(|(_, taken)| *taken)
    }

    /// Bytes that the disk has, its reserve included, as of the last time it was asked.
    #[must_use]
    pub fn free(&self) -> u64 {
        self.lock().free
    }

    fn lock(&self) -> MutexGuard<'_, Used> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Used {
    fn bound(&self, limits: &Limits, cost: Cost, owner: Option<&Owner>) -> Option<Bound> {
        let files = limits.files.min(self.most_files);
        let all = Cost { bytes: limits.quota, files, ranges: limits.ranges, blocks: limits.parked_blocks };
        let free = self.free.saturating_sub(self.promised);
        if cost.bytes > 0 && free < limits.reserve.saturating_add(cost.bytes) {
            return Some(Bound::Disk);
        }
        let files_bound = if files < limits.files { Bound::Inodes } else { Bound::Files };
        let of = [
            (Bound::Quota, Cost { bytes: cost.bytes, ..Cost::default() }),
            (files_bound, Cost { files: cost.files, ..Cost::default() }),
            (Bound::Pieces, cost),
        ];
        if let Some((bound, _)) = of.into_iter().find(|(_, cost)| !within(self.all, *cost, all)) {
            return Some(bound);
        }
        let Some(Owner { channel, key }) = owner else {
            let (bytes, files) = (limits.unsigned_bytes, limits.unsigned_files.min(self.most_files / 4));
            let most = Cost { bytes, files, ranges: limits.ranges / 2, blocks: limits.parked_blocks / 2 };
            return (!within(self.unsigned, cost, most)).then_some(Bound::Unsigned);
        };
        if self.channels.get(channel).is_some_and(|(used, share)| !within(*used, cost, share.cost())) {
            return Some(Bound::Channel);
        }
        self.bound_of_key(*key, cost)
    }

    fn bound_of_key(&self, key: KeyTag, cost: Cost) -> Option<Bound> {
        let used = self.keys.get(&key).copied().unwrap_or_default();
        (!within(used, cost, self.key_share.cost())).then_some(Bound::Key)
    }

    fn change(&mut self, old: Cost, new: Cost, owner: Option<&Owner>) {
        self.free = self.free.saturating_sub(new.beyond(old).bytes);
        self.count(old, new, owner);
    }

    fn count(&mut self, old: Cost, new: Cost, owner: Option<&Owner>) {
        self.all = self.all.exchanged(old, new);
        let Some(Owner { channel, key }) = owner else {
            self.unsigned = self.unsigned.exchanged(old, new);
            return;
        };
        let of_channel = &mut self.channels.entry(channel.clone()).or_insert((Cost::default(), Share::ALL)).0;
        *of_channel = of_channel.exchanged(old, new);
        let of_key = self.keys.entry(*key).or_default();
        *of_key = of_key.exchanged(old, new);
        if *of_key == Cost::default() {
            self.keys.remove(key);
        }
    }
}

/// Whether every amount that grows stays within its limit. One that does not grow may exceed it, for example after the
/// limit was lowered.
fn within(used: Cost, more: Cost, most: Cost) -> bool {
    let one = |used: u64, more: u64, most: u64| more == 0 || used.saturating_add(more) <= most;
    one(used.bytes, more.bytes, most.bytes)
        && one(used.files, more.files, most.files)
        && one(used.ranges, more.ranges, most.ranges)
        && one(used.blocks, more.blocks, most.blocks)
}

#[cfg(test)]
mod tests;
