//! The disk work that may take long: looking at trees, planning, proving that what is held is unchanged, removing.
//!
//! The engine asks for it and goes on; a daemon runs each piece on a thread of its own, the simulator at once. Nothing here
//! decides anything but what it finds.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use checkvalve_host::disk::Disk;
use checkvalve_protocol::crypto::SigningKey;
use checkvalve_protocol::id::BundleId;
use checkvalve_protocol::manifest::{Announce, signed};

use crate::bundle::{self, Identity, Plan, Reader, RefuseReason};
use crate::holding::{Holding, Home};
use crate::ledger::BundleRecord;
use crate::spool::{Place, Signature};

/// Bytes that are read at once when only hashes are wanted.
const READ: usize = 1 << 20;
/// Why a bundle of another key is not sent.
const OTHER_KEY: &str = "it was announced with another signing key than the present one; drop it again";

/// One piece of work.
pub enum Work {
    /// Look at something in the spool.
    Probe {
        /// The name.
        place: Place,
        /// Where it is.
        path: PathBuf,
    },
    /// Plan and sign a bundle that was claimed.
    Plan(Box<Planning>),
    /// Make a bundle that was planned before ready for the wire.
    Load(Box<Loading>),
    /// Prove that what was claimed is the content of a bundle that was let go.
    Restore(Box<Loading>),
    /// Remove what is held of bundles.
    Remove {
        /// Their directories.
        homes: Vec<Home>,
    },
}

/// What came of it.
pub enum Done {
    /// Of [`Work::Probe`].
    Probed(Place, io::Result<Signature>),
    /// Of [`Work::Plan`].
    Planned(BundleId, Result<Loaded, RefuseReason>),
    /// Of [`Work::Load`].
    Loaded(BundleId, Result<Loaded, LoadError>),
    /// Of [`Work::Restore`].
    Restored(BundleId, Result<Loaded, LoadError>),
    /// Of [`Work::Remove`].
    Removed(Vec<(Home, io::Result<()>)>),
}

/// See [`Work::Plan`].
pub struct Planning {
    /// The holding area.
    pub holding: Holding,
    /// Where the bundle is in it.
    pub home: Home,
    /// What it will be called.
    pub identity: Identity,
    /// Who signs.
    pub key: Arc<SigningKey>,
}

/// See [`Work::Load`].
pub struct Loading {
    /// Where the bundle is held.
    pub home: Home,
    /// What the ledger knows of it.
    pub record: BundleRecord,
    /// Who signs.
    pub key: Arc<SigningKey>,
    /// T in bytes that follows from the link as it is now.
    pub symbol_size: u16,
    /// B in symbols, likewise.
    pub block_symbols: u16,
}

/// A bundle that is ready for the wire.
pub struct Loaded {
    /// What to read.
    pub plan: Arc<Plan>,
    /// The signed announce.
    pub announce: Vec<u8>,
    /// What the files looked like when this was made.
    pub fingerprint: [u8; 32],
    /// The files' hashes, if they are known and proven to be those of what is held.
    pub hashes: Option<Arc<Vec<[u8; 32]>>>,
}

/// Why a bundle cannot be sent again.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// What is held is not what was announced. It can only be withdrawn; with the announce, if that is still there.
    #[error("{reason}")]
    Withdraw {
        /// Why, for people.
        reason: String,
        /// The signed announce and what it says.
        announce: Option<Box<(Vec<u8>, Announce)>>,
    },
    /// The disk failed; it may work later.
    #[error("{0}")]
    Disk(String),
}

impl Work {
    /// Does it. Blocks for as long as it takes.
    #[must_use]
    pub fn run(self, disk: &Arc<dyn Disk>) -> Done {
        match self {
            Self::Probe { place, path } => Done::Probed(place, Signature::of(disk.as_ref(), &path)),
            Self::Plan(planning) => Done::Planned(planning.identity.bundle, planning.run(disk.as_ref())),
            Self::Load(loading) => Done::Loaded(loading.record.id, loading.run(disk)),
            Self::Restore(loading) => Done::Restored(loading.record.id, loading.restore(disk)),
            Self::Remove { homes } => {
                let removed = homes.into_iter().map(|home| {
                    let removed = home.remove(disk.as_ref());
                    (home, removed)
                });
                Done::Removed(removed.collect())
            }
        }
    }
}

impl Planning {
    fn run(self, disk: &dyn Disk) -> Result<Loaded, RefuseReason> {
        let Self { holding, home, identity, key } = self;
        let failed = |error| RefuseReason::Disk { path: bundle::Shown::new(&identity.name), error };
        holding.sync_claim(disk, &home).map_err(failed)?;
        let plan = bundle::plan(disk, &home.root(), identity.clone())?;
        let announce = plan.announce.sign(&key)?;
        home.write_announce(disk, &announce).map_err(failed)?;
        let fingerprint = plan.fingerprint();
        Ok(Loaded { plan: Arc::new(plan), announce, fingerprint, hashes: None })
    }
}

impl Loading {
    /// 1. Looks at the tree again: it must still be exactly what was announced.
    /// 2. Reads the signed announce, or makes it again.
    /// 3. If none of it was sent yet and the link has other symbols now, announces these instead.
    /// 4. Unless nobody touched the files since they were hashed, hashes them again.
    fn run(self, disk: &Arc<dyn Disk>) -> Result<Loaded, LoadError> {
        if !self.is_ours() {
            return Err(LoadError::Withdraw { reason: OTHER_KEY.to_owned(), announce: None });
        }
        let stored = self.stored_announce(disk.as_ref());
        let withdraw =
            |reason: &str| LoadError::Withdraw { reason: reason.to_owned(), announce: peek(stored.as_ref().ok()) };
        let mut plan = match bundle::plan(disk.as_ref(), &self.home.root(), self.identity()) {
            Ok(plan) => plan,
            // It could be read when it was planned: the disk fails, which is no change.
            Err(reason @ RefuseReason::Unreadable { .. }) => return Err(LoadError::Disk(reason.to_string())),
            Err(reason) if reason.is_temporary() => return Err(LoadError::Disk(reason.to_string())),
            Err(reason) => return Err(withdraw(&format!("it changed while it was held: {reason}"))),
        };
        let mut announce = match &stored {
            Ok(bytes) => bytes.clone(),
            Err(_) => {
                let bytes = plan.announce.sign(&self.key).map_err(|e| withdraw(&e.to_string()))?;
                if digest(&bytes) != self.record.announce {
                    return Err(withdraw("it changed while it was held, or its announce is lost"));
                }
                self.home.write_announce(disk.as_ref(), &bytes).map_err(|e| LoadError::Disk(e.to_string()))?;
                bytes
            }
        };
        if !Announce::peek(&announce).is_ok_and(|was| was == plan.announce) {
            return Err(withdraw("it changed while it was held"));
        }
        if signed::parse(&announce).is_ok_and(|parsed| parsed.signer != self.key.public().id()) {
            return Err(withdraw(OTHER_KEY));
        }
        let present = (self.symbol_size, self.block_symbols);
        if self.record.next_esi == 0 && (plan.announce.symbol_size, plan.announce.block_symbols) != present {
            (plan.announce.symbol_size, plan.announce.block_symbols) = present;
            announce = plan.announce.sign(&self.key).map_err(|e| withdraw(&e.to_string()))?;
            // Until the ledger has this one's digest, it is made again from what the ledger has.
            self.home.write_announce(disk.as_ref(), &announce).map_err(|e| LoadError::Disk(e.to_string()))?;
        }
        let plan = Arc::new(plan);
        let fingerprint = plan.fingerprint();
        let hashes = self.prove(disk, &plan, fingerprint).map_err(|reason| withdraw(&reason))?;
        Ok(Loaded { plan, announce, fingerprint, hashes })
    }

    /// The same for a bundle of which nothing is held but the files themselves: 1. looks at the tree, 2. makes the announce
    /// again, which must have the digest that the ledger knows, 3. hashes all files, 4. makes that durable.
    fn restore(self, disk: &Arc<dyn Disk>) -> Result<Loaded, LoadError> {
        let refuse = |reason: String| LoadError::Withdraw { reason, announce: None };
        if !self.is_ours() {
            return Err(refuse("it was sent with another signing key than the present one".to_owned()));
        }
        let plan =
            bundle::plan(disk.as_ref(), &self.home.root(), self.identity()).map_err(|e| refuse(e.to_string()))?;
        let announce = plan.announce.sign(&self.key).map_err(|e| refuse(e.to_string()))?;
        if digest(&announce) != self.record.announce {
            let what = if plan.data_len() == self.record.bytes {
                "a name, mode, time or symlink in it differs from what was announced, or the signing key is another one; the \
                 announce itself is no longer kept, only its BLAKE3, so that nothing more can be said".to_owned()
            } else {
                let (is, was) = (plan.data_len(), self.record.bytes);
                format!("its files have {is} bytes together, those that were announced had {was}")
            };
            return Err(refuse(format!("not the same: {what}")));
        }
        let plan = Arc::new(plan);
        let hashes = hash_all(disk, &plan, self.home.root()).map_err(refuse)?;
        if self.record.hashes.is_some_and(|expected| hashes_digest(&hashes) != expected) {
            return Err(refuse("not the same: the contents of its files are others".to_owned()));
        }
        let kept = self.home.write_announce(disk.as_ref(), &announce);
        let kept = kept.and_then(|()| self.home.write_hashes(disk.as_ref(), &hashes));
        kept.and_then(|()| self.home.sync(disk.as_ref())).map_err(|e| LoadError::Disk(e.to_string()))?;
        let fingerprint = plan.fingerprint();
        Ok(Loaded { plan, announce, fingerprint, hashes: Some(Arc::new(hashes)) })
    }

    fn stored_announce(&self, disk: &dyn Disk) -> io::Result<Vec<u8>> {
        let bytes = self.home.read_announce(disk)?;
        if digest(&bytes) == self.record.announce { Ok(bytes) } else { Err(io::ErrorKind::InvalidData.into()) }
    }

    /// The hashes of what is held, where they were known before. Errors: why it is not what was sent before.
    fn prove(
        &self,
        disk: &Arc<dyn Disk>,
        plan: &Arc<Plan>,
        fingerprint: [u8; 32],
    ) -> Result<Option<Arc<Vec<[u8; 32]>>>, String> {
        let untouched = fingerprint == self.record.fingerprint;
        let Some(expected) = self.record.hashes else {
            // Some of it may be on the other side already, and nothing tells whether this is the same.
            let begun = self.record.next_esi > 0 && self.record.fingerprint != [0; 32];
            return if begun && !untouched { Err("it was touched while it was held".to_owned()) } else { Ok(None) };
        };
        let stored = self.home.read_hashes(disk.as_ref()).ok().filter(|hashes| hashes_digest(hashes) == expected);
        let hashes = match stored {
            Some(hashes) if untouched => hashes,
            _ => hash_all(disk, plan, self.home.root())?,
        };
        if hashes_digest(&hashes) != expected {
            return Err("what is held is not what was sent before".to_owned());
        }
        // If this does not work, they are made again the next time.
        drop(self.home.write_hashes(disk.as_ref(), &hashes));
        Ok(Some(Arc::new(hashes)))
    }

    /// Whether the present key may speak of it.
    fn is_ours(&self) -> bool {
        self.record.id.tag() == self.key.public().id().tag()
    }

    fn identity(&self) -> Identity {
        let BundleRecord { id, channel, sequence, name, claimed_ms, symbol_size, block_symbols, .. } = &self.record;
        Identity {
            bundle: *id,
            channel: channel.clone(),
            sequence: sequence.unwrap_or_default(),
            name: name.clone(),
            created_ms: *claimed_ms,
            symbol_size: *symbol_size,
            block_symbols: *block_symbols,
        }
    }
}

/// BLAKE3 of a signed announce.
#[must_use]
pub fn digest(bytes: &[u8]) -> [u8; 32] {
    blake3::hash(bytes).into()
}

/// BLAKE3 over a list of hashes.
#[must_use]
pub fn hashes_digest(hashes: &[[u8; 32]]) -> [u8; 32] {
    digest(hashes.as_flattened())
}

fn hash_all(disk: &Arc<dyn Disk>, plan: &Arc<Plan>, root: PathBuf) -> Result<Vec<[u8; 32]>, String> {
    let mut reader = Reader::new(Arc::clone(disk), Arc::clone(plan), root);
    let mut buf = vec![0; READ];
    while reader.read(&mut buf).map_err(|e| e.to_string())? == buf.len() {}
    reader.finish().map_err(|e| e.to_string())
}

fn peek(bytes: Option<&Vec<u8>>) -> Option<Box<(Vec<u8>, Announce)>> {
    let bytes = bytes?;
    Some(Box::new((bytes.clone(), Announce::peek(bytes).ok()?)))
}
