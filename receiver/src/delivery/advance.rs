//! From whole to published.
//!
//! 1. Bytes that came before the announce move to their files, and what came out of order is hashed.
//! 2. The hashes are those of this announce, by its signer, and every file has the hash that was signed.
//! 3. Modes, times and symlinks are set, the manifest is recorded, all is synced.
//! 4. One rename puts it in the inbox; then the audit trail, then the ledger say so; then staging is cleaned.
//!
//! After a crash between any two of these the same steps are gone through again and find what was done.

mod prove;

use std::io;
use std::sync::{Arc, PoisonError};

use checkvalve_host::disk::Disk;
use checkvalve_host::log::{escape_bytes, escape_path};
use checkvalve_protocol::admit::{Admitted, admit};
use checkvalve_protocol::id::{BundleId, ChannelName};
use checkvalve_protocol::limits::MAX_MANIFEST_LEN;
use checkvalve_protocol::manifest::Outcome;
use checkvalve_protocol::wire::ObjectKind;

use self::prove::Proven;
pub(super) use self::prove::{Proving, Stop};
use super::adopting::Adopting;
use super::refusing::{Refusal, Refusing};
use super::shared::{Clock, CurrentTrust, Policies, Waker, is_missing};
use super::spoilt::Clearing;
use super::staging::Staging;
use super::telling::{announced, subject};
use crate::audit::{Audit, Event};
use crate::inbox::check::{Mismatch, check};
use crate::inbox::{Address, Inbox, Published};
use crate::ledger::file::LedgerFile;
use crate::ledger::{Entry, Hold};
use crate::sink::StoreError;
use crate::store::{Staged, Store};

/// Takes bundles to the inbox.
pub(super) struct Publishing {
    pub(super) clock: Arc<Clock>,
    pub(super) trust: Arc<CurrentTrust>,
    pub(super) policies: Arc<Policies>,
    pub(super) disk: Arc<dyn Disk>,
    pub(super) ledger: Arc<LedgerFile>,
    pub(super) store: Arc<Store>,
    pub(super) inbox: Arc<Inbox>,
    pub(super) audit: Arc<Audit>,
    pub(super) staging: Arc<Staging>,
    pub(super) adopting: Arc<Adopting>,
    pub(super) proving: Proving,
    pub(super) refusing: Arc<Refusing>,
    pub(super) clearing: Arc<Clearing>,
    pub(super) waker: Arc<Waker>,
}

impl Publishing {
    /// Takes a bundle as far as it can go.
    pub(super) fn advance(&self, id: BundleId) {
        // A known bundle gets its place in staging even before its first block, since it may have no blocks.
        let is_known = self.ledger.lock().reception.get(id).is_some();
        let Some(staged) = (if is_known { self.staging.begin(id) } else { self.store.get(id) }) else { return };
        let _alone = staged.advancing.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(entry) = self.ledger.lock().entry(id).cloned() else {
            // Nothing but hashes so far: they wait on the disk for their announce.
            if is_known && let Err(error) = self.adopting.adopt(&staged) {
                tracing::debug!(bundle = %id, %error, "hashes are not kept");
                self.staging.let_go(id);
            }
            return;
        };
        if !entry.state().is_open() {
            self.staging.clean_up(id);
            return;
        }
        let advanced = self.try_advance(&staged, &entry);
        // It was withdrawn or given up meanwhile, and what staging had of it removed: that is no fault of the disk.
        let is_over = || self.ledger.lock().entry(id).is_none_or(|entry| !entry.state().is_open());
        match advanced {
            Ok(()) | Err(Stop::Wait) => {}
            Err(Stop::Gone | Stop::Disk(_) | Stop::Sync(_)) if is_over() => self.staging.clean_up(id),
            Err(Stop::Refuse(refusal)) => self.refusing.quarantine(id, &refusal, None),
            Err(Stop::Withdrawn(reason)) => self.refusing.withdrawn(id, &reason),
            Err(Stop::Spoilt(files)) => self.clearing.spoilt(&staged, &files),
            Err(Stop::NotKept(files)) => self.clearing.not_kept(&staged, &files),
            Err(Stop::Taken(holder)) => self.refusing.hold(entry, Hold::Sequence { holder }),
            Err(Stop::Disk(StoreError::Unwanted)) => {}
            // A fault while a file got its place, or somebody removed it: nothing of the bundle is believed.
            Err(Stop::Gone) => {
                self.staging
                    .begin_again(id, "staging does not hold what its journal says; all of it has to come again");
            }
            Err(Stop::Disk(error)) => self.staging.trouble(id, &error.to_string()),
            Err(Stop::Sync(error)) => {
                self.staging.trouble(id, &format!("sync failed, to be sent again: {error}"));
            }
        }
    }

    /// Up to the inbox, and into it.
    fn try_advance(&self, staged: &Staged, entry: &Entry) -> Result<(), Stop> {
        match self.prepare(staged, entry) {
            Ok(Some(proven)) => self.publish(staged, entry, &proven),
            Ok(None) => Ok(()),
            Err(Stop::Disk(StoreError::Disk(error))) if is_gone(&error) => Err(Stop::Gone),
            Err(stop) => Err(stop),
        }
    }

    /// Steps 1 to 3, in staging. None: it is in the inbox already.
    fn prepare(&self, staged: &Staged, entry: &Entry) -> Result<Option<Proven>, Stop> {
        let settled = self.proving.settle(staged)?;
        if settled.hashes && self.adopt_published(staged)? {
            return Ok(None);
        }
        self.proving.prove(staged, entry, &settled).map(Some)
    }

    /// Whether the bundle went to the inbox before a crash: then that is written down now.
    pub(super) fn adopt_published(&self, staged: &Staged) -> Result<bool, Stop> {
        if !is_missing(self.disk.as_ref(), &staged.out())? {
            return Ok(false);
        }
        let object = |kind| self.store.object(staged, kind, MAX_MANIFEST_LEN as u64);
        let (Some(announce), Some(hashes)) = (object(ObjectKind::Announce)?, object(ObjectKind::Hashes)?) else {
            return Ok(false);
        };
        let Ok(admitted) = admit(staged.id, &announce, Some(&hashes), &self.trust.get()) else { return Ok(false) };
        let Admitted { announce, outcome: Some(Outcome::Complete { files }) } = admitted else { return Ok(false) };
        let path = self.inbox.path(&announce.value.channel, announce.value.sequence);
        if is_missing(self.disk.as_ref(), &path)? {
            return Ok(false);
        }
        match check(self.disk.as_ref(), &path, &announce.value, &files) {
            Ok(()) => {}
            Err(Mismatch::Disk { error, .. }) => return Err(error.into()),
            Err(_) => return Ok(false),
        }
        self.inbox.keep_names(&announce.value.channel)?;
        let now = self.clock.now();
        if self.ledger.lock().announced(announced(&announce, announce.value.data_len()), now).is_err() {
            return Ok(false);
        }
        let Some(entry) = self.ledger.lock().entry(staged.id).cloned() else { return Ok(false) };
        self.published(&entry, &announce.value.channel);
        Ok(true)
    }

    /// The rest of step 3, and step 4, after which it is published.
    fn publish(&self, staged: &Staged, entry: &Entry, proven: &Proven) -> Result<(), Stop> {
        let Proven { tree, losses, .. } = proven;
        let Some(channel) = entry.channel.clone() else { return Err(Stop::Wait) };
        let place = Address { id: staged.id, channel: Some(channel.clone()), sequence: entry.sequence };
        let recorded =
            self.inbox.record(&place, &staged.object(ObjectKind::Announce), &staged.object(ObjectKind::Hashes));
        recorded.map_err(|error| if is_gone(&error) { Stop::Gone } else { error.into() })?;
        let sync = self.store.syncs.begin();
        if let Err(error) = self.inbox.settle(tree) {
            self.staging.sync_failed(staged.id, &error);
            return Err(Stop::of_sync(error));
        }
        sync.good();
        if staged.losses() != *losses {
            return Err(Stop::Wait); // another sync was told that this bundle's bytes are not on the disk
        }
        // What came for it meanwhile may have ended it; from here on nothing does.
        if !self.ledger.lock().begin_publishing(staged.id) {
            return Err(Stop::Wait);
        }
        if let Err(stop) = self.move_in(staged.id, entry, proven, &channel) {
            // If it is in the inbox and only its name may not last, nothing ends it before that is mended.
            if !matches!(is_missing(self.disk.as_ref(), &staged.out()), Ok(true)) {
                self.ledger.lock().not_published(staged.id);
            }
            return Err(stop);
        }
        self.published(entry, &channel);
        Ok(())
    }

    /// Step 4.
    fn move_in(&self, id: BundleId, entry: &Entry, proven: &Proven, channel: &ChannelName) -> Result<(), Stop> {
        let Proven { tree, signed, .. } = proven;
        let path = self.inbox.path(channel, entry.sequence);
        let in_inbox = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", escape_path(&path)));
        if self.inbox.publish(tree.root(), channel, entry.sequence).map_err(in_inbox)? == Published::Taken {
            match check(self.disk.as_ref(), &path, tree.announce(), signed) {
                Ok(()) => {}
                Err(Mismatch::Disk { error, .. }) => return Err(error.into()),
                Err(mismatch) => {
                    if let Some(rival) = self.ledger.lock().rival(id) {
                        return Err(Stop::Taken(rival));
                    }
                    let reason = format!("the inbox has something else in its place: {mismatch}");
                    return Err(Stop::Refuse(Refusal::new("inbox", reason)));
                }
            }
        }
        Ok(())
    }

    fn published(&self, entry: &Entry, channel: &ChannelName) {
        let now = self.clock.now();
        let manifest = entry.announce.map(|digest| blake3::Hash::from_bytes(digest).to_hex().to_string());
        self.audit.note(
            now,
            &Event::Published { bundle: subject(entry), bytes: entry.bytes, manifest: manifest.unwrap_or_default() },
        );
        self.clearing.published(entry.id);
        self.ledger.lock().published(entry.id, channel, self.policies.has_hook(channel), now);
        if !self.ledger.keep() {
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
        self.staging.clean_up(entry.id);
        self.waker.wake();
    }
}

/// Whether what was to be read or changed in staging is not there.
fn is_gone(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::UnexpectedEof)
}
