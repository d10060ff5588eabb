//! Opening an engine: turns the state on the disk into work.
//!
//! The ledger says what was decided, and the holding area what exists. After any crash, each bundle is in one of these states:
//!
//! - claimed and not in the ledger: it is planned, under another id;
//! - in the ledger and held: it continues where it was;
//! - failed and still held: it is moved to `.failed`;
//! - no longer retained but still held: it is removed;
//! - unsent and no longer held: it is withdrawn.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use checkvalve_host::disk::Disk;
use checkvalve_host::journal::Sync;
use checkvalve_protocol::beacon::Epoch;
use checkvalve_protocol::id::EpochId;
use checkvalve_protocol::manifest::Announce;
use checkvalve_protocol::transmit::Parameters;

use super::{Engine, Now, Setup};
use crate::bundle::Shown;
use crate::bundles::{Bundles, Content};
use crate::holding::{Found, Holding};
use crate::ledger::{BundleRecord, Damage, LedgerError, State};
use crate::spool::Spool;
use crate::work;

/// Why the sender cannot start.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The ledger cannot be opened or written.
    #[error("ledger: {0}")]
    Ledger(#[from] LedgerError),
    /// The spool or the holding area cannot be used.
    #[error("{path}: {error}")]
    Disk {
        /// Where.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
}

impl Engine {
    /// Opens the ledger, spool and holding area, cleans up after a crash, and begins a session.
    /// Errors: [`OpenError`]; no dropped file is lost then.
    pub fn open(setup: Setup, now: Now) -> Result<Self, OpenError> {
        let disk = Arc::clone(&setup.disk);
        let (bundles, damage) = Bundles::open(&disk, &setup.state.join("ledger"))?;
        let holding = Holding::open(disk.as_ref(), &setup.spool, &setup.state, setup.channels.keys().cloned())
            .map_err(|(path, error)| OpenError::Disk { path, error })?;
        let held = holding.scan(disk.as_ref()).map_err(|error| OpenError::Disk { path: setup.state.clone(), error })?;
        let signer = setup.key.public().id();
        let mut engine = Self {
            spool: Spool::new(setup.settle_ms),
            setup,
            holding,
            bundles,
            epoch: Epoch { number: 0, id: EpochId(0) },
            session_number: 0,
            signer,
            now,
            next_scan_ms: now.mono_ms,
            next_keeping_ms: now.mono_ms,
            next_uptime_ms: now.mono_ms,
            work: Vec::new(),
            held_up: BTreeMap::new(),
            troubles: BTreeMap::new(),
            beacon_changed: true,
        };
        engine.mend(&damage, held)?;
        engine.begin()?;
        Ok(engine)
    }

    /// Begins a session. Also begins the first epoch if the ledger has none.
    fn begin(&mut self) -> Result<(), LedgerError> {
        self.epoch = match self.bundles.epoch() {
            Some(epoch) => epoch,
            None => {
                let first = Epoch { number: 1, id: EpochId((self.setup.random)()) };
                self.bundles.begin_epoch(first)?;
                first
            }
        };
        self.session_number = self.bundles.begin_session()?;
        Ok(())
    }

    fn mend(&mut self, damage: &Damage, held: Vec<Found>) -> Result<(), OpenError> {
        let damaged = damage.is_real();
        if damaged {
            let bytes: u64 = damage.corrupt.iter().map(|range| range.len).sum();
            tracing::error!(
                bytes,
                records = damage.unknown,
                "the ledger was damaged; what is missing is rebuilt from what is held"
            );
        }
        let mut rebuilt = false;
        if damaged || damage.empty {
            for found in &held {
                let parameters = &self.setup.parameters;
                if let Some(record) = taken_back(&self.bundles, self.setup.disk.as_ref(), parameters, found) {
                    self.bundles.remember(record);
                    rebuilt = true;
                }
            }
        }
        // One rewrite for everything: until it is done, the journal still shows its damage.
        if damaged || rebuilt {
            self.bundles.rewrite()?;
        }
        let there: BTreeSet<_> = held.iter().filter(|f| f.name.is_some()).map(|f| f.home.id()).collect();
        for found in held {
            self.mend_found(found)?;
        }
        let records: Vec<_> = self.bundles.iter().cloned().collect();
        for record in records {
            let is_there = there.contains(&record.id);
            self.mend_record(record, is_there)?;
        }
        let channels: Vec<_> = self.bundles.channels().cloned().collect();
        channels.iter().for_each(|channel| self.turn_carousel(channel));
        Ok(())
    }

    fn mend_found(&mut self, found: Found) -> Result<(), OpenError> {
        let Found { home, name, .. } = found;
        match (self.bundles.get(home.id()), name) {
            (None, Some(name)) => {
                tracing::info!(channel = %home.channel(), name = %Shown::path(name.as_ref()), "claimed before the restart");
                // The receiver may know this id from before the ledger lost it, or the id may belong to another key.
                let id = self.new_id();
                let moved = home.reassign(self.setup.disk.as_ref(), id);
                let home = moved.map_err(|error| OpenError::Disk { path: home.root(), error })?;
                self.take(home, name);
            }
            (None, None) => drop(home.remove(self.setup.disk.as_ref())),
            (Some(BundleRecord { state: State::Failed(reason), .. }), Some(_)) => {
                let failing = Content::Failing(reason.clone());
                self.bundles.set_content(home.id(), failing);
            }
            (Some(record), Some(_)) if record.held => {}
            // It is no longer retained, and the crash came before it was removed.
            (Some(_), _) => self.bundles.set_content(home.id(), Content::Leftover(home)),
        }
        Ok(())
    }

    fn mend_record(&mut self, mut record: BundleRecord, is_there: bool) -> Result<(), LedgerError> {
        let before = record.clone();
        if !is_there {
            record.held = false;
            record.resends.clear();
            if record.is_unsent() && record.passes_done > 0 {
                record.end(None, self.bundles.uptime_ms());
            } else if record.is_unsent() {
                record.give_up("what was held of it is gone".to_owned());
                tracing::error!(channel = %record.channel, sequence = record.sequence, bundle = %record.id,
                    "gone from the holding area before it was sent: withdrawn");
            }
        }
        let rules = self.rules(&record.channel);
        if record.is_unsent() && record.passes_done > 0 && record.passes_done >= rules.passes {
            record.end(None, self.bundles.uptime_ms());
        }
        if record.due_ms.is_some_and(|at| at > self.bundles.after(rules.pass_interval_ms)) && record.is_unsent() {
            record.due_ms = Some(self.bundles.after(rules.pass_interval_ms));
        }
        if record == before { Ok(()) } else { self.put(record, Sync::No) }
    }
}

/// Rebuilds a bundle's record from its announce if the ledger lost it, because no other bundle may get the same sequence.
pub(crate) fn taken_back(
    bundles: &Bundles,
    disk: &dyn Disk,
    parameters: &Parameters,
    found: &Found,
) -> Option<BundleRecord> {
    if bundles.get(found.home.id()).is_some() {
        return None;
    }
    let bytes = found.home.read_announce(disk).ok()?;
    let announce = Announce::peek(&bytes).ok()?;
    if announce.bundle != found.home.id() || bundles.by_sequence(&announce.channel, announce.sequence).is_some() {
        return None;
    }
    tracing::warn!(channel = %announce.channel, sequence = announce.sequence, bundle = %announce.bundle,
        "found held and not in the ledger");
    let (symbol_size, block_symbols) = (announce.symbol_size, announce.block_symbols);
    Some(BundleRecord {
        sequence: Some(announce.sequence),
        claimed_ms: announce.created_ms,
        bytes: announce.data_len(),
        entries: announce.entries.len() as u64,
        announce: work::digest(&bytes),
        hashes: found.home.read_hashes(disk).ok().map(|hashes| work::hashes_digest(&hashes)),
        // Nothing records any more which ESIs were used. This starts above the ESIs of one pass.
        next_esi: 2 * parameters.with_block(symbol_size, block_symbols).esis_per_pass(),
        due_ms: Some(bundles.uptime_ms()),
        name: announce.name,
        symbol_size,
        block_symbols,
        ..BundleRecord::new(announce.bundle, announce.channel, State::Transmitting)
    })
}
