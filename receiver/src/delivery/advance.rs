//! From whole to published.
//!
//! 1. Bytes that came before the announce move to their files, and what came out of order is hashed.
//! 2. The hashes are those of this announce, by its signer, and every file has the hash that was signed.
//! 3. Modes, times and symlinks are set, the manifest is recorded, all is synced.
//! 4. One rename puts it in the inbox; then the audit trail, then the ledger say so; then staging is cleaned.
//!
//! After a crash between any two of these the same steps are gone through again and find what was done.

use std::io;
use std::path::Path;
use std::sync::{Arc, PoisonError};

use checkvalve_host::log::{escape_bytes, escape_path};
use checkvalve_protocol::id::{BundleId, ChannelName};
use checkvalve_protocol::limits::MAX_MANIFEST_LEN;
use checkvalve_protocol::manifest::{Announce, Hashes, ManifestError, Outcome};
use checkvalve_protocol::wire::ObjectKind;

use super::manifests::{Verdict, announced, subject};
use super::{Delivery, Job};
use crate::audit::Event;
use crate::inbox::check::{Mismatch, check};
use crate::inbox::{FinishError, Place, Published};
use crate::ledger::{Entry, State};
use crate::sink::StoreError;
use crate::store::Staged;
use crate::store::tree::Tree;

/// Bytes read back for hashing before others get the lock.
const CATCH_UP: u64 = 16 << 20;

/// A bundle that is as it shall be, and the hashes of its files as signed.
type Prepared = (Arc<Tree>, Vec<[u8; 32]>);

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
    /// It is not what was signed.
    Refuse(Verdict),
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
        let Some(staged) = self.store.get(id) else { return };
        let _alone = staged.advancing.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(entry) = self.ledger.lock().entry(id).cloned() else { return };
        if !entry.state.is_open() {
            self.discard(id);
            return;
        }
        match self.try_advance(&staged, &entry) {
            Ok(()) | Err(Stop::Wait) => {}
            Err(Stop::Refuse(verdict)) => self.quarantine(id, &verdict, None),
            Err(Stop::Disk(StoreError::Unwanted)) => {}
            // A fault while a file got its place, or somebody removed it: nothing of the bundle is believed.
            Err(Stop::Gone) => {
                self.begin_again(id, "staging does not hold what its journal says; all of it has to come again");
            }
            Err(Stop::Disk(error)) => self.trouble(id, &error.to_string()),
            Err(Stop::Sync(error)) => {
                self.give_up_unsynced();
                self.trouble(id, &format!("sync failed, to be sent again: {error}"));
            }
        }
    }

    /// Up to the inbox, and into it.
    fn try_advance(&self, staged: &Staged, entry: &Entry) -> Result<(), Stop> {
        match self.prepare(staged, entry) {
            Ok(Some((tree, signed))) => self.publish(staged, entry, &tree, &signed),
            Ok(None) => Ok(()),
            Err(Stop::Disk(StoreError::Disk(error))) if is_gone(&error) => Err(Stop::Gone),
            Err(stop) => Err(stop),
        }
    }

    /// Steps 1 to 3, in staging. None: it is in the inbox already.
    fn prepare(&self, staged: &Staged, entry: &Entry) -> Result<Option<Prepared>, Stop> {
        let (announced, hashes) =
            self.lives().get(&staged.id).map_or((false, false), |live| (live.announced, live.hashes));
        if !announced {
            return Err(Stop::Wait);
        }
        if self.store.move_flat(staged)? {
            self.enqueue(Job::Advance(staged.id)); // after what others have to do
            return Err(Stop::Wait);
        }
        if hashes && self.adopt_published(staged)? {
            return Ok(None);
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
        let digests = self.store.digests(staged, &tree).ok_or(Stop::Wait)?;
        if let Some(at) = digests.iter().zip(&signed).position(|(found, signed)| found != signed) {
            let path = &tree.announce().entries[tree.files()[at].entry as usize].path;
            let reason = format!("{} does not have the content that was signed", escape_bytes(path.as_bytes()));
            return Err(Stop::Refuse(Verdict::new("content", reason)));
        }
        self.inbox.finish(&tree).map_err(|error| match error {
            FinishError::Disk(error) => error.into(),
            FinishError::Sync(error) => Stop::Sync(error),
        })?;
        Ok(Some((tree, signed)))
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
        let (announce, hashes) = {
            let trust = self.trust.read().unwrap_or_else(PoisonError::into_inner);
            (Announce::open(&announce, &trust), Hashes::open(&hashes, &trust))
        };
        let (Ok(announce), Ok(hashes)) = (announce, hashes) else { return Ok(false) };
        let (Ok(()), Outcome::Complete { files }) = (hashes.belongs_to(&announce), &hashes.value.outcome) else {
            return Ok(false);
        };
        let path = self.inbox.path(&announce.value.channel, announce.value.sequence);
        if self.is_missing(&path)? {
            return Ok(false);
        }
        match check(self.disk.as_ref(), &path, &announce.value, files) {
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
    fn publish(&self, staged: &Staged, entry: &Entry, tree: &Tree, signed: &[[u8; 32]]) -> Result<(), Stop> {
        let Some(channel) = entry.channel.clone() else { return Err(Stop::Wait) };
        let place = Place { id: staged.id, channel: Some(channel.clone()), sequence: entry.sequence };
        let object = |kind| -> Result<Vec<u8>, Stop> {
            self.store.object(staged, kind, MAX_MANIFEST_LEN as u64)?.ok_or(Stop::Gone)
        };
        self.inbox.record(&place, &object(ObjectKind::Announce)?, &object(ObjectKind::Hashes)?)?;
        self.inbox.settle(tree).map_err(Stop::Sync)?;
        let path = self.inbox.path(&channel, entry.sequence);
        let in_inbox = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", escape_path(&path)));
        if self.inbox.publish(tree.root(), &channel, entry.sequence).map_err(in_inbox)? == Published::Taken {
            match check(self.disk.as_ref(), &path, tree.announce(), signed) {
                Ok(()) => {}
                Err(Mismatch::Disk { error, .. }) => return Err(error.into()),
                Err(mismatch) => {
                    let reason = format!("the inbox has something else in its place: {mismatch}");
                    return Err(Stop::Refuse(Verdict::new("inbox", reason)));
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
        let hook = self.policy(channel).hook.is_some();
        {
            let mut ledger = self.ledger.lock();
            let passed = ledger.channel(channel).map_or(0, crate::ledger::Channel::passed);
            let late = hook && passed > entry.sequence;
            ledger.change(entry.id, now, |e| {
                e.published = true;
                e.state = if late { State::Superseded } else { State::Complete };
                e.reason = late.then(|| format!("sequence {passed} went to the hook before it arrived"));
            });
            if !hook {
                ledger.change_channel(channel, |c| c.pass(entry.sequence));
            }
        }
        if !self.save() {
            // Staging stays, so that the next start finds it in the inbox and says so again.
            self.lives().remove(&entry.id);
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
        self.discard(entry.id);
        self.wake();
    }

    /// The hash of every file as signed. The signature was checked when they came; the trusted keys may have changed.
    fn signed_hashes(&self, staged: &Staged, entry: &Entry, tree: &Tree) -> Result<Vec<[u8; 32]>, Stop> {
        let refuse = |error: ManifestError| Stop::Refuse(Verdict::new(error.rule(), error.to_string()));
        let bytes = self.store.object(staged, ObjectKind::Hashes, MAX_MANIFEST_LEN as u64)?.ok_or(Stop::Gone)?;
        let opened = Hashes::open(&bytes, &self.trust.read().unwrap_or_else(PoisonError::into_inner));
        let opened = opened.map_err(refuse)?;
        if Some(opened.value.announce) != entry.announce {
            return Err(refuse(ManifestError::OtherAnnounce));
        }
        if Some(opened.signer) != entry.signer.as_ref().map(|signer| signer.key) {
            return Err(refuse(ManifestError::OtherSigner(opened.signer)));
        }
        let Outcome::Complete { files } = opened.value.outcome else { return Err(Stop::Wait) };
        match (files.len(), tree.files().len()) {
            (hashes, files) if hashes != files => Err(refuse(ManifestError::HashCount { hashes, files })),
            _ => Ok(files),
        }
    }
}

/// Whether what was to be read or changed in staging is not there.
fn is_gone(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::UnexpectedEof)
}
