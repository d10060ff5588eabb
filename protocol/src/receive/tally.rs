//! What the counters and blocks of a session tell about the link: loss, bursts, and how near the repair came to its end.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::Duration;

use super::block::ReceivedBlock;
use super::counters::Total;
use crate::id::{BundleId, KeyTag};
use crate::time::Time;
use crate::wire::Symbol;

/// Blocks of one key's bundles whose surplus is still counted at most.
const MOST: usize = 1 << 15;
/// Bundles of one key that are remembered as interrupted; the oldest goes.
const MOST_INTERRUPTED: usize = 256;
/// How long after it was complete a block's surplus is counted.
const SETTLED: Duration = Duration::from_secs(2);

/// What is known so far of the datagrams of one key's sender. Counts only grow. Nothing of it comes from another key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tally {
    /// The key that signs its beacons and bundles.
    pub key: KeyTag,
    /// Datagrams that were sent, as beacons say.
    pub sent: u64,
    /// How many of them came.
    pub received: u64,
    /// The most datagrams in a row that did not come since [`Reassembly::tally`](super::Reassembly::tally) was asked last.
    pub longest_burst: u64,
    /// Of the blocks that settled since then the least margin, in parts in a thousand: symbols that came beyond those needed, as
    /// a share of the repair symbols that were sent. Negative where a block lacks symbols. None: no block settled.
    pub margin: Option<i32>,
}

/// Blocks whose symbols are being counted.
#[derive(Default)]
pub(super) struct Margins {
    blocks: HashMap<BundleId, HashMap<u32, TallyBlock>>,
    order: VecDeque<(Time, BundleId, u32)>,
    /// How many of these are of each key.
    counts: BTreeMap<KeyTag, usize>,
    /// What was refused or asked for again for another reason than loss, by key: its symbols tell nothing of the link.
    interrupted: BTreeMap<KeyTag, VecDeque<BundleId>>,
    /// By the key of the bundles.
    least: BTreeMap<KeyTag, i32>,
}

struct TallyBlock {
    source: u32,
    received: u32,
    highest_esi: u32,
}

impl Margins {
    /// A block has its K symbols. Only a first pass is counted: of others it is not known what was sent.
    pub(super) fn complete(&mut self, now: Time, block: &ReceivedBlock) {
        let (source, received, highest_esi) = block.counted();
        let (bundle, sbn) = (block.bundle(), block.sbn());
        let count = self.counts.get(&bundle.tag()).copied().unwrap_or(0);
        if count < MOST && highest_esi < 2 * source + 64 && !self.is_interrupted(bundle) {
            self.counts.insert(bundle.tag(), count + 1);
            self.blocks.entry(bundle).or_default().insert(sbn, TallyBlock { source, received, highest_esi });
            self.order.push_back((now, bundle, sbn));
        }
    }

    /// Symbols of this bundle were refused, or will be, though the link brought them: they do not count.
    pub(super) fn interrupt(&mut self, bundle: BundleId) {
        self.blocks.remove(&bundle);
        let interrupted = self.interrupted.entry(bundle.tag()).or_default();
        if !interrupted.contains(&bundle) {
            if interrupted.len() >= MOST_INTERRUPTED {
                interrupted.pop_front();
            }
            interrupted.push_back(bundle);
        }
    }

    fn is_interrupted(&self, bundle: BundleId) -> bool {
        self.interrupted.get(&bundle.tag()).is_some_and(|interrupted| interrupted.contains(&bundle))
    }

    /// A symbol came that a complete block did not need.
    pub(super) fn surplus(&mut self, symbol: &Symbol) {
        if let Some(block) = self.blocks.get_mut(&symbol.bundle).and_then(|blocks| blocks.get_mut(&symbol.sbn))
            && symbol.esi < 2 * block.source + 64
        {
            block.received = block.received.saturating_add(1);
            block.highest_esi = block.highest_esi.max(symbol.esi);
        }
    }

    /// A block waited in vain for symbols.
    pub(super) fn lacks(&mut self, bundle: BundleId, source: u32, lacking: u32, highest_esi: u32) {
        if lacking > 0 && highest_esi < 2 * source + 64 && !self.is_interrupted(bundle) {
            self.take(bundle.tag(), -i64::from(lacking), highest_esi, source);
        }
    }

    pub(super) fn settle(&mut self, now: Time) {
        while let Some(&(_, bundle, sbn)) = self.order.front().filter(|(since, ..)| now.since(*since) >= SETTLED) {
            self.order.pop_front();
            if let Some(count) = self.counts.get_mut(&bundle.tag()) {
                *count -= 1;
                if *count == 0 {
                    self.counts.remove(&bundle.tag());
                }
            }
            let Some(blocks) = self.blocks.get_mut(&bundle) else { continue };
            let settled = blocks.remove(&sbn);
            if blocks.is_empty() {
                self.blocks.remove(&bundle);
            }
            if let Some(block) = settled {
                let spare = i64::from(block.received) - i64::from(block.source);
                self.take(bundle.tag(), spare, block.highest_esi, block.source);
            }
        }
    }

    /// The counts of each key's sender, together with the margins since this was asked last.
    pub(super) fn tally(&mut self, totals: Vec<Total>) -> Vec<Tally> {
        let mut least = std::mem::take(&mut self.least);
        let mut tallies: Vec<Tally> =
            totals.into_iter().map(|total| Tally::new(total, least.remove(&total.key))).collect();
        let none = |key| Total { key, sent: 0, received: 0, longest: 0 };
        tallies.extend(least.into_iter().map(|(key, margin)| Tally::new(none(key), Some(margin))));
        tallies
    }

    fn take(&mut self, key: KeyTag, spare: i64, highest_esi: u32, source: u32) {
        let repair = i64::from((highest_esi + 1).saturating_sub(source).max(1));
        let margin = i32::try_from((spare * 1_000 / repair).clamp(-1_000_000, 1_000)).unwrap_or(0);
        let least = self.least.entry(key).or_insert(margin);
        *least = margin.min(*least);
    }
}

impl Tally {
    fn new(total: Total, margin: Option<i32>) -> Self {
        let Total { key, sent, received, longest } = total;
        Self { key, sent, received, longest_burst: longest, margin }
    }
}
