//! Whose turn it is for the hook, and what must wait while one runs. Which hooks run is not written down: none does after a
//! start.

use checkvalve_protocol::id::{BundleId, ChannelName};

use super::{Channel, Entry, Ledger, Next, State};

/// Why a bundle is not changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unchanged {
    /// There is none.
    Unknown,
    /// It has come to an end.
    Over(State),
    /// Its hook runs, or it is being judged.
    Busy,
}

impl Ledger {
    /// Whose turn it is in a channel; `wait_ms` as in [`Channel::next`].
    pub fn next(&mut self, name: &ChannelName, now_ms: u64, wait_ms: Option<u64>) -> Next {
        let entries = &self.entries;
        let Some(channel) = self.channels.get_mut(name) else { return Next::Idle };
        channel.next(|id| entries.get(&id), now_ms, wait_ms)
    }

    /// Starts the hook of the bundle whose turn it is, and gives that bundle. None: the channel's hook runs, or has nothing to
    /// do now.
    pub fn start_next(&mut self, name: &ChannelName, now_ms: u64, wait_ms: Option<u64>) -> Option<Entry> {
        if self.is_running(name) {
            return None;
        }
        let Next::Run(id) = self.next(name, now_ms, wait_ms) else { return None };
        if self.suspended.contains(&id) {
            return None;
        }
        let start = |entry: &mut Entry| {
            entry.install();
            entry.attempt += 1;
            entry.not_before_ms = 0;
        };
        let entry = self.change(id, now_ms, start).cloned()?;
        self.change_channel(name, |channel| {
            channel.pass(entry.sequence);
            channel.set_running(true);
        });
        Some(entry)
    }

    /// The hook of a bundle was not started after all, and is not before this.
    pub fn not_started(&mut self, id: BundleId, name: &ChannelName, now_ms: u64, not_before_ms: u64) {
        self.change(id, now_ms, |entry| entry.not_before_ms = not_before_ms);
        self.hook_over(name);
    }

    /// The hook of a channel runs no more.
    pub fn hook_over(&mut self, name: &ChannelName) {
        self.change_channel(name, |channel| channel.set_running(false));
    }

    /// A bundle goes into the inbox now: nothing ends it before it is there, or [`Ledger::not_published`]. False: it has come to an
    /// end, or staging has it no more.
    pub fn begin_publishing(&mut self, id: BundleId) -> bool {
        let is_open = self.entry(id).is_some_and(|entry| entry.state().is_open());
        let Some(live) = self.reception.get_mut(id).filter(|_| is_open) else { return false };
        live.publishing = true;
        true
    }

    /// It did not get there.
    pub fn not_published(&mut self, id: BundleId) {
        if let Some(live) = self.reception.get_mut(id) {
            live.publishing = false;
        }
    }

    /// Whether it is on its way there.
    #[must_use]
    pub fn is_publishing(&self, id: BundleId) -> bool {
        self.reception.get(id).is_some_and(|live| live.publishing)
    }

    /// Ends a bundle by what came for it. False: it has come to an end, or is on its way into the inbox.
    pub fn end(&mut self, id: BundleId, now_ms: u64, how: impl FnOnce(&mut Entry)) -> bool {
        let may = self.entry(id).is_some_and(|entry| entry.state().is_open()) && !self.is_publishing(id);
        may && self.change(id, now_ms, how).is_some()
    }

    /// A bundle is in the inbox. With a hook, it waits for its turn, unless a later one had it already.
    pub fn published(&mut self, id: BundleId, name: &ChannelName, has_hook: bool, now_ms: u64) {
        let passed = self.channels.get(name).map_or(0, Channel::passed);
        let published = self.change(id, now_ms, |entry| {
            if has_hook && passed > entry.sequence {
                entry.supersede(Some(format!("sequence {passed} went to the hook before it arrived")));
            } else {
                entry.complete();
            }
        });
        if let Some(sequence) = published.filter(|_| !has_hook).map(|entry| entry.sequence) {
            self.change_channel(name, |channel| channel.pass(sequence));
        }
    }

    /// A later bundle of the same channel that is installed: what is installed is never replaced by something older.
    #[must_use]
    pub fn newer_installed(&self, entry: &Entry) -> Option<&Entry> {
        let channel = self.channels.get(entry.channel.as_ref()?)?;
        let later = channel.slots(entry.sequence.saturating_add(1)..);
        later.filter_map(|(_, id)| self.entry(id)).find(|e| e.state() == State::Installed)
    }

    /// After a start of the daemon: gives the turn back to each bundle whose hook's end was not written down although its channel went
    /// on. A power cut leaves that where a batch of records reached the disk in part. If a later bundle is installed by now, the
    /// hook failed instead; returns those.
    pub fn settle_turns(&mut self, now_ms: u64) -> Vec<Entry> {
        let is_past = |entry: &&Entry| {
            let channel = entry.channel.as_ref().and_then(|name| self.channels.get(name));
            entry.state() == State::Installing && channel.is_some_and(|channel| entry.sequence < channel.passed())
        };
        let past: Vec<Entry> = self.entries.values().filter(is_past).cloned().collect();
        let mut failed = Vec::new();
        for entry in past {
            let newer = self.newer_installed(&entry).map(|newer| newer.sequence);
            match (newer, &entry.channel) {
                (Some(newer), _) => {
                    let reason = format!("how its hook ended was lost, and sequence {newer} is installed since");
                    failed.extend(self.change(entry.id, now_ms, |entry| entry.fail(Some(reason))).cloned());
                }
                (None, Some(name)) => {
                    self.change_channel(name, |channel| channel.turn_back(entry.sequence));
                }
                (None, None) => {}
            }
        }
        failed
    }

    /// The hook of a bundle that failed has its turn again.
    pub fn turn_back(&mut self, id: BundleId, now_ms: u64) {
        let failed = self.change(id, now_ms, |entry| {
            entry.complete();
            entry.not_before_ms = 0;
        });
        let failed = failed.map(|entry| (entry.channel.clone(), entry.sequence));
        if let Some((Some(name), sequence)) = failed {
            self.change_channel(&name, |channel| channel.turn_back(sequence));
        }
    }

    /// A hook that is to run again need not wait for its time. Errors: it runs by now.
    pub fn run_now(&mut self, id: BundleId, now_ms: u64) -> Result<(), Unchanged> {
        let entry = self.entry(id).ok_or(Unchanged::Unknown)?;
        if self.is_busy(entry) || entry.state() != State::Installing {
            return Err(Unchanged::Busy);
        }
        self.change(id, now_ms, |entry| entry.not_before_ms = 0);
        Ok(())
    }

    /// An operator gives a bundle up, also one that was refused or failed: then it is no longer kept in mind. Gives it as it
    /// was. Errors: [`Unchanged`].
    pub fn reject(&mut self, id: BundleId, now_ms: u64) -> Result<Entry, Unchanged> {
        let entry = self.entry(id).cloned().ok_or(Unchanged::Unknown)?;
        if entry.state().is_over() && !matches!(entry.state(), State::Quarantined | State::Failed) {
            return Err(Unchanged::Over(entry.state()));
        }
        if self.is_busy(&entry) {
            return Err(Unchanged::Busy);
        }
        self.change(id, now_ms, |entry| entry.reject(Some("given up by an operator".into())));
        Ok(entry)
    }

    /// From now on the hook of a bundle does not start, until [`Ledger::resume`]. False: it runs.
    pub fn suspend(&mut self, id: BundleId) -> bool {
        let is_free = self.entry(id).is_some_and(|entry| !self.is_busy(entry));
        is_free && self.suspended.insert(id)
    }

    /// The hook of a bundle may start.
    pub fn resume(&mut self, id: BundleId) {
        self.suspended.remove(&id);
    }

    fn is_busy(&self, entry: &Entry) -> bool {
        let runs = || entry.channel.as_ref().is_some_and(|name| self.is_running(name));
        self.suspended.contains(&entry.id) || entry.state() == State::Installing && runs()
    }

    fn is_running(&self, name: &ChannelName) -> bool {
        self.channels.get(name).is_some_and(Channel::is_running)
    }
}
