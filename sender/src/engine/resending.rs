//! Resends that an operator asks for.

use std::ops::Range;

use checkvalve_host::journal::Sync;
use checkvalve_protocol::id::{BundleId, ChannelName};
use checkvalve_protocol::partition::Oti;

use super::{Engine, Now};
use crate::bundles::Record;
use crate::ledger::{BundleRecord, LedgerError, Resend, State};

/// The fewest digits of an id that can name a bundle.
const SHORTEST_PREFIX: usize = 4;
/// The most block ranges that may be asked for per bundle. All of them are in one record of the ledger.
const MOST_RANGES: usize = 20_000;

/// A bundle that will be sent again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chosen {
    /// The bundle.
    pub id: BundleId,
    /// Its channel.
    pub channel: ChannelName,
    /// Its number in the channel.
    pub sequence: u64,
    /// How many source blocks will be sent.
    pub blocks: u64,
    /// How many source blocks it has.
    pub of_blocks: u64,
    /// Length of its data in bytes.
    pub bytes: u64,
}

/// Why a bundle is not sent again.
#[derive(Debug, thiserror::Error)]
pub enum ResendError {
    /// No bundle has this name.
    #[error("no bundle {0}; write CHANNEL/SEQUENCE or the first digits of an id (`status` lists both)")]
    Unknown(String),
    /// Several bundle ids begin with these digits.
    #[error("{0} names {1} bundles; write more digits of the id")]
    Ambiguous(String, usize),
    /// The bundle has not been transmitted yet, and will be sent anyway.
    #[error("{0} was not transmitted yet; it will be without asking")]
    NotTransmitted(String),
    /// The bundle failed and cannot be sent.
    #[error("{0} failed: {1}; drop it again")]
    Failed(String, String),
    /// Its content is gone.
    #[error(
        "{0} is no longer retained; if you still have it unchanged, `resend --ticket TICKET --from PATH` sends from there, \
         else drop it again as a new bundle (`[retain]` in the configuration says how long bundles are kept)"
    )]
    NotRetained(String),
    /// The bundle does not have these blocks.
    #[error("{0} has {1} source blocks, numbered from 0; there is no range {2}..{3}")]
    Blocks(String, u32, u32, u32),
    /// More ranges than a record of the ledger holds.
    #[error(
        "more than {1} ranges of blocks of {0} are asked for; wait until it was sent again, or make a shorter ticket"
    )]
    TooManyRanges(String, usize),
    /// More bundles than one ticket may ask for.
    #[error("{0} are more bundles than are sent again at a time; use the ticket again when the others were sent")]
    TooManyBundles(String),
    /// The ledger cannot be written.
    #[error("{0}")]
    Ledger(#[from] LedgerError),
}

impl Engine {
    /// Schedules a resend durably: of the whole bundle if `ranges` is empty, else of these ranges of source blocks, each with the
    /// number of symbols per block (None: as many as the block has). `which` is `CHANNEL/SEQUENCE` or the first digits of an id.
    ///
    /// Repeating a request that is still open changes nothing. Errors: [`ResendError`].
    pub fn resend(
        &mut self,
        which: &str,
        ranges: &[(Range<u32>, Option<u32>)],
        now: Now,
    ) -> Result<Chosen, ResendError> {
        self.tick(now);
        let record = self.resendable(which)?.clone();
        let shown = which.to_owned();
        let of_blocks = blocks_of(&record);
        if let Some((bad, _)) = ranges.iter().find(|(range, _)| range.is_empty() || range.end > of_blocks) {
            return Err(ResendError::Blocks(shown, of_blocks, bad.start, bad.end));
        }
        let blocks = match ranges {
            [] => u64::from(of_blocks),
            _ => ranges.iter().map(|(range, _)| u64::from(range.end - range.start)).sum(),
        };
        let chosen = Chosen { blocks, ..chosen(&record) };
        let resend = Resend {
            ranges: ranges.iter().map(|(range, _)| (range.start, range.end)).collect(),
            symbols: ranges.iter().map(|(_, symbols)| *symbols).collect(),
            asked_ms: now.wall_ms,
        };
        self.ask_again(record, resend, &chosen)?;
        Ok(chosen)
    }

    /// The bundle that `which` names, if it can be sent again.
    pub(super) fn resendable(&self, which: &str) -> Result<&BundleRecord, ResendError> {
        let record = self.choose(which)?;
        match &record.state {
            State::Failed(reason) => Err(ResendError::Failed(which.to_owned(), reason.clone())),
            State::Queued | State::Transmitting => Err(ResendError::NotTransmitted(which.to_owned())),
            State::Transmitted if !record.held => Err(ResendError::NotRetained(which.to_owned())),
            State::Transmitted => Ok(record),
        }
    }

    /// Adds a resend to a bundle, unless the same one is already waiting.
    pub(super) fn ask_again(
        &mut self,
        mut record: BundleRecord,
        resend: Resend,
        chosen: &Chosen,
    ) -> Result<(), ResendError> {
        // The first resend may be on the wire already, and past the blocks that are asked for.
        let on_its_way = usize::from(self.bundles.record(record.id).is_some_and(Record::is_under_way));
        let is_asked = |other: &Resend| other.ranges == resend.ranges && other.symbols == resend.symbols;
        if record.resends.iter().skip(on_its_way).any(is_asked) {
            return Ok(());
        }
        let ranges = record.resends.iter().map(|resend| resend.ranges.len()).sum::<usize>() + resend.ranges.len();
        if ranges > MOST_RANGES {
            return Err(ResendError::TooManyRanges(shown(&record), MOST_RANGES));
        }
        tracing::info!(channel = %chosen.channel, sequence = chosen.sequence, bundle = %chosen.id,
            blocks = chosen.blocks, of = chosen.of_blocks, "to be sent again");
        record.resends.push(resend);
        Ok(self.put(record, Sync::Yes)?)
    }

    /// The bundle that `which` names: `CHANNEL/SEQUENCE`, or the first digits of an id.
    /// Errors: [`ResendError::Unknown`], [`ResendError::Ambiguous`].
    pub fn choose(&self, which: &str) -> Result<&BundleRecord, ResendError> {
        let unknown = || ResendError::Unknown(which.to_owned());
        if let Some((channel, sequence)) = which.split_once('/') {
            let channel = ChannelName::new(channel).map_err(|_| unknown())?;
            let sequence = sequence.parse().map_err(|_| unknown())?;
            return self.bundles.by_sequence(&channel, sequence).ok_or_else(unknown);
        }
        let prefix = which.to_ascii_lowercase();
        if prefix.len() < SHORTEST_PREFIX {
            return Err(unknown());
        }
        let found: Vec<_> = self.bundles.iter().filter(|b| b.id.to_string().starts_with(&prefix)).collect();
        match found.as_slice() {
            [one] => Ok(one),
            [] => Err(unknown()),
            several => Err(ResendError::Ambiguous(which.to_owned(), several.len())),
        }
    }
}

/// A bundle without any chosen block.
pub(super) fn chosen(record: &BundleRecord) -> Chosen {
    Chosen {
        id: record.id,
        channel: record.channel.clone(),
        sequence: record.sequence.unwrap_or_default(),
        blocks: 0,
        of_blocks: u64::from(blocks_of(record)),
        bytes: record.bytes,
    }
}

/// How people name a bundle: `CHANNEL/SEQUENCE`.
pub(super) fn shown(record: &BundleRecord) -> String {
    match record.sequence {
        Some(sequence) => format!("{}/{sequence}", record.channel),
        None => record.id.to_string(),
    }
}

/// Source blocks of a bundle's data; 0 if it has no data.
pub(super) fn blocks_of(record: &BundleRecord) -> u32 {
    Oti::new(record.bytes, record.symbol_size, record.block_symbols).map_or(0, |oti| oti.blocks())
}
