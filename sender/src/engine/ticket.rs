//! Resends for a ticket: which bundles, which blocks, how many symbols of each, and what that costs.

use std::ops::Range;

use checkvalve_protocol::id::ChannelName;
use checkvalve_protocol::limits::MAX_TICKET_SEQUENCES;
use checkvalve_protocol::partition::Oti;
use checkvalve_protocol::ticket::{Data, Loss, Need, Subject, Ticket};
use checkvalve_protocol::transmit::margin::symbols_to_send;
use checkvalve_protocol::transmit::{Parameters, Selection, Task, Work, WorkShape};

use super::resending::{self, Chosen, ResendError};
use super::{Engine, Now};
use crate::ledger::{BundleRecord, Resend};

/// The lowest loss to plan for, even if a ticket states less or none.
const LEAST_LOSS: f64 = 0.01;
/// The loss to plan for when the ticket does not know it.
const UNKNOWN_LOSS: f64 = 0.05;
/// The loss to plan for when more than half was lost.
const MOST_LOSS: f64 = 0.75;
/// The accepted probability that something a ticket asks for does not arrive.
const FAILURE: f64 = 1e-4;
/// The size in bytes of a signed hashes object without any hash.
const HASHES_LEN: u64 = 140;

/// What one bundle of a ticket costs to send again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Priced {
    /// The bundle, and how many of its blocks are sent.
    pub chosen: Chosen,
    /// Its name.
    pub name: Vec<u8>,
    /// How many datagrams will be sent, including announce and hashes.
    pub datagrams: u64,
    /// Their bytes on the wire, Ethernet overhead included.
    pub wire_bytes: u64,
    /// How long they take at the link's rate, in milliseconds.
    pub millis: u64,
}

/// The answer for one bundle of a ticket: its `CHANNEL/SEQUENCE` or id, and either what it costs or why it is not sent again.
pub type Asked = (String, Result<Priced, ResendError>);

impl Engine {
    /// Schedules the resends that a ticket asks for, durably. Sends so many fresh symbols that, at the loss the ticket states,
    /// the probability that something does not arrive is 10⁻⁴. With `dry_run`, only computes the cost. Returns one answer per
    /// bundle.
    pub fn resend_ticket(&mut self, ticket: &Ticket, dry_run: bool, now: Now) -> Vec<Asked> {
        self.tick(now);
        match ticket.subject() {
            Subject::Bundle { bundle, announce, data, .. } => {
                let id = bundle.to_string();
                let mut result = self.resend_part(&id, data, ticket.loss(), dry_run, now);
                // Without the announce, the receiver knows the blocks only from unsigned symbols.
                if *announce && matches!(result, Err(ResendError::Blocks(..))) {
                    result = self.resend_part(&id, &Data::All, ticket.loss(), dry_run, now);
                }
                let shown = self.bundles.get(*bundle).map_or(id, resending::shown);
                vec![(shown, result)]
            }
            Subject::Sequences { channel, first, count } => {
                let last = self.bundles.last_sequence(channel);
                let end = first.saturating_add(*count);
                let known =
                    *first..end.min(last.saturating_add(1)).min(first.saturating_add(MAX_TICKET_SEQUENCES)).max(*first);
                let (rest, mut answers) = (known.end, Vec::new());
                for sequence in known {
                    let which = format!("{channel}/{sequence}");
                    let result = self.resend_part(&which, &Data::All, ticket.loss(), dry_run, now);
                    answers.push((which, result));
                }
                if rest < end {
                    let which = sequences(channel, rest..end);
                    let too_many = rest <= last;
                    let error = if too_many {
                        ResendError::TooManyBundles(which.clone())
                    } else {
                        ResendError::Unknown(which.clone())
                    };
                    answers.push((which, Err(error)));
                }
                answers
            }
        }
    }

    fn resend_part(
        &mut self,
        which: &str,
        data: &Data,
        loss: Loss,
        dry_run: bool,
        now: Now,
    ) -> Result<Priced, ResendError> {
        let record = self.resendable(which)?.clone();
        let parameters = self.setup.parameters.with_block(record.symbol_size, record.block_symbols);
        let ranges = match Oti::new(record.bytes, record.symbol_size, record.block_symbols) {
            Ok(oti) => ranges(data, &oti, loss, &parameters)
                .map_err(|(from, to)| ResendError::Blocks(resending::shown(&record), oti.blocks(), from, to))?,
            // The bundle has no data.
            Err(_) => Vec::new(),
        };
        let resend = Resend {
            // An empty list of ranges would mean all blocks; one empty range means none.
            ranges: if ranges.is_empty() {
                vec![(0, 0)]
            } else {
                ranges.iter().map(|(r, _)| (r.start, r.end)).collect()
            },
            symbols: ranges.iter().map(|(_, symbols)| Some(*symbols)).collect(),
            asked_ms: now.wall_ms,
        };
        let priced = self.price(&record, &parameters, &ranges);
        if !dry_run {
            self.ask_again(record, resend, &priced.chosen)?;
        }
        Ok(priced)
    }

    fn price(&self, record: &BundleRecord, parameters: &Parameters, ranges: &[(Range<u32>, u32)]) -> Priced {
        let disk = self.setup.disk.as_ref();
        let (announce_len, hashes) = self.home(record).ok().flatten().map_or((1, 0), |home| home.manifest_len(disk));
        let selection = Selection::Ranges(ranges.iter().map(|(range, count)| (range.clone(), Some(*count))).collect());
        let shape = WorkShape {
            bundle: record.id,
            announce_len: announce_len.max(1),
            data_len: record.bytes,
            selection,
            // The first ESI that a reservation would give.
            first_esi: self.reserve(&mut record.clone()).start.max(1),
        };
        let count = |tasks: &mut dyn Iterator<Item = Task>| {
            tasks.fold(0, |sum: u64, task| sum.saturating_add(task.repair.into()))
        };
        let mut datagrams: u64 = 0;
        if let Ok(mut work) = Work::new(parameters, &shape) {
            datagrams = count(&mut std::iter::from_fn(|| work.next_task()));
            if work.hashes(HASHES_LEN.saturating_add(hashes)).is_ok() {
                datagrams = datagrams.saturating_add(count(&mut std::iter::from_fn(|| work.next_closing())));
            }
        }
        let wire_bytes = u64::saturating_mul(datagrams, parameters.wire_len() as u64);
        let chosen = Chosen {
            blocks: ranges.iter().map(|(range, _)| u64::from(range.end - range.start)).sum(),
            ..resending::chosen(record)
        };
        let millis = u64::try_from(u128::from(wire_bytes) * 8_000 / u128::from(parameters.rate().max(1)));
        Priced { chosen, name: record.name.clone(), datagrams, wire_bytes, millis: millis.unwrap_or(u64::MAX) }
    }
}

/// Blocks, and how many symbols of each.
type Counted = (Range<u32>, u32);

/// The ranges of blocks to send, and how many symbols of each block to send so that enough of them arrive. Errors: a range
/// of blocks that the bundle does not have.
fn ranges(data: &Data, oti: &Oti, loss: Loss, parameters: &Parameters) -> Result<Vec<Counted>, (u32, u32)> {
    let all: Vec<(Range<u32>, Need)> = match data {
        Data::Nothing => Vec::new(),
        Data::All => vec![(0..oti.blocks(), Need::Whole)],
        Data::Ranges(lacks) => lacks.iter().map(|lack| (lack.first..lack.end(), lack.need)).collect(),
    };
    if let Some((bad, _)) = all.iter().find(|(range, _)| range.end > oti.blocks()) {
        return Err((bad.start, bad.end));
    }
    let blocks: u64 = all.iter().map(|(range, _)| u64::from(range.end - range.start)).sum();
    let margin = Margin::new(loss, blocks);
    // Twice as many may be sent, to survive a burst, and a transmission has no more than `esis_per_pass` ESIs.
    let most = parameters.esis_per_pass() / 2 - 32;
    let counted = all.into_iter().map(|(range, need)| {
        let lacking = u32::from(need.symbols(oti.block_symbols(range.start).unwrap_or(1)));
        (range, margin.symbols(lacking).min(most))
    });
    Ok(counted.collect())
}

/// Computes how many symbols to send when some are missing.
struct Margin {
    loss: f64,
    /// The accepted probability that one block does not arrive.
    failure: f64,
    /// Symbols beyond the missing ones. With n of them, decoding fails with a probability of about 10^-2(n + 1).
    overhead: u32,
}

impl Margin {
    fn new(loss: Loss, blocks: u64) -> Self {
        let stated = match loss.at_most_ppm() {
            None => UNKNOWN_LOSS,
            Some(1_000_000) => MOST_LOSS,
            Some(ppm) => f64::from(ppm) / 1e6,
        };
        let blocks = blocks.max(1) as f64;
        Self {
            loss: stated.max(LEAST_LOSS),
            failure: FAILURE / 2.0 / blocks,
            overhead: if blocks <= 50.0 { 2 } else { 3 },
        }
    }

    fn symbols(&self, lacking: u32) -> u32 {
        symbols_to_send(lacking.saturating_add(self.overhead), self.loss, self.failure)
    }
}

fn sequences(channel: &ChannelName, range: Range<u64>) -> String {
    match range.end - range.start {
        1 => format!("{channel}/{}", range.start),
        _ => format!("{channel}/{} to {channel}/{}", range.start, range.end - 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use checkvalve_protocol::ticket::Lack;

    fn parameters() -> Parameters {
        let link = checkvalve_protocol::transmit::Link {
            mtu: 1_500,
            rate: 900_000_000,
            repair: 0.05,
            burst: std::time::Duration::from_millis(10),
            memory: 128 << 20,
        };
        Parameters::derive(&link).unwrap()
    }

    #[test]
    fn margin_follows_the_stated_loss() {
        let oti = parameters().oti(20_000_000_000).unwrap();
        let lack = |need| Data::Ranges(vec![Lack { first: 7, blocks: 1, need }]);
        let count = |data: &Data, loss| ranges(data, &oti, loss, &parameters()).unwrap()[0].1;
        let few = lack(Need::Symbols(3));
        let at = |lost| count(&few, Loss::of(lost, 100));
        assert!((6..10).contains(&at(0)), "{}", at(0));
        assert!(at(10) > at(1) && at(50) > at(10) && at(99) > at(50));
        assert!((55..80).contains(&at(99)), "{}", at(99));
        assert_eq!(count(&few, Loss::UNKNOWN), at(5));
        // A whole block at a loss of one half: 256 and 2 must arrive of a bit more than 516.
        let whole = count(&lack(Need::Whole), Loss::of(50, 100));
        assert!((590..640).contains(&whole), "{whole}");
        // At most half of the ESIs of a pass, because the count may be doubled.
        let most = count(&lack(Need::Whole), Loss::of(99, 100));
        assert!(2 * most + 256 < parameters().esis_per_pass() + 256);
        assert_eq!(
            ranges(&lack(Need::Whole), &parameters().oti(1_000_000).unwrap(), Loss::UNKNOWN, &parameters()),
            Err((7, 8))
        );
    }
}
