//! The receiving end: the protocol's own receive session, its objects kept in memory.

use std::collections::BTreeMap;
use std::time::Duration;

use checkvalve_protocol::fec::Plans;
use checkvalve_protocol::id::BundleId;
use checkvalve_protocol::partition::{BlockSet, Oti};
use checkvalve_protocol::receive::{DropReason, Drops, Limits, Origin, Reassembly, Taken, Usage, Wanted};
use checkvalve_protocol::seal::Opener;
use checkvalve_protocol::time::Time;
use checkvalve_protocol::wire::{ObjectKind, Symbol};

use super::Bundle;

/// A receiver that wants everything.
pub struct High {
    plans: Plans,
    opener: Opener,
    reassembly: Reassembly,
    objects: BTreeMap<(BundleId, ObjectKind), Object>,
    /// What was dropped and why.
    pub drops: Drops,
    /// Blocks that had to be decoded.
    pub decoded: u64,
}

struct Object {
    oti: Oti,
    bytes: Vec<u8>,
    have: BlockSet,
}

impl High {
    /// A receiver under `link_key`, with this much memory for blocks.
    pub fn new(link_key: [u8; 32], memory: u64) -> Self {
        let second = Duration::from_secs(1);
        let limits = Limits { objects: 64, idle: 60 * second, ask_again: 2 * second, ..Limits::new(memory) };
        Self {
            plans: Plans::new(),
            opener: Opener::new(Some(link_key)),
            reassembly: Reassembly::new(limits),
            objects: BTreeMap::new(),
            drops: Drops::default(),
            decoded: 0,
        }
    }

    /// Takes datagrams in order of arrival.
    pub fn receive(&mut self, arrived: Vec<(Time, Vec<u8>)>) {
        for (at, mut datagram) in arrived {
            if let Err(reason) = self.one(at, &mut datagram) {
                self.drops.add(reason);
            }
            self.store(at);
        }
    }

    /// An object's bytes once all of them are here.
    pub fn object(&self, bundle: BundleId, kind: ObjectKind) -> Option<&[u8]> {
        let object = self.objects.get(&(bundle, kind))?;
        (object.have.len() == u64::from(object.oti.blocks())).then_some(&object.bytes[..])
    }

    /// Whether all of the bundle is here.
    ///
    /// # Panics
    /// When an object of it is complete and differs from what was sent, which must never happen.
    pub fn has(&self, bundle: &Bundle) -> bool {
        [ObjectKind::Announce, ObjectKind::Data, ObjectKind::Hashes].into_iter().all(|kind| {
            let wanted = bundle.object(kind);
            let found = self.object(bundle.id, kind);
            assert!(found.is_none_or(|found| found == wanted), "{kind:?} was rebuilt wrong");
            found.is_some() || wanted.is_empty()
        })
    }

    /// What is in use.
    pub fn usage(&self) -> Usage {
        self.reassembly.usage()
    }

    fn one(&mut self, at: Time, datagram: &mut [u8]) -> Result<(), DropReason> {
        let objects = &mut self.objects;
        let taken = match self.reassembly.take(at, &mut self.opener, datagram)? {
            Taken::Symbol | Taken::Beacon(..) => Ok(()),
            Taken::Dropped(reason) => Err(reason),
        };
        let late = self.reassembly.answer_all(at, |symbol| want(objects, symbol));
        taken.and(late.iter().find(|(_, count)| *count > 0).map_or(Ok(()), |(reason, _)| Err(reason)))
    }

    fn store(&mut self, at: Time) {
        while let Some(mut block) = self.reassembly.poll_complete() {
            self.decoded += u64::from(!block.is_whole());
            if block.decode(&self.plans).is_err() {
                self.reassembly.undecodable(at, block);
                continue;
            }
            let object = self.objects.get_mut(&(block.bundle(), block.kind())).expect("only wanted objects come");
            let start = object.oti.block_offset(block.sbn()).expect("a block of the object");
            let start = usize::try_from(start).expect("an object in memory");
            object.bytes[start..start + block.data().len()].copy_from_slice(block.data());
            assert!(object.have.add(block.sbn()), "a block came twice");
            self.reassembly.stored(block);
        }
        while let Some(block) = self.reassembly.poll_parked() {
            self.reassembly.recycle(block);
        }
    }
}

fn want(objects: &mut BTreeMap<(BundleId, ObjectKind), Object>, symbol: &Symbol) -> Wanted {
    let length = usize::try_from(symbol.oti.transfer_length()).expect("an object in memory");
    let object = objects.entry((symbol.bundle, symbol.kind)).or_insert_with(|| Object {
        oti: symbol.oti,
        bytes: vec![0; length],
        have: BlockSet::new(),
    });
    if object.oti != symbol.oti {
        return Wanted::No(DropReason::Refused);
    }
    Wanted::Yes { have: object.have.clone(), parked: Vec::new(), origin: Origin::Signed }
}

impl std::fmt::Debug for High {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("High").field("drops", &self.drops).field("decoded", &self.decoded).finish_non_exhaustive()
    }
}
