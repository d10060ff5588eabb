//! Jobs as their owner gives them, and how they end.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::beacon::OnWire;
use crate::fec::FecError;
use crate::id::{BundleId, ChannelName};
use crate::manifest::ManifestError;
use crate::partition::OtiError;
use crate::transmit::Selection;

/// One transmission of a bundle, and what its data is read with.
pub trait Job {
    /// Reads the data, and goes from thread to thread with the block that is to be read.
    type Reader;
    /// Why that failed.
    type Error: From<FeedError>;

    /// What is to be sent.
    fn order(&self) -> &Transmission;
}

/// What is to be sent: a pass, a resend of parts, or a withdrawal.
#[derive(Debug, Clone)]
pub struct Transmission {
    /// The bundle.
    pub bundle: BundleId,
    /// Its channel.
    pub channel: ChannelName,
    /// Its number in the channel, from 1.
    pub sequence: u64,
    /// The highest goes first.
    pub priority: i16,
    /// The signed announce.
    pub announce: Arc<Vec<u8>>,
    /// BLAKE3 of it.
    pub announce_digest: [u8; 32],
    /// Length of the data in bytes.
    pub data_len: u64,
    /// T in bytes, which the bundle was first sent with: its symbols must go on fitting together.
    pub symbol_size: u16,
    /// B in symbols, likewise.
    pub block_symbols: u16,
    /// First ESI that may be used: 0 for the first pass, which then begins with the source symbols.
    pub first_esi: u32,
    /// The pass, from 1.
    pub pass: u32,
    /// How many there will be.
    pub passes: u32,
    /// What of the data to send.
    pub selection: Selection,
    /// Why the bundle is withdrawn: then announce and withdrawal are all that is sent, and nothing is read.
    pub withdrawn: Option<String>,
    /// Where to say how far it is.
    pub progress: Arc<Progress>,
}

/// How far a job is. Written by the feed, read by status.
#[derive(Debug, Default)]
pub struct Progress {
    /// Source blocks of this transmission.
    pub blocks_total: AtomicU64,
    /// How many of them have been sent.
    pub blocks_sent: AtomicU64,
    /// Bytes of symbols sent.
    pub bytes_sent: AtomicU64,
    /// Datagrams sent.
    pub datagrams: AtomicU64,
}

/// How a job ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finished<E> {
    /// All of it was sent.
    Transmitted {
        /// The BLAKE3 of each regular file, in order.
        hashes: Vec<[u8; 32]>,
    },
    /// It could not be read. The other side has not been told: first it has to be written down.
    Failed {
        /// Why.
        reason: E,
    },
    /// The other side has been told that it will not come.
    Withdrawn,
    /// The feed was stopped; nothing is said about the bundle.
    Aborted,
}

/// Why a job cannot be sent, whatever its data is.
#[derive(Debug, thiserror::Error)]
pub enum FeedError {
    /// A block cannot be encoded.
    #[error("coding: {0}")]
    Fec(#[from] FecError),
    /// An object is too long.
    #[error("{0}")]
    Oti(#[from] OtiError),
    /// What it comes to cannot be signed.
    #[error("manifest: {0}")]
    Manifest(#[from] ManifestError),
}

impl Transmission {
    /// What beacons say about it.
    pub(super) fn on_wire(&self) -> OnWire {
        let count = |n: &AtomicU64| u32::try_from(n.load(Ordering::Relaxed)).unwrap_or(u32::MAX);
        OnWire {
            bundle: self.bundle,
            channel: self.channel.clone(),
            sequence: self.sequence,
            pass: self.pass,
            passes: self.passes,
            blocks: count(&self.progress.blocks_total),
            blocks_sent: count(&self.progress.blocks_sent),
        }
    }
}
