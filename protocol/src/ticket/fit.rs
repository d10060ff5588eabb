//! Fewer lines for more symbols: a ticket made coarser by steps until it is short enough.

use super::content::MIN_RANGE_BITS;
use super::lines::{self, MAX_LINES};
use super::{Data, Lack, Need, Subject, Ticket, content};
use crate::partition::Oti;

/// What a ticket asks for, in symbols of the data object. Announce and hashes are not counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cost {
    /// What the receiver lacks.
    pub lacking: u64,
    /// What the ticket asks for, at least that much.
    pub asked: u64,
}

impl Cost {
    /// What is asked for without being lacking.
    #[must_use]
    pub fn extra(&self) -> u64 {
        self.asked.saturating_sub(self.lacking)
    }
}

pub(super) fn fit(ticket: &Ticket, oti: &Oti, max_lines: usize) -> (Ticket, Cost) {
    let max_lines = max_lines.clamp(2, MAX_LINES);
    let Subject::Bundle { bundle, announce, hashes, data } = &ticket.subject else {
        return (ticket.clone(), Cost { lacking: 0, asked: 0 });
    };
    let Data::Ranges(exact) = data else {
        let asked = if *data == Data::All { oti.symbols() } else { 0 };
        return (ticket.clone(), Cost { lacking: asked, asked });
    };
    let with = |data| Ticket {
        subject: Subject::Bundle { bundle: *bundle, announce: *announce, hashes: *hashes, data },
        loss: ticket.loss,
    };
    let lacking = symbols(exact, oti);
    let mut step = 0;
    let mut ranges = exact.clone();
    loop {
        let could = lines::count(ranges.len().saturating_mul(MIN_RANGE_BITS)) <= max_lines;
        let coarse = with(Data::Ranges(ranges));
        if could && lines::count(content::encode(&coarse).len()) <= max_lines {
            let asked = coarse.symbols(oti);
            return (coarse, Cost { lacking, asked });
        }
        step = next_step(step);
        ranges = joined(exact, oti, step);
        if let [Lack { .. }] = ranges.as_slice()
            && symbols(&ranges, oti) >= oti.symbols()
        {
            return (with(Data::All), Cost { lacking, asked: oti.symbols() });
        }
    }
}

/// 0, 1, 2, 3, 4, 6, 8, 12, 16, 24 …: two steps for each doubling.
fn next_step(step: u64) -> u64 {
    match step {
        0..2 => step.saturating_add(1),
        _ if step.is_power_of_two() => step.saturating_add(step / 2),
        _ => (step / 3).saturating_mul(4),
    }
}

/// Neighbours made one where that asks for at most `budget` symbols more, from the first on.
fn joined(ranges: &[Lack], oti: &Oti, budget: u64) -> Vec<Lack> {
    let mut joined: Vec<Lack> = Vec::new();
    for &next in ranges {
        match joined.last_mut() {
            Some(last) if extra(*last, next, oti) <= budget => {
                last.blocks = next.end().saturating_sub(last.first);
                last.need = last.need.max(next.need);
            }
            _ => joined.push(next),
        }
    }
    joined
}

/// How many more symbols are asked for if both ranges and all between them become one range.
fn extra(a: Lack, b: Lack, oti: &Oti) -> u64 {
    let source = oti.max_block_symbols();
    let most = a.need.max(b.need).symbols(source);
    let over =
        |lack: Lack| u64::from(lack.blocks).saturating_mul(most.saturating_sub(lack.need.symbols(source)).into());
    let between = u64::from(b.first.saturating_sub(a.end())).saturating_mul(most.into());
    over(a).saturating_add(over(b)).saturating_add(between)
}

fn symbols(ranges: &[Lack], oti: &Oti) -> u64 {
    let of_range = |lack: &Lack| match lack.need {
        Need::Symbols(n) => u64::from(lack.blocks).saturating_mul(n.into()),
        Need::Whole => oti.symbols_of(lack.first..lack.end()),
    };
    ranges.iter().map(of_range).fold(0, u64::saturating_add)
}

impl Ticket {
    /// How many symbols of the data object are asked for; 0 for a ticket about sequences. Blocks that the object does not
    /// have count nothing where all of them is asked for.
    #[must_use]
    pub fn symbols(&self, oti: &Oti) -> u64 {
        match &self.subject {
            Subject::Bundle { data: Data::All, .. } => oti.symbols(),
            Subject::Bundle { data: Data::Ranges(ranges), .. } => symbols(ranges, oti),
            Subject::Bundle { data: Data::Nothing, .. } | Subject::Sequences { .. } => 0,
        }
    }
}
