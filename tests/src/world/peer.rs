//! A peer who holds the link key, hears the sender, and sends beside it. It signs with a key of its own, which the receiver
//! trusts for channels other than the sender's, or not at all.

use std::collections::{BTreeSet, VecDeque};
use std::sync::{Arc, LazyLock};

use checkvalve_protocol::crypto::SigningKey;
use checkvalve_protocol::id::{BundleId, SessionId};
use checkvalve_protocol::partition::Oti;
use checkvalve_protocol::seal::Sealer;
use checkvalve_protocol::wire::{Content, Header, ObjectKind, Symbol};
use checkvalve_receiver::delivery::status::Status;
use checkvalve_receiver::ledger::State;

use super::book::Held;
use super::low::{LINK_KEY, Started};
use super::play::{MS, World};
use super::script::{Forgery, Script};
use crate::rng::Rng;

/// How many beacons of the sender the peer remembers.
const BEACONS: usize = 8;
/// How many sealers the peer keeps: to make one takes longer than to seal.
const SEALERS: usize = 8;
/// How many datagrams of the sender the peer remembers.
const HEARD: usize = 50_000;
/// The longest time that the receiver may remember unsigned bundles, with some seconds of slack.
const FORGOTTEN_MS: u64 = 36_000;

/// What the peer knows, and what it is about to do.
pub(super) struct Peer {
    pub(super) rng: Rng,
    pub(super) key: Arc<SigningKey>,
    /// Whether the script has a peer at all.
    pub(super) there: bool,
    session: SessionId,
    /// The sealers of the sessions that it used last.
    sealers: VecDeque<Sealer>,
    counter: u64,
    /// How many beacons it signed.
    pub(super) told: u64,
    /// The sender's session.
    pub(super) theirs: SessionId,
    pub(super) victims: Vec<Victim>,
    /// Whole datagrams with the sender's beacons, the newest last.
    pub(super) beacons: VecDeque<Vec<u8>>,
    /// Everything that the sender sent, up to [`HEARD`] datagrams.
    pub(super) heard: Vec<Vec<u8>>,
    under_way: Vec<UnderWay>,
    /// Invented bundles that no trusted key signed for.
    pub(super) made_up: BTreeSet<BundleId>,
    /// Bundles that the peer signed for.
    pub(super) own: Vec<BundleId>,
}

/// A bundle of the sender, as far as it can be seen on the line.
#[derive(Clone)]
pub(super) struct Victim {
    pub(super) bundle: BundleId,
    pub(super) sequence: u64,
    pub(super) announce: [u8; 32],
    pub(super) objects: Vec<(ObjectKind, Oti)>,
}

struct UnderWay {
    what: Forgery,
    left: u64,
    every: u64,
    next: u64,
}

pub(super) fn peer_key() -> Arc<SigningKey> {
    static KEY: LazyLock<Arc<SigningKey>> = LazyLock::new(|| Arc::new(SigningKey::from_seed([9; 32])));
    Arc::clone(&KEY)
}

impl Peer {
    pub(super) fn new(script: &Script) -> Self {
        let mut rng = Rng::new(script.seed ^ 0x9ee5);
        Self {
            key: peer_key(),
            there: script.is_hostile(),
            session: SessionId(rng.next_u64()),
            rng,
            sealers: VecDeque::new(),
            counter: 0,
            told: 0,
            theirs: SessionId(1),
            victims: Vec::new(),
            beacons: VecDeque::new(),
            heard: Vec::new(),
            under_way: Vec::new(),
            made_up: BTreeSet::new(),
            own: Vec::new(),
        }
    }

    /// Notes a bundle that the sender announces.
    pub(super) fn hear(&mut self, job: &Started) {
        if self.there && self.victims.iter().all(|victim| victim.bundle != job.bundle) {
            let Started { bundle, sequence, announce, .. } = *job;
            self.victims.push(Victim { bundle, sequence, announce, objects: Vec::new() });
        }
    }

    /// Records a datagram that the sender sends.
    pub(super) fn overhear(&mut self, datagram: &[u8]) {
        let Some(Ok(header)) = self.there.then(|| Header::parse(datagram)) else { return };
        self.theirs = header.session;
        if self.heard.len() < HEARD {
            self.heard.push(datagram.to_vec());
        }
        match header.content {
            Content::Beacon => {
                if self.beacons.len() == BEACONS {
                    self.beacons.pop_front();
                }
                self.beacons.push_back(datagram.to_vec());
            }
            Content::Symbol(symbol) => {
                let victim = self.victims.iter_mut().rev().find(|victim| victim.bundle == symbol.bundle);
                let object = (symbol.kind, symbol.oti);
                if let Some(victim) = victim.filter(|victim| !victim.objects.contains(&object)) {
                    victim.objects.push(object);
                }
            }
        }
    }

    /// Begins an attack: `times` salvos, one every `every` nanoseconds.
    pub(super) fn forge(&mut self, what: Forgery, now: u64, times: u64, every: u64) {
        self.under_way.push(UnderWay { what, left: times, every, next: now });
    }

    /// Ends all attacks.
    pub(super) fn stop(&mut self) {
        self.under_way.clear();
    }

    /// When it sends next.
    pub(super) fn next(&self) -> Option<u64> {
        self.under_way.iter().map(|under_way| under_way.next).min()
    }

    /// What it sends now.
    pub(super) fn step(&mut self, now: u64) -> Vec<Vec<u8>> {
        let mut due = Vec::new();
        for under_way in &mut self.under_way {
            if under_way.next <= now && under_way.left > 0 {
                due.push(under_way.what);
                under_way.next += under_way.every;
                under_way.left -= 1;
            }
        }
        self.under_way.retain(|under_way| under_way.left > 0);
        due.into_iter().flat_map(|what| self.salvo(what)).collect()
    }

    /// One of the sender's bundles, the newest more often than others.
    pub(super) fn victim(&mut self) -> Option<Victim> {
        let (newest, any) = (self.rng.chance(600), self.rng.next_u64());
        let count = self.victims.len() as u64;
        let at = if newest { count.checked_sub(1)? } else { any.checked_rem(count)? };
        self.victims.get(usize::try_from(at).expect("few")).cloned()
    }

    /// Invents a bundle.
    pub(super) fn make_up(&mut self, signer: checkvalve_protocol::id::KeyId) -> BundleId {
        let bundle = BundleId::new(self.rng.next_u64(), signer);
        self.made_up.insert(bundle);
        bundle
    }

    /// Mostly its own session, else a new one or the sender's.
    pub(super) fn any_session(&mut self) -> SessionId {
        match self.rng.below(6) {
            0 => SessionId(self.rng.next_u64()),
            1 => self.theirs,
            _ => self.session,
        }
    }

    /// A datagram of any session, with any counter.
    pub(super) fn seal(&mut self, session: SessionId, content: Content, payload: &[u8]) -> Vec<u8> {
        let counter = match self.rng.below(8) {
            0 => 0,
            1 => u64::MAX,
            2 => self.rng.next_u64(),
            _ => {
                self.counter += 1;
                self.counter
            }
        };
        let sealer = self.sealer(session);
        let mut datagram = vec![0; sealer.datagram_len(payload.len())];
        sealer.seal(&Header { sealed: true, session, counter, content }, payload, &mut datagram);
        datagram
    }

    fn sealer(&mut self, session: SessionId) -> &Sealer {
        let at = self.sealers.iter().position(|sealer| sealer.session() == session).unwrap_or_else(|| {
            self.sealers.truncate(SEALERS - 1);
            self.sealers.push_front(Sealer::new(Some(&LINK_KEY), session));
            0
        });
        &self.sealers[at]
    }

    /// All source symbols of an object.
    pub(super) fn object(&mut self, bundle: BundleId, kind: ObjectKind, oti: Oti, bytes: &[u8]) -> Vec<Vec<u8>> {
        let session = self.any_session();
        let mut symbols = bytes.chunks(oti.symbol_size().into());
        let mut datagrams = Vec::new();
        for sbn in 0..oti.blocks() {
            for esi in 0..oti.block_symbols(sbn).unwrap_or(0) {
                let mut payload = symbols.next().unwrap_or_default().to_vec();
                payload.resize(oti.symbol_size().into(), 0);
                let symbol = Symbol { bundle, kind, sbn, esi: esi.into(), oti };
                datagrams.push(self.seal(session, Content::Symbol(symbol), &payload));
            }
        }
        datagrams
    }
}

impl World<'_> {
    /// Checks that forged bundles are listed only for the key that signed them, and that none is published.
    pub(super) fn nothing_forged(&self, status: &Status) -> Held {
        for row in &status.bundles {
            let what = format!("{}/{} ({}) is {:?}", row.channel, row.sequence, row.id, row.state);
            let Ok(id) = row.id.parse::<BundleId>() else { continue };
            if self.peer.made_up.contains(&id) {
                return Err(format!("a forged bundle is believed: {what}"));
            }
            let own = self.peer.own.contains(&id);
            if own && (super::settle::is_ours(&row.channel) || !self.script.options.neighbour) {
                return Err(format!("a bundle of another key is in the channel: {what}"));
            }
            let over = matches!(row.state, State::Complete | State::Installing | State::Installed);
            if own && (over || row.path.is_some()) {
                return Err(format!("a bundle without its data is published: {what}"));
            }
        }
        Ok(())
    }

    /// Checks that the receiver, once the line is silent, has no block in memory and forgets all unsigned bundles.
    pub(super) fn nothing_is_left(&mut self) -> Held {
        self.silence();
        self.advance(self.now + FORGOTTEN_MS * MS)?;
        let process = self.high.process.as_ref().ok_or("the receiver does not stay up although nothing is wrong")?;
        let usage = process.usage();
        if (usage.unsigned_objects, usage.unsigned_memory) != (0, 0) {
            return Err(format!("what nobody signed for is still held: {usage:?}"));
        }
        let extents = self.memory.in_use();
        if (usage.open_blocks, extents) != (0, 0) {
            return Err(format!("the line is silent, and {extents} blocks are in memory: {usage:?}"));
        }
        if self.high.faulty {
            return Ok(());
        }
        let all = self.high.disk.tree(std::path::Path::new("/"));
        let names: BTreeSet<String> = self.peer.made_up.iter().map(ToString::to_string).collect();
        let named = |found: &&crate::simdisk::Found| {
            found.path.iter().any(|name| name.to_str().is_some_and(|name| names.contains(name)))
        };
        match all.iter().find(named) {
            Some(found) => Err(format!("what nobody signed for is still on the disk: {:?}", found.path)),
            None => Ok(()),
        }
    }
}
