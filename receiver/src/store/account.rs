//! What one bundle takes of [`Space`], thing by thing, so that exactly that is given back.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use checkvalve_protocol::id::{ChannelName, KeyTag};

use super::space::{Bound, Cost, Owner, Share, Space};

/// What there is of a bundle on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Item {
    /// Its directory.
    Dir,
    /// The OTI of its data object.
    Oti,
    /// The signed announce.
    Announce,
    /// The signed hashes.
    Hashes,
    /// An announce that comes in blocks.
    AnnouncePart,
    /// Hashes that come in blocks.
    HashesPart,
    /// The flat file without its contents.
    Data,
    /// Its files without their contents, and its directories.
    Out,
    /// The bytes of its data object.
    Content,
    /// Symbols of unfinished blocks.
    Parked,
}

const ITEMS: usize = Item::Parked as usize + 1;

pub(super) struct Account {
    space: Arc<Space>,
    /// The key that its id names.
    key: KeyTag,
    /// Taken after every other lock of a bundle.
    inner: Mutex<Inner>,
}

struct Inner {
    /// None: nobody signed for it.
    owner: Option<Owner>,
    items: [Cost; ITEMS],
    /// What is about to be written.
    promised: Cost,
    /// Its bundle has gone: nothing is counted any more.
    closed: bool,
    /// What kept something out last, and what that was.
    refused: Option<Bound>,
    refused_cost: Cost,
}

/// Room for what is being written.
pub(super) struct Reserved<'a> {
    account: &'a Account,
    cost: Cost,
}

impl Account {
    /// Of a bundle that is counted as one that nobody signed for.
    pub(super) fn unsigned(space: Arc<Space>, key: KeyTag) -> Self {
        Self {
            space,
            key,
            inner: Mutex::new(Inner {
                owner: None,
                items: [Cost::default(); ITEMS],
                promised: Cost::default(),
                closed: false,
                refused: None,
                refused_cost: Cost::default(),
            }),
        }
    }

    /// An item costs so much now. Errors: `StorageFull` if that is more than there is room for; nothing has changed then.
    pub(super) fn charge(&self, item: Item, cost: Cost) -> io::Result<()> {
        let mut inner = self.lock();
        let old = inner.items[item as usize];
        if inner.closed || old == cost {
            return Ok(());
        }
        let more = cost.beyond(old);
        if self.exceeds_share(&inner, more) || !self.space.exchange(old, cost, inner.owner.as_ref()) {
            return Err(self.refuse(&mut inner, more));
        }
        inner.items[item as usize] = cost;
        Ok(())
    }

    /// The same whatever the limits, for what is there already. `cost` is asked for when nobody else can change it.
    pub(super) fn set(&self, item: Item, cost: impl FnOnce() -> Cost) {
        let mut inner = self.lock();
        if inner.closed {
            return;
        }
        let (old, new) = (inner.items[item as usize], cost());
        if old != new {
            self.space.change(old, new, inner.owner.as_ref());
            inner.items[item as usize] = new;
        }
    }

    /// Room for what is about to be written. Errors: `StorageFull`.
    pub(super) fn reserve(&self, cost: Cost) -> io::Result<Reserved<'_>> {
        let mut inner = self.lock();
        if inner.closed {
            return Ok(Reserved { account: self, cost: Cost::default() });
        }
        if self.exceeds_share(&inner, cost) || !self.space.promise(cost, inner.owner.as_ref()) {
            return Err(self.refuse(&mut inner, cost));
        }
        inner.promised = inner.promised + cost;
        Ok(Reserved { account: self, cost })
    }

    /// Whether so much more would fit.
    pub(super) fn fits(&self, cost: Cost) -> bool {
        let mut inner = self.lock();
        let bound = self.bound_now(&inner, cost);
        inner.refused = bound.or(inner.refused);
        bound.is_none()
    }

    /// What keeps so much more out.
    pub(super) fn bound(&self, cost: Cost) -> Option<Bound> {
        let inner = self.lock();
        self.bound_now(&inner, cost)
    }

    fn bound_now(&self, inner: &Inner, cost: Cost) -> Option<Bound> {
        let share = || self.space.bound_of_key(self.key, cost).filter(|_| inner.owner.is_none());
        self.space.bound(cost, inner.owner.as_ref()).or_else(share)
    }

    /// What nobody signed for yet counts for no key. But of a key that has its share no more begins, or all that it signs later
    /// would come beyond it.
    fn exceeds_share(&self, inner: &Inner, more: Cost) -> bool {
        inner.owner.is_none() && self.space.bound_of_key(self.key, more).is_some()
    }

    /// What keeps it from growing to `bytes` in all, or kept something of it out last.
    pub(super) fn refused(&self, bytes: u64) -> Option<Bound> {
        let (used, refused) = {
            let inner = self.lock();
            (inner.total(), inner.refused)
        };
        let now = self.bound(Cost::bytes(bytes.saturating_sub(used.bytes)));
        now.or(refused.map(|bound| match bound {
            // How many files and pieces are still to come is not known.
            Bound::Files | Bound::Inodes | Bound::Pieces => bound,
            _ => Bound::Passed,
        }))
    }

    fn refuse(&self, inner: &mut Inner, cost: Cost) -> io::Error {
        (inner.refused, inner.refused_cost) = (self.bound_now(inner, cost), cost);
        io::ErrorKind::StorageFull.into()
    }

    /// A trusted key signed for it: it is of this channel, whose bundles may take `share`.
    pub(super) fn vouch(&self, channel: &ChannelName, share: Share) {
        let mut inner = self.lock();
        self.space.set_share(channel, share);
        if inner.closed || inner.owner.as_ref().is_some_and(|owner| owner.channel == *channel) {
            return;
        }
        if inner.owner.is_none() {
            self.space.end_unsigned();
        }
        let owner = Owner { channel: channel.clone(), key: self.key };
        self.space.move_class(inner.total(), inner.owner.as_ref(), Some(&owner));
        inner.owner = Some(owner);
    }

    /// The bundle has gone: all of it is given back, and nothing is counted any more.
    pub(super) fn close(&self) {
        let mut inner = self.lock();
        if inner.closed {
            return;
        }
        self.space.settle(inner.promised, inner.owner.as_ref());
        self.space.change(inner.written(), Cost::default(), inner.owner.as_ref());
        if inner.owner.is_none() {
            self.space.end_unsigned();
        }
        (inner.items, inner.promised) = ([Cost::default(); ITEMS], Cost::default());
        inner.closed = true;
    }

    pub(super) fn refused_cost(&self) -> Cost {
        self.lock().refused_cost
    }

    pub(super) fn total(&self) -> Cost {
        self.lock().total()
    }

    pub(super) fn channel(&self) -> Option<ChannelName> {
        self.lock().owner.as_ref().map(|owner| owner.channel.clone())
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn written(&self) -> Cost {
        self.items.iter().copied().sum()
    }

    fn total(&self) -> Cost {
        self.written() + self.promised
    }
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        let mut inner = self.account.lock();
        if !inner.closed {
            inner.promised = inner.promised.exchanged(self.cost, Cost::default());
            self.account.space.settle(self.cost, inner.owner.as_ref());
        }
    }
}
