//! Bundles that wait for an operator, or that were refused.

use checkvalve_protocol::id::BundleId;

use super::{Entry, HELD, Hold, Ledger, REFUSED, Standing, State};

impl Ledger {
    /// Writes down a bundle that is held: it takes nobody's place. False: [`HELD`] are held already.
    pub fn hold(&mut self, mut entry: Entry, hold: Hold) -> bool {
        let known = self.entries.get(&entry.id).is_some_and(|e| e.state == State::Held);
        if !known && self.entries.held(entry.signer.as_ref().map(|signer| signer.key)) >= HELD {
            return false;
        }
        self.forget(entry.id);
        entry.hold_back(hold);
        self.insert(entry);
        true
    }

    /// Writes down a bundle that is refused for what a key signed. False: [`REFUSED`] are remembered already that nothing else is
    /// known of, and nothing changed.
    pub fn refused(&mut self, mut entry: Entry) -> bool {
        if let Some(known) = self.entries.get(&entry.id) {
            if !known.state.is_open() && known.state != State::Held {
                return false;
            }
            if known.standing == Standing::Signed {
                // Its announce is good; what came now is not.
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

    /// Everything is forgotten that refused a bundle: it is received again, or published.
    pub fn retry(&mut self, id: BundleId, now_ms: u64) {
        self.change(id, now_ms, |entry| {
            entry.miss(Some("it is to come again".into()));
            (entry.rule, entry.hold, entry.spoilt) = (None, None, 0);
        });
    }
}
