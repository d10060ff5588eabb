//! Continues as another state when the sender's own was lost, restored from a backup or cloned: with a new epoch, with
//! sequences that the other side does not know yet, and with unsent bundles under new ids.
//!
//! 1. Held bundles that are missing from a lost ledger are taken back into it.
//! 2. The ledger is rewritten, all at once: before that nothing has happened.
//! 3. The next start finds held content that belongs to no bundle in the ledger, and plans it like something just
//!    claimed ([`engine`](crate::engine)).

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use checkvalve_host::disk::Disk;
use checkvalve_host::log::escape_path;
use checkvalve_protocol::beacon::Epoch;
use checkvalve_protocol::id::{ChannelName, EpochId};
use checkvalve_protocol::limits::MAX_SEQUENCE;
use checkvalve_protocol::transmit::Parameters;

use crate::bundles::Bundles;
use crate::engine::taken_back;
use crate::holding::Holding;
use crate::ledger::{BundleRecord, LedgerError};

/// What an operator knows of the other side.
#[derive(Debug, Clone)]
pub struct Adoption {
    /// The spool.
    pub spool: PathBuf,
    /// The state directory, whose lock the caller holds.
    pub state: PathBuf,
    /// What follows from the link.
    pub parameters: Parameters,
    /// The newest sequence of each channel that the other side knows.
    pub sequences: BTreeMap<ChannelName, u64>,
    /// The number that the new epoch has at least, from 1.
    pub epoch: Option<u64>,
    /// 64 random bits.
    pub epoch_id: EpochId,
    /// From which sequence on a channel's bundles that are still held are sent again, whether or not they were sent.
    pub again: BTreeMap<ChannelName, u64>,
}

/// What was done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Adopted {
    /// The epoch that begins with the next start.
    pub epoch: Epoch,
    /// The one before it, where the ledger knew any.
    pub before: Option<Epoch>,
    /// Channels that were named, or have given out a sequence.
    pub channels: Vec<Raised>,
    /// Bundles that were held and taken back into a ledger that was lost or damaged.
    pub taken_back: usize,
    /// Bundles that are sent again under new ids and sequences, in the order of their old ones.
    pub again: Vec<BundleRecord>,
}

/// What became of a channel's newest sequence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Raised {
    /// The channel.
    pub channel: ChannelName,
    /// The newest sequence that this sender had given out; 0: none.
    pub before: u64,
    /// The one after which it goes on.
    pub newest: u64,
    /// The one that the other side is said to know.
    pub named: Option<u64>,
}

/// Why nothing was adopted.
#[derive(Debug, thiserror::Error)]
pub enum AdoptError {
    /// The ledger cannot be opened or written.
    #[error("ledger: {0}")]
    Ledger(#[from] LedgerError),
    /// What is held cannot be looked through.
    #[error("{}: {error}", escape_path(.path))]
    Disk {
        /// The state directory.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// There is no higher number.
    #[error("the new epoch would have a number over {MAX_SEQUENCE}, the highest")]
    Epoch,
}

/// Makes the state go on as another one. However it ends, the ledger on the disk is wholly the old one or wholly the new one; to
/// adopt again does no harm. Errors: [`AdoptError`].
pub fn adopt(disk: &Arc<dyn Disk>, adoption: &Adoption) -> Result<Adopted, AdoptError> {
    let Adoption { spool, state, parameters, sequences, .. } = adoption;
    let (mut bundles, damage) = Bundles::open(disk, &state.join("ledger"))?;
    let before = bundles.epoch();
    // The first epoch of a state that was lost had the number 1.
    let number = before.map_or(1, |epoch| epoch.number).saturating_add(1);
    let number = number.max(adoption.epoch.unwrap_or_default());
    if number > MAX_SEQUENCE {
        return Err(AdoptError::Epoch);
    }
    let epoch = Epoch { number, id: adoption.epoch_id };
    let mut count = 0;
    if damage.is_real() || damage.empty {
        let held = Holding::closed(spool, state).scan(disk.as_ref());
        for found in held.map_err(|error| AdoptError::Disk { path: state.clone(), error })? {
            let Some(mut record) = taken_back(&bundles, disk.as_ref(), parameters, &found) else { continue };
            if record.hashes.is_some() {
                // It was read to its end, so it was transmitted; a ticket tells if it has to be again.
                record.end(None, bundles.uptime_ms());
            }
            bundles.remember(record);
            count += 1;
        }
    }
    let newest = |bundles: &Bundles| bundles.channels().map(|c| (c.clone(), bundles.last_sequence(c))).collect();
    let old: BTreeMap<ChannelName, u64> = newest(&bundles);
    let holding = Holding::closed(spool, state);
    // What cannot be looked at may be there.
    let is_there = |record: &BundleRecord| !matches!(holding.find(disk.as_ref(), &record.channel, record.id), Ok(None));
    let again = bundles.iter().filter(|record| is_sent_again(record, &adoption.again) && is_there(record));
    let mut again: Vec<_> = again.cloned().collect();
    again.sort_by(|a, b| (&a.channel, a.sequence).cmp(&(&b.channel, b.sequence)));
    let ids: Vec<_> = again.iter().map(|record| record.id).collect();
    bundles.begin_anew(epoch, sequences, &ids)?;
    let raised = |(channel, newest): (ChannelName, u64)| Raised {
        before: old.get(&channel).copied().unwrap_or_default(),
        newest,
        named: sequences.get(&channel).copied(),
        channel,
    };
    let now: BTreeMap<ChannelName, u64> = newest(&bundles);
    Ok(Adopted { epoch, before, channels: now.into_iter().map(raised).collect(), taken_back: count, again })
}

/// Whether a bundle begins anew: nobody can say whether the other side heard of it from the state that was.
fn is_sent_again(record: &BundleRecord, again: &BTreeMap<ChannelName, u64>) -> bool {
    let is_named = || again.get(&record.channel).is_some_and(|first| record.sequence >= Some(*first));
    record.is_unsent() || (record.held && !record.has_failed() && is_named())
}
