//! Bundles that are rightly signed, and whose place is not believed: they wait for an operator.

use checkvalve_protocol::id::KeyId;

use super::Delivery;
use super::alarms::Code;
use super::manifests::{number, subject};
use crate::audit::Event;
use crate::ledger::{Entry, Hold, State};

impl Delivery {
    /// A bundle is held: said once, and nothing more of it is received.
    pub(super) fn hold(&self, entry: Entry, hold: Hold) {
        let (id, now, code, reason) = (entry.id, self.now(), hold.code(), entry.reason.clone().unwrap_or_default());
        let subject_of = entry.clone();
        let known = self.ledger.lock().entry(id).is_some_and(|e| e.state == State::Held);
        let noted = self.ledger.lock().hold(entry, hold);
        if !noted {
            self.alarm(
                Code::HeldFull,
                "",
                "many bundles of a key are held already: more are refused; look at `status` for who signs them",
            );
        } else if !known {
            if let Some(suppressed) = self.throttle.allow(now) {
                tracing::warn!(bundle = %id, code, reason, suppressed, "held");
            }
            self.note(now, &Event::Held { bundle: subject(&subject_of), code, reason: &reason });
            self.save();
        }
        self.discard(id);
    }

    /// Why, and what mends it now; `handle` is what commands take to mean it.
    pub(super) fn held_reason(&self, entry: &Entry, hold: &Hold, handle: &str) -> String {
        let number = number(entry);
        let (channel, sequence) = (entry.channel.as_ref().map_or("", |c| c.as_str()), entry.sequence);
        let key = entry.signer.as_ref().map(|s| s.key);
        let adopt = || self.adopt_command(key);
        let give_up = format!("`checkvalve-receiver reject {handle}` gives it up");
        match hold {
            Hold::Jump { newest } => {
                let newest = entry
                    .channel
                    .as_ref()
                    .and_then(|name| Some(self.ledger.lock().channel(name)?.newest()))
                    .unwrap_or(*newest);
                if self.is_mended(&[Code::SequenceJump], channel, key) == Some(true) {
                    return format!(
                        "{number} is far above {newest}, the newest of its channel, and the sender goes on from there: {give_up}, and what it \
                         has inside is to be dropped again; `approve` only if that number is right all the same"
                    );
                }
                let wrong = format!(
                    "stop the sender, move its state directory away, make an empty one, and {}; then {give_up}, and what it has inside is to \
                     be dropped again",
                    adopt()
                );
                format!(
                    "{number} is far above {newest}, the newest of its channel: if that is right, `checkvalve-receiver approve {handle}` (what \
                     is between will be missing); else {wrong}"
                )
            }
            Hold::Channels => format!(
                "the config does not name channel {channel}, and there is no room for another that it does not name: add [channel.{channel}] \
                 to it and restart, then `checkvalve-receiver retry {handle}`"
            ),
            Hold::Sequence { holder } => {
                let codes = [Code::OlderState, Code::AnotherState, Code::TwoSenders, Code::OldEpoch];
                let first = match self.is_mended(&codes, channel, key) {
                    Some(true) => {
                        return format!(
                            "sequence {sequence} of {channel} is bundle {holder} already: {give_up}. What it has inside is to be dropped again, if \
                             it did not come under another number"
                        );
                    }
                    Some(false) => format!("first {}, with `--again {number}` if it is wanted; then ", adopt()),
                    None => format!("unless the sender got a new epoch since, first {}; then ", adopt()),
                };
                format!(
                    "sequence {sequence} of {channel} is bundle {holder} already: the sender's state was older than it should be, or two \
                     senders have one key; {first}{give_up}. What it has inside comes by `adopt --again` or is to be dropped again"
                )
            }
        }
    }

    /// Whether a sender is heard and none of these alarms stands about its channel or its key. None: it is not heard.
    fn is_mended(&self, codes: &[Code], channel: &str, key: Option<KeyId>) -> Option<bool> {
        let key = key.map(|key| key.to_string()).unwrap_or_default();
        let stands = codes.iter().any(|&code| self.is_alarmed(code, channel) || self.is_alarmed(code, &key));
        (stands || !self.is_silent(self.now())).then_some(!stands)
    }
}
