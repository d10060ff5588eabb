//! Datagrams that no sender would ever send: extreme values, contradictions, floods and replays.

use checkvalve_protocol::beacon::{Beacon, ChannelState, Epoch, Recent, RecentState};
use checkvalve_protocol::id::{BundleId, ChannelName, EpochId, SessionId};
use checkvalve_protocol::limits::{
    HEADER_LEN, MAX_ESI, MAX_MANIFEST_LEN, MAX_NAME_LEN, MAX_SEQUENCE, MAX_SYMBOL_SIZE, MAX_TRANSFER_LENGTH,
};
use checkvalve_protocol::manifest::{Announce, Entries, Entry, EntryKind, Hashes, Outcome, Timestamp};
use checkvalve_protocol::partition::Oti;
use checkvalve_protocol::path::SafePath;
use checkvalve_protocol::seal::Opener;
use checkvalve_protocol::wire::{Content, Header, ObjectKind, Symbol};

use super::super::low::LINK_KEY;
use super::{Datagrams, KINDS, OTHER, Peer};

/// The most symbols in one salvo of [`Peer::scatter`].
const MOST: usize = 400;

impl Peer {
    /// Recorded datagrams of the sender in any order, mostly of one session.
    pub(super) fn replay(&mut self) -> Datagrams {
        let Some(session) = self.recorded_header().map(|header| header.session) else { return Vec::new() };
        let (any, most) = (self.rng.chance(200), self.pick(&[20, 200, 2_000]));
        let is_meant = |datagram: &&Vec<u8>| any || Header::parse(datagram).is_ok_and(|h| h.session == session);
        let meant: Vec<&Vec<u8>> = self.heard.iter().filter(is_meant).collect();
        let first = usize::try_from(self.rng.below(meant.len() as u64)).expect("few");
        let mut meant: Datagrams = meant[first..].iter().take(most).copied().cloned().collect();
        match self.rng.below(4) {
            0 => meant.reverse(),
            1 | 2 => {
                for at in (1..meant.len()).rev() {
                    meant.swap(at, usize::try_from(self.rng.below(at as u64 + 1)).expect("few"));
                }
            }
            _ => {}
        }
        meant
    }

    /// Recorded datagrams of the sender with one thing changed.
    pub(super) fn mangle(&mut self) -> Datagrams {
        (0..1 + self.rng.below(12)).filter_map(|_| self.mangled()).collect()
    }

    fn mangled(&mut self) -> Option<Vec<u8>> {
        let mut datagram = self.any_heard()?;
        let len = datagram.len() as u64;
        match self.rng.below(8) {
            0 => datagram.truncate(usize::try_from(self.rng.below(len)).expect("small")),
            1 => {
                let more = 1 + self.rng.below(600);
                datagram.extend(self.rng.bytes(usize::try_from(more).expect("small")));
            }
            2 => {
                let other = self.any_heard()?;
                datagram.extend(other);
            }
            3 => {
                let at = usize::try_from(self.rng.below(HEADER_LEN as u64)).expect("small");
                datagram[at] = self.pick(&[0, 1, 0x7f, 0x80, 0xff]);
            }
            _ => return self.sealed_again(datagram),
        }
        Some(datagram)
    }

    fn sealed_again(&mut self, mut datagram: Vec<u8>) -> Option<Vec<u8>> {
        let opened = Opener::new(Some(LINK_KEY)).open(&mut datagram);
        let (header, payload) = opened.map(|(header, payload)| (header, payload.to_vec())).ok()?;
        let Content::Symbol(mut symbol) = header.content else {
            let cut = usize::try_from(self.rng.below(payload.len() as u64)).expect("small");
            let session = self.any_session();
            return Some(self.seal(session, Content::Beacon, &payload[..cut]));
        };
        let mut payload = payload;
        match self.rng.below(7) {
            0 => symbol.kind = self.pick(&KINDS),
            1 => symbol.sbn = u32::try_from(self.rng.below(symbol.oti.blocks().into())).expect("a block"),
            2 => symbol.esi = self.pick(&[0, 1, 7, 8, 9, MAX_ESI]),
            3 => symbol.bundle = self.victim()?.bundle,
            4 => {
                let signer = self.any_key();
                symbol.bundle = self.make_up(signer);
            }
            5 => payload.truncate(usize::try_from(self.rng.below(payload.len() as u64)).expect("small")),
            _ => payload.extend([0; 64]),
        }
        let session = self.any_session();
        Some(self.seal(session, Content::Symbol(symbol), &payload))
    }

    /// Fields with their smallest and largest values.
    pub(super) fn extremes(&mut self) -> Datagrams {
        let mut datagrams: Datagrams = (0..1 + self.rng.below(8)).filter_map(|_| self.extreme_symbol()).collect();
        if self.rng.chance(300) {
            datagrams.push(self.extreme_beacon());
        }
        if self.rng.chance(300) {
            datagrams.extend(self.extreme_announce());
        }
        datagrams
    }

    fn extreme_symbol(&mut self) -> Option<Vec<u8>> {
        let victim = self.victim().filter(|_| self.rng.chance(400)).map(|victim| victim.bundle);
        let signer = self.any_key();
        let bundle = victim.unwrap_or_else(|| self.make_up(signer));
        let (kind, size) = (self.pick(&KINDS), self.pick(&[64, 448, MAX_SYMBOL_SIZE]));
        let manifest = MAX_MANIFEST_LEN as u64;
        let len = self.pick(&[1, 63, 64, 65, manifest, manifest + 1, MAX_TRANSFER_LENGTH - 1, MAX_TRANSFER_LENGTH]);
        // A simulated file takes memory for its whole length, including holes. So no block of a long object may ever be complete.
        let block = if len >= manifest { 1_024 } else { self.pick(&[1, 2, 1_023, 1_024]) };
        let oti = Oti::new(len, size, block).ok()?;
        let sbn = self.pick(&[0, oti.blocks() - 1]);
        let last = u32::from(oti.block_symbols(sbn)?);
        let esi = self.pick(&[0, last - 1, last, MAX_ESI - 1, MAX_ESI]);
        let session = self.pick(&[SessionId(0), SessionId(u64::MAX), self.theirs]);
        let payload = vec![self.pick(&[0, 0xff]); size.into()];
        Some(self.seal(session, Content::Symbol(Symbol { bundle, kind, sbn, esi, oti }), &payload))
    }

    fn extreme_beacon(&mut self) -> Vec<u8> {
        let session = self.any_session();
        let name = ChannelName::new(self.pick(&["default", OTHER])).expect("a name");
        let key = self.key.public().id();
        let recent = |peer: &mut Self, n: u64| Recent {
            sequence: MAX_SEQUENCE - n,
            bundle: BundleId::new(peer.rng.next_u64(), key),
            bytes: u64::MAX,
            state: RecentState::Transmitted,
            name: vec![0xff; MAX_NAME_LEN],
        };
        let recent = (0..self.pick(&[0, 1, 300])).map(|n| recent(self, n)).collect();
        let beacon = Beacon {
            epoch: Epoch { number: self.pick(&[1, MAX_SEQUENCE]), id: EpochId(self.pick(&[0, 7, u64::MAX])) },
            session_number: self.pick(&[1, MAX_SEQUENCE]),
            session,
            counter: self.pick(&[1, MAX_SEQUENCE]),
            clock_ms: self.pick(&[0, u64::MAX]),
            rate_bits: self.pick(&[0, u64::MAX]),
            datagrams: self.pick(&[0, u64::MAX]),
            on_wire: None,
            channel: Some(ChannelState { name, priority: i16::MIN, newest: MAX_SEQUENCE, recent }),
        };
        let signed = beacon.sign(&self.key, if self.rng.chance(500) { 1_000 } else { 9_000 });
        self.seal(session, Content::Beacon, &signed)
    }

    fn extreme_announce(&mut self) -> Datagrams {
        let bundle = BundleId::new(self.rng.next_u64(), self.key.public().id());
        self.own.push(bundle);
        let name = vec![b'x'; self.pick(&[1, MAX_NAME_LEN])];
        let size = self.pick(&[0, 1, MAX_TRANSFER_LENGTH, u64::MAX]);
        let mut entries = Entries::new();
        let entry = |path: Vec<u8>, kind| Entry {
            path: SafePath::new(path.as_slice()).expect("a path"),
            mtime: Timestamp { secs: i64::MIN, nanos: 999_999_999 },
            kind,
        };
        let files = self.pick(&[0, 1, 400]);
        if files == 0 {
            entries.push(entry(name.clone(), EntryKind::File { size, mode: 0o777 }));
        } else {
            entries.push(entry(name.clone(), EntryKind::Directory { mode: 0 }));
            for file in 0..files {
                let path = [name.as_slice(), format!("/{file:03}").as_bytes()].concat();
                entries.push(entry(path, EntryKind::File { size: size / files, mode: 0 }));
            }
        }
        let announce = Announce {
            bundle,
            channel: ChannelName::new(self.pick(&["default", OTHER])).expect("a name"),
            sequence: self.pick(&[1, MAX_SEQUENCE]),
            name,
            created_ms: u64::MAX,
            symbol_size: self.pick(&[64, MAX_SYMBOL_SIZE]),
            block_symbols: self.pick(&[1, 1_024]),
            entries,
        };
        announce
            .sign(&self.key)
            .map(|bytes| self.signed_object(bundle, ObjectKind::Announce, &bytes))
            .unwrap_or_default()
    }

    /// One symbol of each block of every known bundle, and of some invented bundles.
    pub(super) fn scatter(&mut self) -> Datagrams {
        let mut known = Vec::new();
        for victim in self.victims.clone() {
            for (kind, oti) in victim.objects {
                known.extend((0..oti.blocks().min(60)).map(|sbn| (victim.bundle, kind, sbn, oti)));
            }
        }
        for _ in 0..30 {
            let (signer, kind, oti) = (self.any_key(), self.pick(&KINDS), self.other_oti(10_000));
            known.push((self.make_up(signer), kind, 0, oti));
        }
        known.truncate(MOST);
        known.into_iter().map(|(bundle, kind, sbn, oti)| self.symbol(bundle, kind, sbn, oti)).collect()
    }

    /// Symbols of so many bundles that less than half of them fit.
    pub(super) fn flood(&mut self) -> Datagrams {
        let kind = self.rng.chance(700).then(|| self.pick(&KINDS));
        let symbol = |peer: &mut Self| {
            let (signer, any) = (peer.any_key(), peer.pick(&KINDS));
            let len = peer.pick(&[1, 500, 5_000]);
            let (bundle, oti) = (peer.make_up(signer), peer.other_oti(len));
            peer.symbol(bundle, kind.unwrap_or(any), 0, oti)
        };
        (0..50 + self.rng.below(800)).map(|_| symbol(self)).collect()
    }

    fn symbol(&mut self, bundle: BundleId, kind: ObjectKind, sbn: u32, oti: Oti) -> Vec<u8> {
        let session = self.any_session();
        let esi = u32::try_from(self.rng.below(12)).expect("small");
        let payload = self.rng.bytes(oti.symbol_size().into());
        self.seal(session, Content::Symbol(Symbol { bundle, kind, sbn, esi, oti }), &payload)
    }

    /// Two announces of one bundle, with their data and hashes, or many bundles with one sequence, or many channels.
    pub(super) fn contradict(&mut self) -> Datagrams {
        if self.rng.chance(400) {
            let sequence = 1 + self.rng.below(5);
            return (0..2 + self.rng.below(12)).flat_map(|_| self.claim(OTHER, sequence)).collect();
        }
        if self.rng.chance(300) {
            let first = self.rng.below(40);
            return (first..first + 1 + self.rng.below(25)).flat_map(|n| self.claim(&format!("c{n}"), 1)).collect();
        }
        let bundle = BundleId::new(self.rng.next_u64(), self.key.public().id());
        self.own.push(bundle);
        let mut datagrams = Vec::new();
        for _ in 0..2 + self.rng.below(2) {
            let channel = self.pick(&[OTHER, OTHER, "another", "default"]);
            let sequence = 1 + self.rng.below(3);
            let announce = self.announce_of(bundle, channel, sequence);
            datagrams.extend(self.signed_object(bundle, ObjectKind::Announce, &announce));
            if let Some(oti) = Announce::peek(&announce).ok().and_then(|announce| announce.oti()) {
                datagrams.extend(self.symbols(bundle, ObjectKind::Data, oti));
            }
            let outcome = self.pick(&[Outcome::withdrawn("over"), Outcome::Complete { files: vec![[1; 32]] }]);
            let hashes = Hashes { bundle, announce: blake3::hash(&announce).into(), outcome };
            let hashes = hashes.sign(&self.key).expect("hashes that can be signed");
            datagrams.extend(self.signed_object(bundle, ObjectKind::Hashes, &hashes));
        }
        datagrams
    }

    fn claim(&mut self, channel: &str, sequence: u64) -> Datagrams {
        let bundle = BundleId::new(self.rng.next_u64(), self.key.public().id());
        self.own.push(bundle);
        let announce = self.announce_of(bundle, channel, sequence);
        self.signed_object(bundle, ObjectKind::Announce, &announce)
    }

    fn any_heard(&mut self) -> Option<Vec<u8>> {
        let at = self.rng.next_u64().checked_rem(self.heard.len() as u64)?;
        self.heard.get(usize::try_from(at).expect("few")).cloned()
    }

    fn recorded_header(&mut self) -> Option<Header> {
        self.any_heard().and_then(|datagram| Header::parse(&datagram).ok())
    }
}
