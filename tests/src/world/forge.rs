//! What the peer sends: salvos of correctly sealed datagrams.

mod attacks;

use checkvalve_protocol::beacon::{Beacon, ChannelState, Epoch, OnWire, Recent, RecentState};
use checkvalve_protocol::crypto::SigningKey;
use checkvalve_protocol::id::{BundleId, ChannelName, EpochId, KeyId, SessionId};
use checkvalve_protocol::limits::{MAX_SEQUENCE, MAX_TRANSFER_LENGTH};
use checkvalve_protocol::manifest::{Announce, Entries, Entry, EntryKind, Hashes, Outcome, Timestamp, signed};
use checkvalve_protocol::partition::Oti;
use checkvalve_protocol::path::SafePath;
use checkvalve_protocol::seal::Opener;
use checkvalve_protocol::wire::{Content, ObjectKind, Symbol};

use super::low::{LINK_KEY, signing_key};
use super::peer::{Peer, Victim};
use super::script::Forgery;

type Datagrams = Vec<Vec<u8>>;

/// The peer's own channel.
const OTHER: &str = "other";
const KINDS: [ObjectKind; 3] = [ObjectKind::Announce, ObjectKind::Data, ObjectKind::Hashes];
/// Symbol lengths that the sender never uses.
const SIZES: [u16; 4] = [64, 128, 192, 512];

impl Peer {
    /// One salvo. It may be empty while the sender has sent no bundle yet.
    pub(super) fn salvo(&mut self, what: Forgery) -> Datagrams {
        match what {
            Forgery::Junk => self.junk(),
            Forgery::Garbage => self.garbage(),
            Forgery::Otis => self.victim().map(|victim| self.otis(&victim)).unwrap_or_default(),
            Forgery::Beacons => self.beacon(),
            Forgery::Withdrawals => self.victim().map(|victim| self.withdrawal(&victim)).unwrap_or_default(),
            Forgery::Announces => self.announce(),
            Forgery::Spoil => self.victim().map(|victim| self.spoil(&victim)).unwrap_or_default(),
            Forgery::Replay => self.replay(),
            Forgery::Mangle => self.mangle(),
            Forgery::Extremes => self.extremes(),
            Forgery::Scatter => self.scatter(),
            Forgery::Flood => self.flood(),
            Forgery::Contradict => self.contradict(),
        }
    }

    fn pick<T: Clone>(&mut self, of: &[T]) -> T {
        of[usize::try_from(self.rng.below(of.len() as u64)).expect("few")].clone()
    }

    /// The sender's key id, the peer's, or a random one.
    fn any_key(&mut self) -> KeyId {
        match self.rng.below(4) {
            0 | 1 => signing_key().public().id(),
            2 => self.key.public().id(),
            _ => KeyId(self.rng.next_u64().to_be_bytes()),
        }
    }

    /// An OTI with a symbol length that the sender never uses, so that it matches none of its objects.
    fn other_oti(&mut self, len: u64) -> Oti {
        let (size, block) = (self.pick(&SIZES), self.pick(&[1, 2, 8, 64, 1_024]));
        Oti::new(len.max(1), size, block).expect("an OTI that can be")
    }

    fn any_oti(&mut self) -> Oti {
        let most = self.pick(&[100, 1_000, 5_000, 100_000, 1 << 30]);
        let len = 1 + self.rng.below(most);
        let largest = Oti::new(MAX_TRANSFER_LENGTH, 9_152, 1_024).expect("an OTI that can be");
        // Symbols of this OTI do not fit into the line's frames, but the format allows them.
        if self.rng.chance(30) { largest } else { self.other_oti(len) }
    }

    /// Some random symbols of an object.
    fn symbols(&mut self, bundle: BundleId, kind: ObjectKind, oti: Oti) -> Datagrams {
        let session = self.any_session();
        // A simulated file takes memory for its whole length, including holes.
        let most =
            (1 + 100_000 / (u32::from(oti.symbol_size()) * u32::from(oti.max_block_symbols()))).min(oti.blocks());
        let sbn = u32::try_from(self.rng.below(most.into())).expect("a block");
        let symbol = |peer: &mut Self| {
            let esi = u32::try_from(peer.rng.below(12)).expect("small");
            let payload = peer.rng.bytes(oti.symbol_size().into());
            peer.seal(session, Content::Symbol(Symbol { bundle, kind, sbn, esi, oti }), &payload)
        };
        (0..1 + self.rng.below(12)).map(|_| symbol(self)).collect()
    }

    fn junk(&mut self) -> Datagrams {
        let (signer, kind, oti) = (self.any_key(), self.pick(&KINDS), self.any_oti());
        let bundle = self.make_up(signer);
        self.symbols(bundle, kind, oti)
    }

    fn otis(&mut self, victim: &Victim) -> Datagrams {
        let (kind, other) = (self.pick(&KINDS), self.any_oti());
        // The same symbol and block sizes, but another length.
        let real = victim.objects.iter().find(|(of, _)| *of == kind).map(|(_, oti)| *oti);
        let near = real.filter(|_| self.rng.chance(400)).and_then(|oti| {
            let len = oti.transfer_length() + 1 + self.rng.below(2_000);
            Oti::new(len, oti.symbol_size(), oti.max_block_symbols()).ok()
        });
        self.symbols(victim.bundle, kind, near.unwrap_or(other))
    }

    fn spoil(&mut self, victim: &Victim) -> Datagrams {
        if victim.objects.is_empty() {
            return Vec::new();
        }
        let (kind, oti) = self.pick(&victim.objects);
        self.symbols(victim.bundle, kind, oti)
    }

    fn garbage(&mut self) -> Datagrams {
        let victim = self.victim().filter(|_| self.rng.chance(600)).map(|victim| victim.bundle);
        let signer = if self.rng.chance(800) { signing_key().public().id() } else { self.any_key() };
        let bundle = victim.unwrap_or_else(|| self.make_up(signer));
        let kind = self.pick(&[ObjectKind::Announce, ObjectKind::Hashes]);
        let len = 1 + self.rng.below(900);
        let junk = self.rng.bytes(usize::try_from(len).expect("small"));
        let domain = if kind == ObjectKind::Announce { signed::ANNOUNCE } else { signed::HASHES };
        let bytes = match self.rng.below(6) {
            0 => junk,
            1 => signed::seal_unsigned(&junk),
            2 => signed::seal(domain, &junk, &self.key),
            3 => in_the_name_of(signed::seal(domain, &junk, &self.key)),
            4 => {
                // With its own tag in its own channel, it would be correctly signed.
                let is_own = bundle.tag() == self.key.public().id().tag();
                let channel = if is_own { "default" } else { self.pick(&["default", OTHER]) };
                self.announce_of(bundle, channel, 1)
            }
            // One of its own announces, under the id of another bundle.
            _ => {
                let own = BundleId::new(self.rng.next_u64(), self.key.public().id());
                self.announce_of(own, OTHER, 1)
            }
        };
        self.signed_object(bundle, kind, &bytes)
    }

    /// A complete signed object under an OTI that is not the sender's.
    fn signed_object(&mut self, bundle: BundleId, kind: ObjectKind, bytes: &[u8]) -> Datagrams {
        let oti = self.other_oti(bytes.len() as u64);
        self.object(bundle, kind, oti, bytes)
    }

    fn withdrawal(&mut self, victim: &Victim) -> Datagrams {
        let outcome = match self.rng.below(4) {
            0 => Outcome::Complete { files: vec![[0; 32]; usize::try_from(self.rng.below(9)).expect("small")] },
            _ => Outcome::withdrawn("forged"),
        };
        let hashes = Hashes { bundle: victim.bundle, announce: victim.announce, outcome };
        let by_own = hashes.sign(&self.key).expect("hashes that can be signed");
        let bytes = match self.rng.below(4) {
            0 => in_the_name_of(by_own),
            1 => signed::seal_unsigned(&by_own[signed::PREFIX_LEN..]),
            _ => by_own,
        };
        self.signed_object(victim.bundle, ObjectKind::Hashes, &bytes)
    }

    /// An announce that the peer signed, perhaps with wrong data and hashes. Nothing of it can be published.
    fn announce(&mut self) -> Datagrams {
        let bundle = BundleId::new(self.rng.next_u64(), self.key.public().id());
        self.own.push(bundle);
        let channel = match self.rng.below(10) {
            0 => "default".to_owned(),
            1 => "urgent".to_owned(),
            2 => format!("c{}", self.rng.below(30)),
            _ => OTHER.to_owned(),
        };
        let sequence = match self.rng.below(8) {
            0 => MAX_SEQUENCE,
            1 => 1 + self.rng.below(MAX_SEQUENCE),
            2 => 1,
            _ => self.own.len() as u64,
        };
        let announce = self.announce_of(bundle, &channel, sequence);
        let mut datagrams = self.signed_object(bundle, ObjectKind::Announce, &announce);
        if self.rng.chance(300) {
            let oti = Announce::peek(&announce).ok().and_then(|announce| announce.oti()).expect("it has data");
            datagrams.extend(self.symbols(bundle, ObjectKind::Data, oti));
        }
        if self.rng.chance(300) {
            let outcome = self.pick(&[Outcome::withdrawn("over"), Outcome::Complete { files: vec![[1; 32]] }]);
            let hashes = Hashes { bundle, announce: blake3::hash(&announce).into(), outcome };
            let bytes = hashes.sign(&self.key).expect("hashes that can be signed");
            datagrams.extend(self.signed_object(bundle, ObjectKind::Hashes, &bytes));
        }
        datagrams
    }

    /// An announce that the peer's key signed.
    fn announce_of(&mut self, bundle: BundleId, channel: &str, sequence: u64) -> Vec<u8> {
        let mut entries = Entries::new();
        entries.push(Entry {
            path: SafePath::new(b"forged".as_slice()).expect("a path"),
            mtime: Timestamp { secs: 0, nanos: 0 },
            kind: EntryKind::File { size: 1 + self.rng.below(20_000), mode: 0o644 },
        });
        let announce = Announce {
            bundle,
            channel: ChannelName::new(channel).expect("a name"),
            sequence,
            name: b"forged".to_vec(),
            created_ms: 0,
            symbol_size: 448,
            block_symbols: 8,
            entries,
        };
        announce.sign(&self.key).expect("an announce that can be signed")
    }

    fn beacon(&mut self) -> Datagrams {
        let session = self.any_session();
        let payload = match self.rng.below(6) {
            0 => {
                let len = self.rng.below(400);
                self.rng.bytes(usize::try_from(len).expect("small"))
            }
            // The sender's own, in another session or with another counter.
            1 | 2 => self.recorded(),
            3 => in_the_name_of(self.beacon_of(session)),
            4 => signed::seal_unsigned(&self.beacon_of(session)[signed::PREFIX_LEN..]),
            _ => self.beacon_of(session),
        };
        vec![self.seal(session, Content::Beacon, &payload)]
    }

    /// The signed payload of one of the sender's beacons.
    fn recorded(&mut self) -> Vec<u8> {
        let at = self.rng.below(self.beacons.len().max(1) as u64);
        let Some(datagram) = self.beacons.get(usize::try_from(at).expect("few")) else { return Vec::new() };
        let mut datagram = datagram.clone();
        let opened = Opener::new(Some(LINK_KEY)).open(&mut datagram).map(|(_, payload)| payload.to_vec());
        opened.expect("the sender seals under this key")
    }

    /// A beacon that the peer's key signed, for any channel, about its own or the sender's bundles.
    fn beacon_of(&mut self, session: SessionId) -> Vec<u8> {
        let name = ChannelName::new(self.pick(&["default", "urgent", OTHER])).expect("a name");
        let victim = self.victim().filter(|_| self.rng.chance(300));
        let sequence = victim.as_ref().map_or(1 + self.rng.below(30), |victim| victim.sequence);
        let made_up = BundleId::new(self.rng.next_u64(), self.key.public().id());
        let bundle = victim.map_or(made_up, |victim| victim.bundle);
        let far = self.rng.chance(300).then_some(MAX_SEQUENCE);
        let on_wire = OnWire { bundle, channel: name.clone(), sequence, pass: 1, passes: 1, blocks: 9, blocks_sent: 3 };
        let state = self.pick(&[RecentState::Withdrawn, RecentState::Transmitted, RecentState::Queued]);
        let recent = Recent { sequence, bundle, bytes: 5_000, state, name: b"forged".to_vec() };
        let newest = far.unwrap_or(sequence + self.rng.below(4));
        let channel = ChannelState { name, priority: 9, newest, recent: vec![recent] };
        // Most of them are acceptable: from one epoch, and newer than the one before.
        self.told += 1;
        let number = if self.rng.chance(30) { MAX_SEQUENCE } else { 1 };
        let session_number = if self.rng.chance(100) { self.rng.below(MAX_SEQUENCE) } else { self.told };
        let beacon = Beacon {
            epoch: Epoch { number, id: EpochId(7) },
            session_number,
            session,
            counter: 1 + self.rng.below(1_000),
            clock_ms: self.rng.next_u64(),
            rate_bits: self.rng.next_u64(),
            datagrams: self.pick(&[0, 1, 1_000, u64::MAX]),
            on_wire: self.rng.chance(500).then_some(on_wire),
            channel: self.rng.chance(700).then_some(channel),
        };
        beacon.sign(&self.key, 1_000)
    }
}

/// Replaces the signer's key id by the sender's, so that the signature is wrong.
fn in_the_name_of(mut signed: Vec<u8>) -> Vec<u8> {
    let sender: &SigningKey = &signing_key();
    signed[4..12].copy_from_slice(&sender.public().id().0);
    signed
}
