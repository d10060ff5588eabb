//! Everything that the sender has ever said, and the check that the receiver reports nothing else as a fact.

use std::collections::{BTreeMap, BTreeSet};

use checkvalve_host::log::escape_bytes;
use checkvalve_protocol::beacon::Beacon;
use checkvalve_protocol::crypto::TrustStore;
use checkvalve_protocol::id::BundleId;
use checkvalve_protocol::seal::Opener;
use checkvalve_protocol::wire::{Content, Header};
use checkvalve_receiver::delivery::status::{BundleStatus, SenderStatus, Status};

use super::book::Held;
use super::low::{LINK_KEY, Started, blocks, signing_key};

/// Of the beacons of a session, the signature of the first and of each so many after it is checked here. The receiver checks all that
/// reach it, and discards none.
const CHECKED: u64 = 8;

/// Everything that the sender's jobs and beacons named.
pub(super) struct Said {
    opener: Opener,
    trust: TrustStore,
    bundles: BTreeMap<BundleId, Words>,
    newest: BTreeMap<String, u64>,
    /// Of each beacon: session, session number, epoch number, datagrams.
    beacons: BTreeSet<(u64, u64, u64, u64)>,
}

/// What the sender said about a bundle.
struct Words {
    channel: String,
    sequence: u64,
    /// Its names.
    spelt: BTreeSet<Vec<u8>>,
    /// The same, escaped; empty if the beacon had no room for it.
    names: BTreeSet<String>,
    bytes: u64,
}

impl Default for Said {
    fn default() -> Self {
        let mut trust = TrustStore::new();
        trust.insert(signing_key().public(), "low");
        Self {
            opener: Opener::new(Some(LINK_KEY)),
            trust,
            bundles: BTreeMap::new(),
            newest: BTreeMap::new(),
            beacons: BTreeSet::new(),
        }
    }
}

impl Said {
    /// Records a job that the engine starts.
    pub(super) fn started(&mut self, job: &Started) -> Held {
        self.say(job.bundle, &job.channel, job.sequence, &job.name, job.bytes)
    }

    /// Records what a sent datagram says, if it is a beacon.
    pub(super) fn sent(&mut self, datagram: &[u8]) -> Held {
        if !Header::parse(datagram).is_ok_and(|header| header.content == Content::Beacon) {
            return Ok(());
        }
        let mut datagram = datagram.to_vec();
        let (_, payload) = self.opener.open(&mut datagram).map_err(|error| format!("the sender's seal: {error}"))?;
        let wrong = |error| format!("the sender's beacon: {error}");
        let beacon = Beacon::peek(payload).map_err(wrong)?;
        if beacon.counter % CHECKED == 1 {
            Beacon::open(payload, &self.trust).map_err(wrong)?;
        }
        self.beacons.insert((beacon.session.0, beacon.session_number, beacon.epoch.number, beacon.datagrams));
        let Some(channel) = beacon.channel else { return Ok(()) };
        self.renew(channel.name.as_str(), channel.newest);
        channel.recent.iter().try_for_each(|r| self.say(r.bundle, channel.name.as_str(), r.sequence, &r.name, r.bytes))
    }

    fn say(&mut self, bundle: BundleId, channel: &str, sequence: u64, name: &[u8], bytes: u64) -> Held {
        self.renew(channel, sequence);
        let words = self.bundles.entry(bundle).or_insert_with(|| Words {
            channel: channel.to_owned(),
            sequence,
            spelt: BTreeSet::new(),
            names: BTreeSet::from([String::new()]),
            bytes,
        });
        if (words.channel.as_str(), words.sequence, words.bytes) != (channel, sequence, bytes) {
            return Err(format!("the sender says two things of {bundle}"));
        }
        if !words.spelt.contains(name) {
            words.spelt.insert(name.to_vec());
            words.names.insert(escape_bytes(name));
        }
        Ok(())
    }

    /// The sender named a sequence of a channel.
    fn renew(&mut self, channel: &str, sequence: u64) {
        match self.newest.get_mut(channel) {
            Some(newest) => *newest = sequence.max(*newest),
            None => drop(self.newest.insert(channel.to_owned(), sequence)),
        }
    }

    fn newest(&self, channel: &str) -> u64 {
        self.newest.get(channel).copied().unwrap_or(0)
    }

    /// Checks that the sender said everything that the receiver reports about it and its channels. With `neighbour`, another
    /// trusted key may have said things about its own channels.
    pub(super) fn is_all(&self, status: &Status, neighbour: bool) -> Held {
        status.bundles.iter().try_for_each(|row| self.is_row(row))?;
        for channel in &status.channels {
            let name = channel.name.as_str();
            if !super::settle::is_ours(name) {
                if neighbour {
                    continue;
                }
                return Err(format!("there is a channel {name} that nobody may speak of"));
            }
            let newest = self.newest(name);
            let most = channel.newest.max(channel.passed).max(channel.begins_at.unwrap_or(0).saturating_sub(1));
            if most > newest || channel.blocked_by.is_some_and(|by| by > newest) {
                return Err(format!("the sender's newest in {name} is {newest}: {channel:?}"));
            }
        }
        self.is_sender(&status.sender, neighbour)
    }

    fn is_row(&self, row: &BundleStatus) -> Held {
        let ours = super::settle::is_ours(&row.channel);
        let what = |text: &str| {
            Err(format!("{text}: {}/{} {:?} {:?}, {} bytes", row.channel, row.sequence, row.id, row.name, row.bytes))
        };
        let Ok(id) = row.id.parse::<BundleId>() else {
            let last = row.through.unwrap_or(row.sequence);
            let is_known = !ours || last <= self.newest(&row.channel);
            return if is_known { Ok(()) } else { what("a bundle is missed that was never sent") };
        };
        let Some(words) = self.bundles.get(&id) else {
            return if ours { what("a bundle is listed that the sender never spoke of") } else { Ok(()) };
        };
        if row.channel.is_empty() {
            let is_blank = row.sequence == 0 && row.name.is_empty() && row.bytes == 0 && row.signer.is_none();
            return if is_blank { Ok(()) } else { what("something is known of a bundle that nobody announced") };
        }
        let key = signing_key().public().id();
        if (row.channel.as_str(), row.sequence) != (words.channel.as_str(), words.sequence)
            || !words.names.contains(&row.name)
            || row.bytes != 0 && row.bytes != words.bytes
            || row.received > words.bytes
            || row.lacking.is_some_and(|lacking| lacking.blocks_total != blocks(words.bytes))
            || row.signer.as_ref().is_some_and(|signer| signer.key != key)
        {
            let text = format!(
                "the sender said another thing ({}/{} {:?}, {} bytes; {:?} received, signed by {:?})",
                words.channel,
                words.sequence,
                words.names,
                words.bytes,
                (row.received, row.lacking),
                row.signer
            );
            return what(&text);
        }
        Ok(())
    }

    fn is_sender(&self, sender: &SenderStatus, neighbour: bool) -> Held {
        let (Some(key), Some(session)) = (sender.key, sender.session) else { return Ok(()) };
        if key != signing_key().public().id() {
            return if neighbour { Ok(()) } else { Err(format!("the sender is said to be {key}")) };
        }
        let said = (session.0, sender.session_number, sender.epoch_number, sender.datagrams);
        if !self.beacons.contains(&said) {
            return Err(format!("no beacon of the sender says {said:?}"));
        }
        let wire = sender.on_wire.as_ref().map(|on_wire| (on_wire.channel.as_str(), on_wire.sequence));
        match wire {
            Some((channel, sequence)) if sequence > self.newest(channel) => {
                Err(format!("{channel}/{sequence} is said to be on the wire"))
            }
            _ => Ok(()),
        }
    }
}
