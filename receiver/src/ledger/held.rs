//! Bundles that are held for an operator, and bundles that are refused.

use checkvalve_protocol::id::BundleId;

use super::{Entry, HELD, Hold, Ledger, REFUSED, Standing, State};

impl Ledger {
    /// Adds a held bundle, which takes no place in its channel. False: [`HELD`] bundles of its key are held already.
    pub fn hold(&mut self, mut entry: Entry, hold: Hold) -> bool {
        let known = self.entries.get(&entry.id).is_some_and(|e| e.state() == State::Held);
        if !known && self.entries.held(entry.signer.as_ref().map(|signer| signer.key)) >= HELD {
            return false;
        }
        self.forget(entry.id);
        entry.hold_back(hold);
        self.insert(entry);
        true
    }

    /// Adds a bundle that is refused for something that a key signed. False: nothing changed, because the bundle has ended, or
    /// because [`REFUSED`] bundles without an accepted announce are remembered already.
    pub fn refused(&mut self, mut entry: Entry) -> bool {
        if let Some(known) = self.entries.get(&entry.id) {
            if !known.state().is_open() && known.state() != State::Held {
                return false;
            }
            if known.standing == Standing::Signed {
                // Its announce is good. What arrived now is not.
                let change = |e: &mut Entry| {
                    e.quarantine(entry.rule.clone(), entry.reason.clone());
                };
                self.change(entry.id, entry.changed_ms, change);
                return true;
            }
        }
        if self.entries.refused().saturating_add(self.released.len()) >= REFUSED {
            return false;
        }
        self.forget(entry.id);
        let (rule, reason) = (entry.rule.take(), entry.reason.take());
        entry.quarantine(rule, reason);
        let (id, sequence, channel) = (entry.id, entry.sequence, entry.channel.clone());
        self.insert(entry);
        if let Some(channel) = channel.filter(|channel| sequence > 0 && self.is_near(channel, sequence)) {
            self.take_slot(id, &channel, sequence);
        }
        true
    }

    /// Forgets why a bundle was refused, so that it is received again. If it is in the inbox (`is_here`), its hook has its turn
    /// again, unless a later one is installed.
    pub fn undo(&mut self, id: BundleId, is_here: bool, has_hook: bool, now_ms: u64) {
        let is_older = self.entry(id).is_some_and(|entry| self.newer_installed(entry).is_some());
        let undone = self.change(id, now_ms, |entry| {
            match is_here {
                true if is_older => entry.supersede(None),
                true => entry.complete(),
                false => entry.miss(Some("it is to come again".into())),
            }
            (entry.rule, entry.hold, entry.spoilt) = (None, None, 0);
        });
        let undone = undone.map(|entry| (entry.channel.clone(), entry.sequence));
        if let Some((Some(name), sequence)) = undone.filter(|_| is_here && !is_older && has_hook) {
            self.change_channel(&name, |channel| channel.turn_back(sequence));
        }
        self.reception.unspurn(id);
    }
}
