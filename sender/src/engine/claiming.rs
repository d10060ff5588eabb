//! From a name in the spool to a bundle with a sequence, or to `.failed`.

use std::ffi::OsString;
use std::io;
use std::sync::Arc;

use checkvalve_host::disk::Kind;
use checkvalve_host::journal::Sync;
use checkvalve_host::log::escape_path;
use checkvalve_protocol::id::{BundleId, ChannelName};

use super::{Actions, CLAIMS, Engine, HeldUp, RETRY_MS, Topic};
use crate::bundle::{Identity, RefuseReason, Shown};
use crate::bundles::{Claim, Content, Record, Stage};
use crate::holding::{Home, name_bytes};
use crate::ledger::{BundleRecord, State};
use crate::spool::{Decision, Place, is_ignored};
use crate::work::{Loaded, Planning, Work};

impl Engine {
    /// Scans every folder for changes that inotify missed.
    pub(super) fn scan_if_due(&mut self) {
        if self.now.mono_ms < self.next_scan_ms {
            return;
        }
        self.next_scan_ms = self.now.mono_ms.saturating_add(self.setup.rescan_ms.max(1));
        let disk = Arc::clone(&self.setup.disk);
        let channels: Vec<_> = self.setup.channels.keys().cloned().collect();
        for channel in channels {
            let folder = self.holding.folder(&channel);
            let scanned = self
                .holding
                .ensure_folder(disk.as_ref(), &channel)
                .and_then(|()| self.spool.scan(disk.as_ref(), &channel, &folder, self.now.mono_ms));
            let about = Topic::Folder(channel);
            match scanned {
                Ok(()) => self.untrouble(&about),
                Err(error) => self.trouble(about, format!("{}: {error}", escape_path(&folder))),
            }
        }
        self.look_for_strays();
    }

    /// Claims names that are complete, and probes those that may be.
    pub(super) fn claim(&mut self, actions: &mut Actions) {
        for decision in self.spool.decide(self.now.mono_ms, CLAIMS) {
            match decision {
                Decision::Claim(place) => self.claim_one(&place),
                Decision::Probe(place) => {
                    let path = self.holding.folder(&place.0).join(&place.1);
                    actions.work.push(Work::Probe { place, path });
                }
            }
        }
    }

    /// Plans each channel's oldest claim, one at a time per channel: a sequence is used up only when its bundle is planned.
    pub(super) fn plan_next(&mut self, actions: &mut Actions) {
        let channels: Vec<_> = self.bundles.channels().cloned().collect();
        for channel in channels {
            if self.is_held_up(&HeldUp::Planning(channel.clone())) {
                continue;
            }
            let Some(claim) = self.bundles.next_claim(&channel).cloned() else { continue };
            let Some(sequence) = self.bundles.next_sequence(&channel) else {
                self.refuse(claim, &RefuseReason::NoSequence(channel));
                continue;
            };
            actions.work.push(Work::Plan(Box::new(Planning {
                holding: self.holding.clone(),
                home: claim.home.clone(),
                identity: Identity {
                    bundle: claim.home.id(),
                    sequence,
                    name: claim.name.clone(),
                    created_ms: claim.claimed_ms,
                    channel: channel.clone(),
                    symbol_size: self.setup.parameters.symbol_size(),
                    block_symbols: self.setup.parameters.block_symbols(),
                },
                key: Arc::clone(&self.setup.key),
            })));
            self.bundles.set_stage(claim.home.id(), Stage::Planning(claim));
        }
    }

    /// Handles the result of planning a claim.
    pub(super) fn planned(&mut self, id: BundleId, planned: Result<Loaded, RefuseReason>) {
        let Some(Stage::Planning(claim)) = self.bundles.record(id).map(Record::stage) else { return };
        let (claim, channel) = (claim.clone(), claim.home.channel().clone());
        match planned {
            Ok(loaded) => {
                self.untrouble(&Topic::Planning);
                let record = BundleRecord {
                    sequence: Some(loaded.plan.announce.sequence),
                    name: claim.name.clone(),
                    inode: claim.inode,
                    claimed_ms: claim.claimed_ms,
                    bytes: loaded.plan.data_len(),
                    entries: loaded.plan.announce.entries.len() as u64,
                    announce: crate::work::digest(&loaded.announce),
                    fingerprint: loaded.fingerprint,
                    symbol_size: loaded.plan.announce.symbol_size,
                    block_symbols: loaded.plan.announce.block_symbols,
                    due_ms: Some(self.bundles.uptime_ms()),
                    ..BundleRecord::new(id, channel.clone(), State::Queued)
                };
                let (sequence, bytes, entries) = (record.sequence, record.bytes, record.entries);
                if self.queue(record, loaded).is_ok() {
                    tracing::info!(%channel, sequence, bundle = %id, bytes, entries,
                        name = %Shown::new(&claim.name), "queued");
                } else {
                    // No sequence was used up. The claim is planned again later.
                    self.plan_again(channel, claim);
                }
            }
            Err(reason) if reason.is_temporary() => {
                self.trouble(Topic::Planning, reason.to_string());
                self.plan_again(channel, claim);
            }
            Err(reason) => self.refuse(claim, &reason),
        }
    }

    /// Moves the content of failed bundles to `.failed`, including those for which an earlier attempt failed.
    pub(super) fn fail_again(&mut self) {
        if self.is_held_up(&HeldUp::Failing) {
            return;
        }
        let disk = Arc::clone(&self.setup.disk);
        for id in self.bundles.failing() {
            let Some(record) = self.bundles.record(id) else { continue };
            let Content::Failing(reason) = record.content() else { continue };
            let home = self.holding.find(disk.as_ref(), record.channel(), id);
            let moved = home.and_then(|home| match home {
                Some(home) => self.holding.fail(disk.as_ref(), &home, reason).map(drop),
                None => Ok(()),
            });
            match moved {
                Ok(()) => {
                    self.bundles.set_content(id, Content::Kept);
                    if let Some(mut record) = self.bundles.get(id).cloned() {
                        record.held = false;
                        self.put_later(record, Sync::No);
                    }
                    self.untrouble(&Topic::Failed);
                }
                Err(error) => {
                    self.trouble(Topic::Failed, format!("a refused bundle cannot be moved to .failed: {error}"));
                    self.hold_up(HeldUp::Failing);
                }
            }
        }
    }

    fn claim_one(&mut self, place: &Place) {
        let id = self.new_id();
        let disk = Arc::clone(&self.setup.disk);
        match self.holding.claim(disk.as_ref(), &place.0, &place.1, id) {
            Ok(home) => {
                self.spool.forget(place);
                tracing::debug!(channel = %place.0, bundle = %id, name = %Shown::path(place.1.as_ref()), "claimed");
                self.take(home, place.1.clone());
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => self.spool.forget(place),
            Err(error) => {
                let why = self.why_unclaimable(place, &error);
                if self.spool.unclaimable(place, why.clone(), self.now.mono_ms, RETRY_MS) {
                    tracing::warn!(channel = %place.0, name = %Shown::path(place.1.as_ref()), "cannot be claimed: {why}");
                }
            }
        }
    }

    /// Adds a claim, made now or before a restart, to those that wait to be planned.
    pub(super) fn take(&mut self, home: Home, name: OsString) {
        let inode = home.meta(self.setup.disk.as_ref()).map_or(0, |meta| meta.ino);
        self.bundles.claimed(Claim { home, name: name_bytes(name), inode, claimed_ms: self.now.wall_ms, turn: 0 });
    }

    fn why_unclaimable(&self, place: &Place, error: &io::Error) -> String {
        let path = self.holding.folder(&place.0).join(&place.1);
        let is_directory = self.setup.disk.lstat(&path).is_ok_and(|meta| meta.kind == Kind::Directory);
        match error.kind() {
            // rename(2): a directory that moves to another parent has its `..` rewritten.
            io::ErrorKind::PermissionDenied if is_directory => {
                format!("{error}; the sender's user needs to write to the channel's folder and to the directory itself")
            }
            io::ErrorKind::PermissionDenied => {
                format!(
                    "{error}; the sender's user needs to write to the channel's folder (and own what is in it, if it is sticky)"
                )
            }
            io::ErrorKind::CrossesDevices => format!("{error}; the channel's folder must be one file system"),
            _ => error.to_string(),
        }
    }

    fn plan_again(&mut self, channel: ChannelName, claim: Claim) {
        self.hold_up(HeldUp::Planning(channel));
        self.bundles.set_stage(claim.home.id(), Stage::Claimed(claim));
    }

    fn refuse(&mut self, claim: Claim, reason: &RefuseReason) {
        let Claim { home, name, inode, claimed_ms, .. } = claim;
        let (id, channel, reason) = (home.id(), home.channel().clone(), reason.to_string());
        tracing::warn!(%channel, bundle = %id, name = %Shown::new(&name), "refused: {reason}");
        let record = BundleRecord {
            name,
            inode,
            claimed_ms,
            ..BundleRecord::new(id, channel.clone(), State::Failed(reason.clone()))
        };
        self.put_later(record, Sync::No);
        self.bundles.set_stage(id, Stage::Idle);
        self.bundles.set_content(id, Content::Failing(reason));
    }

    pub(super) fn new_id(&mut self) -> BundleId {
        loop {
            let id = BundleId::new((self.setup.random)(), self.signer);
            // Zero looks like a missing id, and an id in use shows that the number was not random enough.
            if id.0 != 0 && self.bundles.record(id).is_none() {
                return id;
            }
        }
    }

    /// Reports files in the spool that are in no channel's folder, because they will never be sent.
    fn look_for_strays(&mut self) {
        let Ok(names) = self.setup.disk.read_dir(&self.setup.spool) else { return };
        let known =
            |name: &OsString| name.to_str().is_some_and(|n| self.setup.channels.keys().any(|c| c.as_str() == n));
        let strays: Vec<_> = names.into_iter().filter(|name| !is_ignored(name) && !known(name)).collect();
        let Some(first) = strays.first() else { return self.untrouble(&Topic::Spool) };
        let shown = Shown::path(first.as_ref());
        let path = self.setup.spool.join(first);
        let is_directory = self.setup.disk.lstat(&path).is_ok_and(|meta| meta.kind == Kind::Directory);
        let what = match first.to_str().filter(|_| is_directory) {
            Some(name) if ChannelName::new(name).is_ok() => {
                format!("is no channel: add a table [channel.{name}] for it and restart, or remove the folder")
            }
            _ if is_directory => "cannot be a channel, by its name: remove it".to_owned(),
            _ => "is in no channel's folder".to_owned(),
        };
        let more = if strays.len() > 1 { format!(", and {} more", strays.len() - 1) } else { String::new() };
        self.trouble(Topic::Spool, format!("{shown} in the spool {what}; nothing in it is sent{more}"));
    }
}
