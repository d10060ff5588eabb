//! Forgets old bundles, so that memory, disk space and start-up time do not grow with the time that the pair has run.

use checkvalve_protocol::id::{BundleId, ChannelName};

use super::{Entry, HEARD_ONLY, Ledger, MOST_OPEN, State};

/// How many ended bundles are remembered per channel, and how many without a place in one. Of older bundles, the ledger keeps
/// only that their sequences are over.
pub const HISTORY: usize = 10_000;
/// The most ranges of forgotten sequences per channel, because a channel's record holds all of them. Open bundles lie between
/// the ranges.
const MOST_RANGES: usize = MOST_OPEN + HEARD_ONLY;

impl Ledger {
    /// Forgets at most `most` ended bundles beyond [`HISTORY`], even if older ones are still open. Returns them, together with
    /// those that gave way to others since the last call.
    pub fn prune(&mut self, most: usize) -> Vec<Entry> {
        let mut ids = Vec::new();
        // This comes first, because the bundles that the channels forget below have no place any more either.
        self.prune_unplaced(most, &mut ids);
        let names: Vec<ChannelName> = self.channels.keys().cloned().collect();
        for name in names {
            self.prune_channel(&name, most, &mut ids);
        }
        self.changed.extend(&ids);
        let mut gone: Vec<Entry> = ids.iter().filter_map(|id| self.entries.remove(id)).collect();
        // Bundles that gave way may have come again.
        let room = most.saturating_sub(gone.len()).min(self.released.len());
        let released = self.released.drain(..room);
        gone.extend(released.filter(|entry| !self.entries.contains_key(&entry.id)));
        gone
    }

    fn prune_channel(&mut self, name: &ChannelName, most: usize, gone: &mut Vec<BundleId>) {
        let Some(channel) = self.channels.get_mut(name) else { return };
        let room = most.saturating_sub(gone.len());
        if room == 0 || channel.known() <= self.history.max(channel.kept()) || channel.ranges() >= MOST_RANGES {
            return;
        }
        let (passed, entries) = (channel.passed(), &self.entries);
        let all_ended = |ids: &[BundleId]| ids.iter().all(|id| entries.get(id).is_none_or(|e| is_ended(e, passed)));
        let ended = channel.all_claims().filter(|(_, ids)| all_ended(ids));
        let ended: Vec<u64> = ended.map(|(sequence, _)| sequence).collect();
        let beyond = ended.len().saturating_sub(self.history);
        let before = gone.len();
        for &sequence in &ended[..beyond] {
            if gone.len() - before >= room {
                return;
            }
            gone.extend(channel.forget(sequence));
            self.changed_channels.insert(name.clone());
        }
        channel.keep();
    }

    /// Forgets finished bundles without a place in their channel.
    fn prune_unplaced(&mut self, most: usize, gone: &mut Vec<BundleId>) {
        let placed: usize = self.channels.values().map(|channel| channel.known()).sum();
        if self.entries.len().saturating_sub(gone.len()).saturating_sub(placed) <= self.history {
            return; // at most `history` bundles have no place
        }
        let is_placed = |e: &Entry| {
            let channel = e.channel.as_ref().and_then(|name| self.channels.get(name));
            channel.is_some_and(|channel| channel.claims(e.sequence).contains(&e.id))
        };
        let over = self.entries.values().filter(|e| e.state().is_over() && !is_placed(e));
        let mut over: Vec<(u64, BundleId)> = over.map(|e| (e.changed_ms, e.id)).collect();
        over.sort_unstable();
        let room = most.saturating_sub(gone.len());
        over.truncate(over.len().saturating_sub(self.history).min(room));
        gone.extend(over.into_iter().map(|(_, id)| id));
    }

    /// Whether the channel's record says that this sequence is over, although the entry was never written as forgotten. This
    /// happens when the process ends between the two writes.
    pub(super) fn is_forgotten(&self, id: BundleId, name: &ChannelName, sequence: u64) -> bool {
        let channel = self.channels.get(name).filter(|channel| channel.is_over(sequence));
        let entry = self.entries.get(&id).filter(|e| e.announce.is_some());
        channel.zip(entry).is_some_and(|(channel, entry)| is_ended(entry, channel.passed()))
    }

    /// Lets a test remember fewer bundles than [`HISTORY`].
    #[cfg(test)]
    pub(crate) fn remember(&mut self, history: usize) {
        self.history = history;
    }
}

/// Whether nothing more is received or run for an entry, given the last sequence that went to its channel's hook.
fn is_ended(entry: &Entry, passed: u64) -> bool {
    entry.state().is_over() || entry.state() == State::Complete && entry.sequence <= passed
}
