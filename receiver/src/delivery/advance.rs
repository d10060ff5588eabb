//! From whole to published.
//!
//! 1. Bytes that came before the announce move to their files, and what came out of order is hashed.
//! 2. The hashes are those of this announce, by its signer, and every file has the hash that was signed.
//! 3. Modes, times and symlinks are set, the manifest is recorded, all is synced.
//! 4. One rename puts it in the inbox; then the audit trail, then the ledger say so; then staging is cleaned.
//!
//! After a crash between any two of these the same steps are gone through again and find what was done.

use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, PoisonError};

use checkvalve_host::log::{escape_bytes, escape_path};
use checkvalve_protocol::admit::{Admitted, Verdict, admit, admit_hashes};
use checkvalve_protocol::id::{BundleId, ChannelName};
use checkvalve_protocol::limits::MAX_MANIFEST_LEN;
use checkvalve_protocol::manifest::Outcome;
use checkvalve_protocol::wire::ObjectKind;

use super::alarms::Code;
use super::refusing::Refusal;
use super::telling::{announced, number, subject};
use super::{Delivery, Job};
use crate::audit::Event;
use crate::inbox::check::{Mismatch, check};
use crate::inbox::{Address, FinishError, Published};
use crate::ledger::{Entry, Hold, Live};
use crate::sink::{Lost, StoreError};
use crate::store::Staged;
use crate::store::tree::Tree;

/// Bytes read back for hashing before others get the lock.
const CATCH_UP: u64 = 16 << 20;

/// A bundle that is ready to be published, the signed hashes of its files, and how often it had lost data before they
/// were compared.
type Prepared = (Arc<Tree>, Vec<[u8; 32]>, u64);

/// What stands between a bundle and the inbox.
pub(super) enum Stop {
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
    /// These files do not have the content that was signed, and a sync has failed: the disk may be to blame.
    NotKept(Vec<Range<u64>>),
    /// These files do not have the content that was signed: it was sent wrong.
    Spoilt(Vec<Range<u64>>),
    /// Another bundle has its sequence.
    Taken(BundleId),
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

impl Delivery {
    /// Takes a bundle as far as it can go.
    pub(super) fn advance(&self, id: BundleId) {
        // A known bundle gets its place in staging even before its first block, since it may have no blocks.
        let is_known = self.ledger.lock().reception.get(id).is_some();
        let Some(staged) = (if is_known { self.begin(id) } else { self.store.get(id) }) else { return };
        let _alone = staged.advancing.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(entry) = self.ledger.lock().entry(id).cloned() else {
            // Nothing but hashes so far: they wait on the disk for their announce.
            if is_known && let Err(error) = self.adopt(&staged) {
                tracing::debug!(bundle = %id, %error, "hashes are not kept");
                self.let_go(id);
            }
            return;
        };
        if !entry.state().is_open() {
            self.clean_up(id);
            return;
        }
        match self.try_advance(&staged, &entry) {
            Ok(()) | Err(Stop::Wait) => {}
            Err(Stop::Refuse(refusal)) => self.quarantine(id, &refusal, None),
            Err(Stop::Withdrawn(reason)) => self.withdrawn(id, &reason),
            Err(Stop::Spoilt(files)) => self.spoilt(&staged, &files),
            Err(Stop::NotKept(files)) => self.not_kept(&staged, &files),
            Err(Stop::Taken(holder)) => {
                let hold = Hold::Sequence { holder };
                let mut held = entry;
                held.reason = Some(self.held_reason(&held, &hold, &self.handle(&held)));
                self.hold(held, hold);
            }
            Err(Stop::Disk(StoreError::Unwanted)) => {}
            // A fault while a file got its place, or somebody removed it: nothing of the bundle is believed.
            Err(Stop::Gone) => {
                self.begin_again(id, "staging does not hold what its journal says; all of it has to come again");
            }
            Err(Stop::Disk(error)) => self.trouble(id, &error.to_string()),
            Err(Stop::Sync(error)) => {
                self.trouble(id, &format!("sync failed, to be sent again: {error}"));
            }
        }
    }

    /// Up to the inbox, and into it.
    fn try_advance(&self, staged: &Staged, entry: &Entry) -> Result<(), Stop> {
        match self.prepare(staged, entry) {
            Ok(Some((tree, signed, losses))) => self.publish(staged, entry, &tree, &signed, losses),
            Ok(None) => Ok(()),
            Err(Stop::Disk(StoreError::Disk(error))) if is_gone(&error) => Err(Stop::Gone),
            Err(stop) => Err(stop),
        }
    }

    /// Content that did not match its hashes is thrown away and asked for again: whoever has the link key can spoil it.
    fn spoilt(&self, staged: &Staged, files: &[Range<u64>]) {
        let (id, now) = (staged.id, self.now());
        let bytes = files.iter().map(|range| range.end.saturating_sub(range.start)).fold(0, u64::saturating_add);
        let why =
            format!("{} of its files did not have the content that was signed and have to come again", files.len());
        if let Err(error) = self.throw_away(staged, files) {
            return self.begin_again(id, &format!("{why}; so does the rest: {error}"));
        }
        if let Some(live) = self.ledger.lock().reception.get_mut(id) {
            (live.spoilt, live.clear) = (files.to_vec(), true);
        }
        let entry = self.ledger.lock().change(id, now, |entry| entry.spoilt = entry.spoilt.saturating_add(1)).cloned();
        let Some(entry) = entry else { return };
        if let Some(suppressed) = self.throttle.allow(now) {
            let (number, times) = (number(&entry), entry.spoilt);
            tracing::error!(bundle = %id, number, files = files.len(), bytes, times, suppressed, "spoilt on the way");
        }
        self.note(now, &Event::Spoilt { bundle: subject(&entry), files: files.len() as u64, bytes });
        self.alarm(
            Code::Spoilt,
            &id.to_string(),
            &format!(
                "{}: {why}: somebody spoils what is on the link, or a cable does; once it is incomplete, `checkvalve-receiver ticket {}` asks \
                 for it",
                number(&entry),
                self.handle(&entry)
            ),
        );
    }

    /// Whoever spoils data on the link may go on after it was noticed, so data that came meanwhile may be spoilt as
    /// well. It is discarded once nothing more comes, and again when a ticket is printed, so that it does not mix with
    /// what is sent again. True: there was something to discard.
    pub(super) fn clear_spoilt(&self, id: BundleId, for_ticket: bool) -> bool {
        if self.live(id, |live| live.spoilt.is_empty()) != Some(false) {
            return false;
        }
        let Some(staged) = self.store.get(id) else { return false };
        let _alone = staged.advancing.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(entry) = self.ledger.lock().entry(id).cloned() else { return false };
        let files = {
            let mut ledger = self.ledger.lock();
            // It may be sent again by now, or whole and right.
            let is_due = |live: &Live| match for_ticket {
                true => !live.spoilt.is_empty() && !self.is_whole(id, live),
                false => self.is_to_be_cleared(&entry, live, self.now()),
            };
            let Some(live) = ledger.reception.get_mut(id).filter(|live| is_due(live)) else { return false };
            live.clear = false;
            if for_ticket { std::mem::take(&mut live.spoilt) } else { live.spoilt.clone() }
        };
        if let Err(error) = self.throw_away(&staged, &files) {
            tracing::debug!(bundle = %id, %error, "what came after spoilt content is not thrown away yet");
            if let Some(live) = self.ledger.lock().reception.get_mut(id) {
                (live.spoilt, live.clear) = (files, true);
            }
        }
        true
    }

    /// These bytes are not stored any more, and the data plane forgets what it has of them.
    fn throw_away(&self, staged: &Staged, files: &[Range<u64>]) -> Result<(), StoreError> {
        let discarded = self.store.discard_ranges(staged, files);
        self.lose(staged.id, Lost::All);
        if let Some(live) = self.ledger.lock().reception.get_mut(staged.id) {
            live.progress = None;
        }
        discarded
    }

    /// The device did not keep what was written to it, and said so for something else or not at all.
    fn not_kept(&self, staged: &Staged, files: &[Range<u64>]) {
        let (id, count) = (staged.id, files.len());
        let why = format!(
            "the disk did not keep {count} of its files, or they were spoilt on the way; they have to come again"
        );
        if let Err(error) = self.throw_away(staged, files) {
            return self.begin_again(id, &format!("{why}; so does the rest: {error}"));
        }
        staged.doubt();
        self.trouble(id, &why);
    }

    /// Steps 1 to 3, in staging. None: it is in the inbox already.
    fn prepare(&self, staged: &Staged, entry: &Entry) -> Result<Option<Prepared>, Stop> {
        self.adopt(staged)?;
        let losses = staged.losses();
        // What came in the meantime is not on the disk yet; the thread that took it has queued another job.
        let on_disk = |live: &Live| {
            let hashes = live.hashes && live.pending_hashes.is_none();
            (live.announced && live.adopting.is_none(), hashes, hashes && live.unjudged)
        };
        let (announced, hashes, unjudged) = self.live(staged.id, on_disk).unwrap_or_default();
        if !announced {
            return Err(Stop::Wait);
        }
        if self.store.move_flat(staged).inspect_err(|_| self.all_lost())? {
            self.enqueue(Job::Advance(staged.id)); // after what others have to do
            return Err(Stop::Wait);
        }
        if hashes && self.adopt_published(staged)? {
            return Ok(None);
        }
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
            let by_disk = self.store.has_failed_syncs();
            return Err(if by_disk { Stop::NotKept(wrong) } else { Stop::Spoilt(wrong) });
        }
        if self.store.is_doubtful(staged) {
            self.store.checkpoint().inspect_err(|_| self.all_lost()).map_err(Stop::Sync)?;
            self.store.read_again(staged, &tree)?;
            self.enqueue(Job::Advance(staged.id));
            return Err(Stop::Wait);
        }
        self.ledger.lock().win(staged.id).map_err(Stop::Taken)?;
        let sync = self.store.syncs.begin();
        match self.inbox.finish(&tree) {
            Ok(()) => {}
            Err(FinishError::Disk(error)) => return Err(error.into()),
            Err(FinishError::Sync(error)) => {
                self.give_up_unsynced();
                return Err(Stop::Sync(error));
            }
        }
        drop(sync);
        Ok(Some((tree, signed, losses)))
    }

    /// Whether the bundle went to the inbox before a crash: then that is written down now.
    pub(super) fn adopt_published(&self, staged: &Staged) -> Result<bool, Stop> {
        if !self.is_missing(&staged.out())? {
            return Ok(false);
        }
        let object = |kind| self.store.object(staged, kind, MAX_MANIFEST_LEN as u64);
        let (Some(announce), Some(hashes)) = (object(ObjectKind::Announce)?, object(ObjectKind::Hashes)?) else {
            return Ok(false);
        };
        let Ok(admitted) = admit(staged.id, &announce, Some(&hashes), &self.trust()) else { return Ok(false) };
        let Admitted { announce, outcome: Some(Outcome::Complete { files }) } = admitted else { return Ok(false) };
        let path = self.inbox.path(&announce.value.channel, announce.value.sequence);
        if self.is_missing(&path)? {
            return Ok(false);
        }
        match check(self.disk.as_ref(), &path, &announce.value, &files) {
            Ok(()) => {}
            Err(Mismatch::Disk { error, .. }) => return Err(error.into()),
            Err(_) => return Ok(false),
        }
        self.inbox.keep_names(&announce.value.channel)?;
        let now = self.now();
        if self.ledger.lock().announced(announced(&announce, announce.value.data_len()), now).is_err() {
            return Ok(false);
        }
        let Some(entry) = self.ledger.lock().entry(staged.id).cloned() else { return Ok(false) };
        self.published(&entry, &announce.value.channel);
        Ok(true)
    }

    pub(super) fn is_missing(&self, path: &Path) -> io::Result<bool> {
        match self.disk.lstat(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
            other => other.map(|_| false),
        }
    }

    /// The rest of step 3, and step 4.
    fn publish(
        &self,
        staged: &Staged,
        entry: &Entry,
        tree: &Tree,
        signed: &[[u8; 32]],
        losses: u64,
    ) -> Result<(), Stop> {
        let Some(channel) = entry.channel.clone() else { return Err(Stop::Wait) };
        let place = Address { id: staged.id, channel: Some(channel.clone()), sequence: entry.sequence };
        let recorded =
            self.inbox.record(&place, &staged.object(ObjectKind::Announce), &staged.object(ObjectKind::Hashes));
        recorded.map_err(|error| if is_gone(&error) { Stop::Gone } else { error.into() })?;
        let sync = self.store.syncs.begin();
        if let Err(error) = self.inbox.settle(tree) {
            self.give_up_unsynced();
            return Err(Stop::Sync(error));
        }
        sync.good();
        if staged.losses() != losses {
            return Err(Stop::Wait); // another sync was told that this bundle's bytes are not on the disk
        }
        let path = self.inbox.path(&channel, entry.sequence);
        let in_inbox = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", escape_path(&path)));
        if self.inbox.publish(tree.root(), &channel, entry.sequence).map_err(in_inbox)? == Published::Taken {
            match check(self.disk.as_ref(), &path, tree.announce(), signed) {
                Ok(()) => {}
                Err(Mismatch::Disk { error, .. }) => return Err(error.into()),
                Err(mismatch) => {
                    if let Some(rival) = self.ledger.lock().rival(staged.id) {
                        return Err(Stop::Taken(rival));
                    }
                    let reason = format!("the inbox has something else in its place: {mismatch}");
                    return Err(Stop::Refuse(Refusal::new("inbox", reason)));
                }
            }
        }
        self.published(entry, &channel);
        Ok(())
    }

    fn published(&self, entry: &Entry, channel: &ChannelName) {
        let now = self.now();
        let manifest = entry.announce.map(|digest| blake3::Hash::from_bytes(digest).to_hex().to_string());
        self.note(
            now,
            &Event::Published { bundle: subject(entry), bytes: entry.bytes, manifest: manifest.unwrap_or_default() },
        );
        self.no_alarm(Code::Spoilt, &entry.id.to_string());
        let hook = self.policy(channel).hook.is_some();
        {
            let mut ledger = self.ledger.lock();
            let passed = ledger.channel(channel).map_or(0, crate::ledger::Channel::passed);
            let late = hook && passed > entry.sequence;
            ledger.change(entry.id, now, |e| {
                if late {
                    e.supersede(Some(format!("sequence {passed} went to the hook before it arrived")));
                } else {
                    e.complete();
                }
            });
            if !hook {
                ledger.change_channel(channel, |c| c.pass(entry.sequence));
            }
        }
        if !self.save() {
            self.ledger.lock().reception.published_untold(entry.id);
            return;
        }
        tracing::info!(
            bundle = %entry.id,
            %channel,
            sequence = entry.sequence,
            name = escape_bytes(&entry.name),
            bytes = entry.bytes,
            "published"
        );
        self.clean_up(entry.id);
        self.wake();
    }

    /// The hash of every file as signed. The signature was checked when they came; the trusted keys may have changed.
    fn signed_hashes(&self, staged: &Staged, entry: &Entry, tree: &Tree) -> Result<Vec<[u8; 32]>, Stop> {
        let bytes = self.store.object(staged, ObjectKind::Hashes, MAX_MANIFEST_LEN as u64)?.ok_or(Stop::Gone)?;
        let (Some(signer), Some(digest)) = (&entry.signer, entry.announce) else { return Err(Stop::Wait) };
        match admit_hashes(tree.announce(), signer.key, &digest, &bytes, &self.trust()).map(|hashes| hashes.outcome) {
            Ok(Outcome::Complete { files }) => Ok(files),
            Ok(Outcome::Withdrawn { reason }) => Err(Stop::Withdrawn(reason)),
            Err(Verdict::Refuse { error, .. }) => Err(Stop::Refuse(Refusal::of(&error))),
            // They came before the announce, and are not its: others may come.
            Err(verdict @ (Verdict::Discard(_) | Verdict::Unknown { .. })) => {
                self.discards.lock().unwrap_or_else(PoisonError::into_inner).add(verdict.error().rule());
                if let Some(live) = self.ledger.lock().reception.get_mut(staged.id) {
                    live.hashes = false;
                }
                self.store.drop_object(staged, ObjectKind::Hashes)?;
                self.lose(staged.id, Lost::All);
                Err(Stop::Wait)
            }
        }
    }
}

/// Whether what was to be read or changed in staging is not there.
fn is_gone(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::UnexpectedEof)
}
