//! Makes jobs of bundles whose turn it is, and updates a bundle's state when its job ends.

use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use checkvalve_host::journal::Sync;
use checkvalve_protocol::id::{BundleId, ChannelName};
use checkvalve_protocol::limits::MAX_ESI;
use checkvalve_protocol::transmit::Selection;

use super::{Actions, Engine, KEEP_MS, Topic};
use crate::bundle::{Plan, Shown};
use crate::bundles::{Announced, Content, Due, Kind, Ready, Record, Stage, Submitted, Withdrawal};
use crate::holding::Home;
use crate::ledger::{BundleRecord, LedgerError, Resend, State};
use crate::pipeline::{Finished, Job, Progress, Transmission};
use crate::work::{LoadError, Loaded, Loading, Work, digest, hashes_digest};

/// How many jobs of a channel the pipeline has at a time: one on the wire, and one to follow without a pause.
const SLOTS: usize = 2;
/// How many entries the plans that are kept ready may have in total. Other bundles are planned again in their turn.
const READY_ENTRIES: usize = 50_000;

impl Engine {
    /// Gives a new bundle its sequence. If its channel is idle, the same sync also reserves the ESIs to send it at once.
    pub(super) fn queue(&mut self, mut record: BundleRecord, loaded: Loaded) -> Result<(), LedgerError> {
        let idle = self.slots_free(&record.channel) > 0 && self.next_of(&record.channel).is_none();
        let reserved = idle.then(|| self.reserve(&mut record));
        let id = record.id;
        self.put(record, Sync::Yes)?;
        self.bundles.set_stage(id, Stage::Ready(Ready { loaded, reserved }));
        Ok(())
    }

    /// Gives every channel with a free slot its next bundle.
    pub(super) fn send_next(&mut self, actions: &mut Actions) {
        let channels: Vec<_> = self.bundles.channels().cloned().collect();
        for channel in channels {
            while self.slots_free(&channel) > 0 {
                let Some(id) = self.next_of(&channel) else { break };
                let Some(record) = self.bundles.get(id).cloned() else { break };
                match self.bundles.set_stage(id, Stage::Idle) {
                    Some(Stage::Ready(ready)) => actions.jobs.extend(self.job(record, ready)),
                    _ => self.load(record, actions),
                }
            }
        }
        self.keep_few_ready();
    }

    /// Tells the receiver which bundles will not come. The ledger says so first, so that a later run does not send them.
    pub(super) fn withdraw_next(&mut self, actions: &mut Actions) {
        for id in self.bundles.withdrawing() {
            let Some(record) = self.bundles.get(id).cloned() else { continue };
            let Some(Stage::Withdrawing(withdrawal)) = self.bundles.set_stage(id, Stage::Idle) else { continue };
            let Withdrawal { announced, esis, reason } = withdrawal;
            let mut job = self.job_of(record, Kind::Withdrawal, announced, esis, PathBuf::new());
            job.order.withdrawn = Some(reason);
            actions.jobs.push(job);
        }
    }

    /// Notes which jobs have reached the wire since the last call. Beacons should say so.
    pub(super) fn look_at_jobs(&mut self) {
        for id in self.bundles.waiting() {
            if self.bundles.record(id).is_some_and(|record| record.on_wire().is_some()) {
                self.bundles.begun(id);
                self.beacon_changed = true;
            }
        }
    }

    /// Handles the result of loading a bundle: it is ready, or cannot be sent.
    pub(super) fn loaded(&mut self, id: BundleId, loaded: Result<Loaded, LoadError>) {
        let Some(record) = self.bundles.get(id).cloned() else { return };
        if !matches!(self.bundles.record(id).map(Record::stage), Some(Stage::Loading)) {
            return;
        }
        self.bundles.set_stage(id, Stage::Idle);
        match loaded {
            Ok(loaded) => {
                self.untrouble(&Topic::Loading);
                self.bundles.set_stage(id, Stage::Ready(Ready { loaded, reserved: None }));
            }
            Err(LoadError::Disk(error)) => self.load_later(&record, &error),
            Err(LoadError::Withdraw { reason, .. }) if record.passes_done > 0 => self.stop_sending(record, &reason),
            Err(LoadError::Withdraw { reason, announce }) => {
                let announced = announce.map(|announce| {
                    let (announce, content) = *announce;
                    Announced { plan: Arc::new(Plan::broken(content, &*reason)), announce: Arc::new(announce) }
                });
                self.fail(record, reason, announced);
            }
        }
    }

    pub(super) fn job_finished(&mut self, id: BundleId, finished: Finished) {
        let Some(job) = self.bundles.take_submitted(id) else { return };
        if job.kind() == Kind::Withdrawal {
            // From now on, beacons say that the bundle is withdrawn.
            self.beacon_changed = true;
            return;
        }
        let Some(record) = self.bundles.get(id).cloned() else { return };
        match finished {
            Finished::Transmitted { hashes } => self.transmitted(record, job.kind(), &hashes),
            // The receiver was promised the bundle, and may well have it already.
            Finished::Failed { reason } if record.passes_done > 0 => self.stop_sending(record, &reason.to_string()),
            Finished::Failed { reason } => self.fail(record, reason.to_string(), Some(job.into_announced())),
            // It continues in the next session, or at once if the pipeline is still running.
            Finished::Aborted | Finished::Withdrawn => {}
        }
    }

    fn slots_free(&self, channel: &ChannelName) -> usize {
        SLOTS.saturating_sub(self.bundles.under_way(channel))
    }

    fn next_of(&self, channel: &ChannelName) -> Option<BundleId> {
        let uptime = self.bundles.uptime_ms();
        let is_due = |due: &Due| !due.scheduled || due.at_ms <= uptime;
        self.bundles.next_due(channel).filter(is_due).map(|due| due.id)
    }

    fn load(&mut self, record: BundleRecord, actions: &mut Actions) {
        let home = match self.home(&record) {
            Ok(Some(home)) => home,
            Ok(None) => return self.is_gone(record),
            Err(error) => return self.load_later(&record, &error.to_string()),
        };
        if record.next_esi > 0 && record.symbol_size > self.setup.parameters.symbol_size() {
            let reason = "it was begun with a larger `link.mtu` than the present one; drop it again";
            return if record.passes_done > 0 {
                self.stop_sending(record, reason)
            } else {
                self.fail(record, reason.to_owned(), None)
            };
        }
        self.bundles.set_stage(record.id, Stage::Loading);
        let loading = self.loading(home, record);
        actions.work.push(Work::Load(Box::new(loading)));
    }

    /// The work that checks a bundle and makes it ready to send.
    pub(super) fn loading(&self, home: Home, record: BundleRecord) -> Loading {
        let parameters = &self.setup.parameters;
        Loading {
            home,
            record,
            key: Arc::clone(&self.setup.key),
            symbol_size: parameters.symbol_size(),
            block_symbols: parameters.block_symbols(),
        }
    }

    /// The job for a bundle's next transmission, with durably reserved ESIs. None: it cannot begin now.
    fn job(&mut self, mut record: BundleRecord, ready: Ready) -> Option<Job> {
        let Ready { loaded, reserved } = ready;
        let kind = Kind::of(&record);
        let home = match self.home(&record) {
            Ok(Some(home)) => home,
            Ok(None) => {
                self.is_gone(record);
                return None;
            }
            Err(error) => {
                self.load_later(&record, &error.to_string());
                return None;
            }
        };
        let esis = match reserved {
            Some(esis) => esis,
            None => {
                let said = &loaded.plan.announce;
                if (record.symbol_size, record.block_symbols) != (said.symbol_size, said.block_symbols) {
                    // The announce was signed anew, because nothing of the bundle was sent yet.
                    (record.symbol_size, record.block_symbols) = (said.symbol_size, said.block_symbols);
                    record.announce = digest(&loaded.announce);
                }
                let esis = self.reserve(&mut record);
                record.fingerprint = loaded.fingerprint;
                if self.put(record.clone(), Sync::Yes).is_err() {
                    self.wait(record.id);
                    return None;
                }
                esis
            }
        };
        let announced = Announced { plan: loaded.plan, announce: Arc::new(loaded.announce) };
        let mut job = self.job_of(record, kind, announced, esis, home.root());
        job.known_hashes = loaded.hashes;
        Some(job)
    }

    /// Makes a job and marks the bundle as submitted.
    fn job_of(
        &mut self,
        record: BundleRecord,
        kind: Kind,
        announced: Announced,
        esis: Range<u32>,
        root: PathBuf,
    ) -> Job {
        let progress = Arc::new(Progress::default());
        let submitted = Submitted::new(kind, Arc::clone(&progress), announced.clone());
        self.bundles.set_stage(record.id, Stage::Submitted(submitted));
        self.beacon_changed = true;
        let rules = self.rules(&record.channel);
        let pass = if kind == Kind::Pass {
            record.passes_done.saturating_add(1)
        } else {
            rules.passes.max(record.passes_done)
        };
        tracing::info!(channel = %record.channel, sequence = record.sequence, bundle = %record.id,
            bytes = record.bytes, pass, passes = rules.passes, kind = kind.name(), "transmitting");
        Job {
            order: Transmission {
                bundle: record.id,
                sequence: record.sequence.unwrap_or_default(),
                priority: rules.priority,
                announce: announced.announce,
                announce_digest: record.announce,
                data_len: record.bytes,
                symbol_size: record.symbol_size,
                block_symbols: record.block_symbols,
                first_esi: esis.start,
                pass,
                passes: rules.passes.max(pass),
                selection: if kind == Kind::Resend { selection(record.resends.first()) } else { Selection::All },
                withdrawn: None,
                progress,
                channel: record.channel,
            },
            plan: announced.plan,
            root,
            esi_limit: esis.end,
            known_hashes: None,
        }
    }

    /// Reserves ESIs for the next transmission and marks the bundle as begun.
    pub(super) fn reserve(&self, record: &mut BundleRecord) -> Range<u32> {
        let parameters = self.setup.parameters;
        let count = parameters.with_block(record.symbol_size, record.block_symbols).esis_per_pass();
        let first = match record.next_esi.checked_add(count) {
            Some(end) if end <= MAX_ESI => record.next_esi,
            // The ESIs are used up. After thousands of transmissions, the first repair symbols are as good as new ones.
            _ => u32::from(record.block_symbols),
        };
        record.next_esi = first.saturating_add(count);
        record.begin();
        first..record.next_esi
    }

    fn transmitted(&mut self, mut record: BundleRecord, kind: Kind, hashes: &[[u8; 32]]) {
        if record.hashes.is_none() {
            record.hashes = Some(hashes_digest(hashes));
            // If this fails, the hashes are computed again when they are needed, and checked against the digest.
            if let Ok(Some(home)) = self.home(&record) {
                drop(home.write_hashes(self.setup.disk.as_ref(), hashes));
            }
        }
        let rules = self.rules(&record.channel);
        let uptime = self.bundles.uptime_ms();
        record.sent = record.sent.saturating_add(1);
        match kind {
            Kind::Pass => {
                record.passes_done = record.passes_done.saturating_add(1);
                record.due_ms = Some(self.bundles.after(rules.pass_interval_ms));
                if record.passes_done >= rules.passes {
                    record.end(Some(self.now.wall_ms), uptime);
                }
            }
            // Not if a newer bundle of the same name replaced it in the carousel while it was sent.
            Kind::Carousel => {
                record.due_ms = record.due_ms.and(rules.carousel_ms).map(|every| self.bundles.after(every))
            }
            Kind::Resend => drop((!record.resends.is_empty()).then(|| record.resends.remove(0))),
            Kind::Withdrawal => {}
        }
        tracing::info!(channel = %record.channel, sequence = record.sequence, bundle = %record.id,
            bytes = record.bytes, passes_done = record.passes_done, kind = kind.name(), "transmitted");
        let (channel, is_over) = (record.channel.clone(), record.state == State::Transmitted);
        self.put_later(record, Sync::Yes);
        if is_over && kind == Kind::Pass {
            if rules.carousel_ms.is_some() {
                self.turn_carousel(&channel);
            }
            // This looks at all bundles, so it must not run after each of a thousand small ones.
            self.next_keeping_ms = self.next_keeping_ms.min(self.now.mono_ms.saturating_add(KEEP_MS));
        }
    }

    /// Withdraws a bundle. It keeps its sequence, and its held content goes to `.failed`. If its announce is known, the
    /// receiver is told why.
    fn fail(&mut self, mut record: BundleRecord, reason: String, announced: Option<Announced>) {
        tracing::error!(channel = %record.channel, sequence = record.sequence, bundle = %record.id,
            name = %Shown::new(&record.name), "failed: {reason}");
        if let Some(announced) = announced {
            if record.next_esi == 0 {
                // None of its data was or will be sent, so its announce and hashes may use the current symbol size.
                let parameters = self.setup.parameters;
                (record.symbol_size, record.block_symbols) = (parameters.symbol_size(), parameters.block_symbols());
            }
            let esis = self.reserve(&mut record);
            let withdrawal = Withdrawal { announced, esis, reason: reason.clone() };
            self.bundles.set_stage(record.id, Stage::Withdrawing(withdrawal));
        }
        record.give_up(reason.clone());
        let id = record.id;
        self.put_later(record, Sync::Yes);
        self.bundles.set_content(id, Content::Failing(reason));
    }

    /// Ends all further passes and resends of a bundle that was sent at least once. It still counts as transmitted.
    fn stop_sending(&mut self, mut record: BundleRecord, reason: &str) {
        if record.state != State::Transmitted {
            record.end(Some(self.now.wall_ms), self.bundles.uptime_ms());
        }
        let shown = format!("{}/{}", record.channel, record.sequence.unwrap_or_default());
        self.trouble(Topic::Bundle(shown), format!("cannot be sent again: {reason}"));
        record.due_ms = None;
        record.resends.clear();
        record.held = !matches!(self.home(&record), Ok(None));
        self.put_later(record, Sync::Yes);
    }

    fn is_gone(&mut self, record: BundleRecord) {
        if record.passes_done > 0 {
            self.stop_sending(record, "it is not held any more");
        } else {
            self.fail(record, "what was held of it is gone".to_owned(), None);
        }
    }

    fn load_later(&mut self, record: &BundleRecord, error: &str) {
        self.trouble(Topic::Loading, format!("{}: {error}", Shown::new(&record.name)));
        self.wait(record.id);
    }

    pub(super) fn home(&self, record: &BundleRecord) -> io::Result<Option<Home>> {
        self.holding.find(self.setup.disk.as_ref(), &record.channel, record.id)
    }

    /// Drops ready plans beyond a limit, because plans of large trees are large. They are made again in their turn.
    fn keep_few_ready(&mut self) {
        let entries = |ready: &Ready| ready.loaded.plan.announce.entries.len();
        let mut sum: usize = self.bundles.ready().map(|(_, ready)| entries(ready)).sum();
        while sum > READY_ENTRIES {
            let Some((id, ready)) = self.bundles.ready().next_back() else { break };
            sum -= entries(ready);
            self.bundles.set_stage(id, Stage::Idle);
        }
    }
}

fn selection(resend: Option<&Resend>) -> Selection {
    match resend {
        Some(Resend { ranges, symbols, .. }) if !ranges.is_empty() => {
            let symbols = symbols.iter().copied().chain(std::iter::repeat(None));
            Selection::Ranges(ranges.iter().zip(symbols).map(|(&(from, to), symbols)| (from..to, symbols)).collect())
        }
        _ => Selection::All,
    }
}
