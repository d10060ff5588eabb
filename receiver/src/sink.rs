//! The seam between the data plane and what keeps bundles: the pipeline calls a [`Sink`] from its threads.
//!
//! Two implementations exist: the receiver's own delivery, and the simulator's.

use std::io;

use checkvalve_protocol::id::{BundleId, SessionId};
use checkvalve_protocol::partition::{BlockSet, Oti};
use checkvalve_protocol::receive::{Origin, ReceiveProgress, ReceivedBlock, Sent};
use checkvalve_protocol::wire::ObjectKind;

/// What takes decoded blocks, signed objects and beacons. Every method may be called from several threads at once.
pub trait Sink: Send + Sync {
    /// Whether an object is wanted. Called once per new object, and again after [`Sink::block`] has failed; from the
    /// receive thread, so it never touches a disk. Only authenticated datagrams lead here.
    fn want(&self, bundle: BundleId, kind: ObjectKind, oti: &Oti) -> Want;

    /// One whole, decoded source block; `buf` is its bytes without padding, `oti.block_len(sbn)` long. May wait for
    /// the disk. Order is arbitrary; a block comes at most once unless it failed. Errors: the block counts as not
    /// received, its symbols may be thrown away, and a later transmission brings it again.
    fn block(&self, bundle: BundleId, kind: ObjectKind, oti: &Oti, sbn: u32, buf: &[u8]) -> Result<(), StoreError>;

    /// Keeps the symbols of a block that had to leave memory unfinished, together with those that it kept of it before;
    /// returns how many it keeps now, 0 if it cannot. May wait for the disk.
    fn park(&self, block: &ReceivedBlock) -> u32 {
        let _ = block;
        0
    }

    /// Adds to `block` what was kept of it. May wait for the disk.
    fn unpark(&self, block: &mut ReceivedBlock) {
        let _ = block;
    }

    /// How many symbols it keeps of which blocks of an object. Called after [`Sink::want`] has said yes; never touches a
    /// disk.
    fn parked(&self, bundle: BundleId, kind: ObjectKind, oti: &Oti) -> Vec<(u32, u32)> {
        let _ = (bundle, kind, oti);
        Vec::new()
    }

    /// Bundles of which something was given up since the last call, so that [`Sink::want`] is to be asked about them again.
    fn lost(&self) -> Vec<(BundleId, Lost)> {
        Vec::new()
    }

    /// A signed object that came in one block. What counts touches no disk; what is refused, held or withdrawn does. Errors: [`StoreError::Refused`] or [`StoreError::Unwanted`]: it
    /// counts as not received.
    fn manifest(&self, bundle: BundleId, kind: ObjectKind, bytes: &[u8]) -> Result<(), StoreError>;

    /// Takes a beacon that came in a datagram of a session. If many come, only some are passed on, in no order. Touches
    /// no disk. `now_ms` as in [`Sink::tick`]. Returns what it says was sent before it, if it
    /// counts.
    fn beacon(&self, now_ms: u64, session: SessionId, signed: &[u8]) -> Option<Sent>;

    /// Bundles that a trusted key signed for, as became known since the last call.
    fn vouched(&self) -> Vec<BundleId> {
        Vec::new()
    }

    /// Nothing came for long of a bundle that nobody signed for. May wait for the disk.
    fn expired(&self, bundle: BundleId) {
        let _ = bundle;
    }

    /// How far an object is, for status only; a few times a second per object at most. Never touches a disk.
    fn progress(&self, bundle: BundleId, kind: ObjectKind, progress: ObjectProgress);

    /// Time passes: `now_ms` is Unix time in milliseconds. About ten times a second, from a thread that may wait for
    /// the disk (never the receive thread).
    fn tick(&self, now_ms: u64);
}

/// What of a bundle was given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lost {
    /// Blocks that were stored. Symbols of unfinished ones are as good as before.
    Stored,
    /// All of it: it came to an end, has to come again, or what is here of it may be wrong.
    All,
}

/// Answer to whether an object is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Want {
    /// Yes, but for the blocks that are stored already.
    Yes {
        /// SBNs under the given OTI that need not be decoded again.
        have: BlockSet,
        /// Whose bundle it is.
        origin: Origin,
    },
    /// It is complete, or its bundle has come to an end: its datagrams are counted and dropped. This may change
    /// (a key is trusted later, a disk fault is mended), so the answer is to be forgotten after some seconds.
    Done,
    /// Not wanted for this reason: its datagrams are dropped and counted under it. To be forgotten likewise.
    Refuse(RefuseReason),
}

/// How the reason of a bundle that finds no room begins.
pub const NO_ROOM: &str = "no room in staging";

/// Why the symbols of an object are not collected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum RefuseReason {
    /// Its OTI is not what the signed announce says, or no announce can be that long.
    #[error("its OTI is not the announced one")]
    Length,
    /// No trusted key has the tag of its bundle's id.
    #[error("its bundle is of no trusted key")]
    Signer,
    /// Staging has reached `quota`, or the disk its reserve.
    #[error("{NO_ROOM}")]
    NoRoom,
}

/// Why a block was not stored.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Disk full, its reserve reached, or `quota` reached.
    #[error("{NO_ROOM}")]
    NoRoom,
    /// The disk failed.
    #[error("disk: {0}")]
    Disk(io::Error),
    /// The bundle has come to an end meanwhile, or the block is none of its object.
    #[error("not wanted any more")]
    Unwanted,
    /// The signed object that it completes does not count: it is to come again.
    #[error("not rightly signed")]
    Refused,
}

impl From<io::Error> for StoreError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::NoRoom,
            _ => Self::Disk(error),
        }
    }
}

/// How far the reassembly of an object is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ObjectProgress {
    /// Bytes of the object.
    pub length: u64,
    /// Source blocks decoded and stored.
    pub blocks_done: u32,
    /// Source blocks in the object.
    pub blocks_total: u32,
    /// Blocks of which some but not enough symbols have come.
    pub blocks_open: u32,
    /// Symbols that the open blocks lack at least.
    pub symbols_lacking: u64,
}

impl ObjectProgress {
    /// What the reassembly says, as far as numbers of blocks go.
    #[must_use]
    pub fn of(progress: &ReceiveProgress) -> Self {
        let count = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
        Self {
            length: progress.oti.transfer_length(),
            blocks_done: count(progress.blocks_done),
            blocks_total: progress.oti.blocks(),
            blocks_open: count(progress.blocks_open),
            symbols_lacking: progress.symbols_lacking,
        }
    }
}
