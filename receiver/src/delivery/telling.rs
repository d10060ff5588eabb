//! How bundles are named, and what people are told about held ones.

use std::sync::Arc;

use checkvalve_host::log::escape_bytes;
use checkvalve_protocol::id::{ChannelName, KeyId};
use checkvalve_protocol::limits::MAX_SEQUENCE;
use checkvalve_protocol::manifest::{Announce, Opened};

use super::alarms::{Alarms, Code};
use super::beacons::NewestBeacons;
use super::shared::{Clock, CurrentTrust};
use crate::audit::Subject;
use crate::ledger::file::LedgerFile;
use crate::ledger::{Announced, Entry, Hold, Signer};

/// Words what depends on all that is known at the moment.
pub(super) struct Words {
    pub(super) clock: Arc<Clock>,
    pub(super) trust: Arc<CurrentTrust>,
    pub(super) ledger: Arc<LedgerFile>,
    pub(super) newest: Arc<NewestBeacons>,
    pub(super) alarms: Arc<Alarms>,
}

impl Words {
    /// Why a bundle is held, and what an operator can do now. `handle` is the bundle's name in commands.
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
                    Some(false) => format!(
                        "first {}, with `--again {number}` if it is wanted and the sender's `status` has {} under that number (with \
                         two senders, another one may have it); then ",
                        adopt(),
                        entry.id
                    ),
                    None => format!("unless the sender got a new epoch since, first {}; then ", adopt()),
                };
                format!(
                    "sequence {sequence} of {channel} is bundle {holder} already: the sender's state was older than it should be, or two \
                     senders have one key; {first}{give_up}. What it has inside comes by `adopt --again` or is to be dropped again"
                )
            }
        }
    }

    /// Whether none of these alarms is active for the channel or the key. None: no alarm is active, but the key's sender is not heard.
    fn is_mended(&self, codes: &[Code], channel: &str, key: Option<KeyId>) -> Option<bool> {
        let is_silent = key.is_none_or(|key| self.newest.is_silent(key, self.clock.now()));
        let key = key.map(|key| key.to_string()).unwrap_or_default();
        let stands =
            codes.iter().any(|&code| self.alarms.is_raised(code, channel) || self.alarms.is_raised(code, &key));
        (stands || !is_silent).then_some(!stands)
    }

    /// The command for the low side that gives the sender with `key` a new epoch, with its arguments filled in.
    pub(super) fn adopt_command(&self, key: Option<KeyId>) -> String {
        let ledger = self.ledger.lock();
        let epoch = key.and_then(|key| ledger.sender(key)).map_or(1, |known| known.epoch().number);
        if epoch >= MAX_SEQUENCE {
            return format!(
                "epoch {epoch} is the last one of this key: on the low side make another with `checkvalve-sender keygen signing`, with an \
                 empty state directory; then `checkvalve-receiver trust add FILE.pub`, and `trust remove` the old one"
            );
        }
        // A sender does not take the channels of others.
        let trust = self.trust.get();
        let is_its = |name: &ChannelName| key.is_none_or(|key| trust.may_sign(key, name));
        let newest = ledger.channels().filter(|(name, channel)| channel.newest() > 0 && is_its(name));
        let newest: Vec<String> = newest.map(|(name, channel)| format!("{name}={}", channel.newest())).collect();
        format!(
            "on the low side: `checkvalve-sender adopt --epoch {} --sequences {}`",
            epoch.saturating_add(1),
            newest.join(",")
        )
    }

    /// The name that identifies this bundle, and no other, in commands.
    pub(super) fn handle(&self, entry: &Entry) -> String {
        let ledger = self.ledger.lock();
        let all = entry.channel.as_ref().map_or(0, |name| ledger.of_number(name, entry.sequence));
        let known = ledger.entry(entry.id).filter(|e| e.channel == entry.channel && e.sequence == entry.sequence);
        handle(entry, all <= usize::from(known.is_some()))
    }
}

/// A name from outside as it stands inside a sentence: in quotes, which it cannot close.
pub(super) fn quoted(name: &str) -> String {
    quoted_bytes(name.as_bytes())
}

/// The same for a name of any bytes.
pub(super) fn quoted_bytes(name: &[u8]) -> String {
    format!("\"{}\"", escape_bytes(name).replace('"', "\\\""))
}

/// How commands name a bundle: by its number if no other bundle has it, else by its id.
pub(super) fn handle(entry: &Entry, is_alone: bool) -> String {
    if is_alone { number(entry) } else { entry.id.to_string() }
}

/// How people name a bundle.
pub(super) fn number(entry: &Entry) -> String {
    match &entry.channel {
        Some(channel) => format!("{channel}/{}", entry.sequence),
        None => entry.id.to_string(),
    }
}

/// The bundle of an entry, for the audit trail.
pub(super) fn subject(entry: &Entry) -> Subject<'_> {
    Subject {
        bundle: Some(entry.id),
        channel: entry.channel.as_ref(),
        sequence: entry.sequence,
        name: escape_bytes(&entry.name),
        signer: entry.signer.as_ref().map(|s| s.key),
        signer_name: entry.signer.as_ref().map(|s| s.name.as_str()),
    }
}

pub(super) fn signer(opened: &Opened<Announce>) -> Signer {
    Signer { key: opened.signer, name: opened.signer_name.clone() }
}

pub(super) fn announced(opened: &Opened<Announce>, bytes: u64) -> Announced {
    Announced {
        id: opened.value.bundle,
        channel: opened.value.channel.clone(),
        sequence: opened.value.sequence,
        name: opened.value.name.clone(),
        bytes,
        signer: signer(opened),
        digest: opened.digest,
    }
}
