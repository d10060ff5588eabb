//! Steps 1 to 3: proves that what staging has of a bundle is what was signed, and makes it ready.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use checkvalve_host::disk::is_loss;
use checkvalve_protocol::admit::{Verdict, admit_hashes};
use checkvalve_protocol::id::BundleId;
use checkvalve_protocol::limits::MAX_MANIFEST_LEN;
use checkvalve_protocol::manifest::Outcome;
use checkvalve_protocol::wire::ObjectKind;

use super::super::adopting::Adopting;
use super::super::jobs::{Job, Jobs};
use super::super::refusing::Refusal;
use super::super::shared::{CurrentTrust, Discards};
use super::super::staging::Staging;
use crate::inbox::{FinishError, Inbox};
use crate::ledger::file::LedgerFile;
use crate::ledger::{Entry, Live};
use crate::sink::{Lost, StoreError};
use crate::store::tree::Tree;
use crate::store::{Staged, Store};

/// Bytes read back for hashing before others get the lock.
const CATCH_UP: u64 = 16 << 20;

/// What the disk has of a bundle.
pub(super) struct Settled {
    pub(super) hashes: bool,
    /// Its hashes came before its announce.
    unjudged: bool,
    losses: u64,
}

/// A bundle that is ready to be published.
pub(super) struct Proven {
    pub(super) tree: Arc<Tree>,
    /// The hashes of its files.
    pub(super) signed: Vec<[u8; 32]>,
    /// How often it had lost data before they were compared.
    pub(super) losses: u64,
}

/// What stands between a bundle and the inbox.
pub(in crate::delivery) enum Stop {
    /// It waits for something to arrive.
    Wait,
    /// The disk.
    Disk(StoreError),
    /// A sync failed: what was stored may be lost.
    Sync(io::Error),
    /// Staging does not hold what it should.
    Gone,
    /// It is not what was signed: refused for good.
    Refuse(Refusal),
    /// The sender gave it up, for this reason.
    Withdrawn(String),
    /// These files do not have the content that was signed, and the disk may be to blame.
    NotKept(Vec<Range<u64>>),
    /// These files do not have the content that was signed: it was sent wrong.
    Spoilt(Vec<Range<u64>>),
    /// Another bundle has its sequence.
    Taken(BundleId),
}

impl Stop {
    /// A sync failed with this error.
    pub(super) fn of_sync(error: io::Error) -> Self {
        if is_loss(&error) { Self::Sync(error) } else { error.into() }
    }
}

impl From<StoreError> for Stop {
    fn from(error: StoreError) -> Self {
        Self::Disk(error)
    }
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        Self::Disk(error.into())
    }
}

/// Proves bundles.
pub(in crate::delivery) struct Proving {
    pub(in crate::delivery) trust: Arc<CurrentTrust>,
    pub(in crate::delivery) ledger: Arc<LedgerFile>,
    pub(in crate::delivery) store: Arc<Store>,
    pub(in crate::delivery) inbox: Arc<Inbox>,
    pub(in crate::delivery) staging: Arc<Staging>,
    pub(in crate::delivery) adopting: Arc<Adopting>,
    pub(in crate::delivery) jobs: Arc<Jobs>,
    pub(in crate::delivery) discards: Arc<Discards>,
}

impl Proving {
    /// All that came is on the disk, and in its files.
    pub(super) fn settle(&self, staged: &Staged) -> Result<Settled, Stop> {
        self.adopting.adopt(staged)?;
        let losses = staged.losses();
        // What came in the meantime is not on the disk yet; the thread that took it has queued another job.
        let on_disk = |live: &Live| {
            let hashes = live.hashes && live.pending_hashes.is_none();
            (live.announced && live.adopting.is_none(), hashes, hashes && live.unjudged)
        };
        let (announced, hashes, unjudged) = self.staging.live(staged.id, on_disk).unwrap_or_default();
        if !announced {
            return Err(Stop::Wait);
        }
        if self.staging.telling_losses(|| self.store.move_flat(staged))? {
            self.jobs.push(Job::Advance(staged.id)); // after what others have to do
            return Err(Stop::Wait);
        }
        Ok(Settled { hashes, unjudged, losses })
    }

    /// Steps 1 to 3, in staging.
    pub(super) fn prove(&self, staged: &Staged, entry: &Entry, settled: &Settled) -> Result<Proven, Stop> {
        let &Settled { hashes, unjudged, losses } = settled;
        if unjudged {
            // Do not wait for the data: a withdrawn bundle may get none, and wrong hashes keep the right ones out.
            let tree = self.store.tree(staged)?.ok_or(Stop::Wait)?;
            self.signed_hashes(staged, entry, &tree)?;
            if let Some(live) = self.ledger.lock().reception.get_mut(staged.id) {
                live.unjudged = false;
            }
        }
        let mut before = None;
        while !self.store.catch_up(staged, CATCH_UP)? {
            let hashed = staged.hashed();
            if before == Some(hashed) {
                return Err(Stop::Wait);
            }
            before = Some(hashed);
        }
        if !hashes {
            return Err(Stop::Wait);
        }
        let tree = self.store.tree(staged)?.ok_or(Stop::Wait)?;
        let signed = self.signed_hashes(staged, entry, &tree)?;
        let differing = self.store.differing(staged, &tree, &signed).ok_or(Stop::Wait)?;
        let spans = differing.iter().filter_map(|&at| tree.files().get(at));
        let wrong: Vec<Range<u64>> = spans.map(|span| span.offset..span.end()).collect();
        if wrong.iter().any(Range::is_empty) {
            // An empty file has but one content.
            return Err(Stop::Refuse(Refusal::new("content", "the hash of an empty file is not that of no bytes")));
        }
        if wrong.is_empty()
            && let Some(live) = self.ledger.lock().reception.get_mut(staged.id)
        {
            live.spoilt.clear();
            live.clear = false;
        }
        if !wrong.is_empty() {
            // It may be the disk: after a failed sync, what it returns may not be what came.
            let by_disk = self.store.may_have_lost(staged, &wrong);
            return Err(if by_disk { Stop::NotKept(wrong) } else { Stop::Spoilt(wrong) });
        }
        if self.store.is_doubtful(staged) {
            self.staging.telling_losses(|| self.store.checkpoint()).map_err(Stop::of_sync)?;
            self.store.read_again(staged, &tree)?;
            self.jobs.push(Job::Advance(staged.id));
            return Err(Stop::Wait);
        }
        self.ledger.lock().win(staged.id).map_err(Stop::Taken)?;
        // Only while it syncs do others wait for it: making its files may take long.
        let synced = |sync: &dyn Fn() -> io::Result<()>| {
            let _running = self.store.syncs.begin();
            sync().inspect_err(|error| self.staging.sync_failed(staged.id, error))
        };
        match self.inbox.finish(&tree, &synced) {
            Ok(()) => {}
            Err(FinishError::Disk(error)) => return Err(error.into()),
            Err(FinishError::Sync(error)) => return Err(Stop::of_sync(error)),
        }
        Ok(Proven { tree, signed, losses })
    }

    /// The hash of every file as signed. The signature was checked when they came; the trusted keys may have changed.
    fn signed_hashes(&self, staged: &Staged, entry: &Entry, tree: &Tree) -> Result<Vec<[u8; 32]>, Stop> {
        let bytes = self.store.object(staged, ObjectKind::Hashes, MAX_MANIFEST_LEN as u64)?.ok_or(Stop::Gone)?;
        let (Some(signer), Some(digest)) = (&entry.signer, entry.announce) else { return Err(Stop::Wait) };
        match admit_hashes(tree.announce(), signer.key, &digest, &bytes, &self.trust.get()).map(|hashes| hashes.outcome)
        {
            Ok(Outcome::Complete { files }) => Ok(files),
            Ok(Outcome::Withdrawn { reason }) => Err(Stop::Withdrawn(reason)),
            Err(Verdict::Refuse { error, .. }) => Err(Stop::Refuse(Refusal::of(&error))),
            // They came before the announce, and are not its: others may come.
            Err(verdict @ (Verdict::Discard(_) | Verdict::Unknown { .. })) => {
                self.discards.add(verdict.error().rule());
                if let Some(live) = self.ledger.lock().reception.get_mut(staged.id) {
                    live.hashes = false;
                }
                self.store.drop_object(staged, ObjectKind::Hashes)?;
                self.staging.lose(staged.id, Lost::All);
                Err(Stop::Wait)
            }
        }
    }
}
