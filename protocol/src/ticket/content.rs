//! A ticket as bits, and back.

use super::bits::{Reader, Writer, best_order};
use super::{Data, Lack, Loss, Need, ParseError, Subject, Ticket, VERSION};
use crate::id::{BundleId, ChannelName};

const CHANNEL_SYMBOLS: &[u8] = b"abcdefghijklmnopqrstuvwxyz0123456789_-";
/// Fewest bits that a range takes: three codes of one bit.
pub(super) const MIN_RANGE_BITS: usize = 3;
/// Highest order of the code for gaps and lengths, and for needs, with the bits that hold each.
const ORDER: (u32, u32) = (31, 5);
const NEED_ORDER: (u32, u32) = (15, 4);

pub(super) fn encode(ticket: &Ticket) -> Vec<bool> {
    let mut w = Writer::default();
    write(ticket, &mut w);
    w.finish().0
}

/// Writes every field, with a label after each.
pub(super) fn write(ticket: &Ticket, w: &mut Writer) {
    w.put(VERSION.into(), 3);
    w.label(|| format!("format {VERSION}"));
    w.put(u64::from(matches!(ticket.subject, Subject::Sequences { .. })), 1);
    w.label(|| match ticket.subject {
        Subject::Bundle { .. } => "about one bundle".into(),
        Subject::Sequences { .. } => "about bundles known by their sequences only".into(),
    });
    w.put(ticket.loss.code(), 4);
    w.label(|| format!("datagrams that the link lost lately: {}", ticket.loss));
    match &ticket.subject {
        Subject::Bundle { bundle, announce, hashes, data } => {
            w.put((*announce).into(), 1);
            w.label(|| format!("its announce is {}", if *announce { "lacking" } else { "there" }));
            w.put((*hashes).into(), 1);
            w.label(|| format!("its hashes are {}", if *hashes { "lacking" } else { "there" }));
            let (code, what) = match data {
                Data::Nothing => (0, "nothing of its data is lacking"),
                Data::All => (1, "all of its data is asked for"),
                Data::Ranges(_) => (2, "ranges of its source blocks are asked for"),
            };
            w.put(code, 2);
            w.label(|| what.into());
            w.put(bundle.0, 64);
            w.label(|| format!("bundle {bundle}"));
            if let Data::Ranges(ranges) = data {
                write_ranges(ranges, w);
            }
        }
        Subject::Sequences { channel, first, count } => {
            let symbols = channel.as_str().bytes();
            w.put((channel.as_str().len() as u64).saturating_sub(1), 5);
            for symbol in symbols {
                let index = CHANNEL_SYMBOLS.iter().position(|&s| s == symbol).unwrap_or_default();
                w.put(index as u64, 6);
            }
            w.label(|| format!("channel {channel}"));
            w.put_golomb(first.saturating_sub(1), 0);
            w.label(|| format!("from sequence {first} on"));
            w.put_golomb(count.saturating_sub(1), 0);
            w.label(|| format!("{count} in a row"));
        }
    }
}

/// A range as the three numbers that are written of it.
fn numbers(ranges: &[Lack]) -> [Vec<u64>; 3] {
    let ends = std::iter::once(0).chain(ranges.iter().map(Lack::end));
    let gaps = ranges.iter().zip(ends).map(|(lack, end)| u64::from(lack.first.saturating_sub(end)));
    let lengths = ranges.iter().map(|lack| u64::from(lack.blocks.saturating_sub(1)));
    let needs = ranges.iter().map(|lack| match lack.need {
        Need::Whole => 0,
        Need::Symbols(n) => n.into(),
    });
    [gaps.collect(), lengths.collect(), needs.collect()]
}

/// A range in words.
pub(super) fn range(lack: &Lack) -> String {
    let need = lack.need;
    match lack.blocks {
        1 => format!("block {}: {need}", lack.first),
        blocks => format!("blocks {} to {} ({blocks}): {need} of each", lack.first, lack.end().saturating_sub(1)),
    }
}

fn write_ranges(ranges: &[Lack], w: &mut Writer) {
    w.put_golomb((ranges.len() as u64).saturating_sub(1), 0);
    w.label(|| format!("ranges: {}", ranges.len()));
    let numbers = numbers(ranges);
    let mut orders = [0; 3];
    for ((order, values), (highest, width)) in orders.iter_mut().zip(&numbers).zip([ORDER, ORDER, NEED_ORDER]) {
        *order = best_order(values, highest);
        w.put((*order).into(), width);
    }
    w.label(|| format!("orders of the three codes: {orders:?}"));
    let [gaps, lengths, needs] = numbers;
    let [of_gaps, of_lengths, of_needs] = orders;
    for (((lack, gap), length), need) in ranges.iter().zip(gaps).zip(lengths).zip(needs) {
        w.put_golomb(gap, of_gaps);
        w.put_golomb(length, of_lengths);
        w.put_golomb(need, of_needs);
        w.label(|| range(lack));
    }
}

/// Reads the bits of a whole ticket with up to 19 zero bits after it, and nothing but what [`encode`] writes.
pub(super) fn decode(bits: &[bool]) -> Result<Ticket, ParseError> {
    let mut r = Reader::new(bits);
    let version = r.get(3).ok_or(ParseError::NotCanonical)?;
    if version != u64::from(VERSION) {
        return Err(ParseError::Version(u8::try_from(version).unwrap_or(u8::MAX)));
    }
    let (subject, loss) = read(&mut r).ok_or(ParseError::NotCanonical)?;
    let ticket = Ticket::new(subject, loss).map_err(|_| ParseError::NotCanonical)?;
    let again = encode(&ticket);
    let padding = bits.strip_prefix(again.as_slice()).ok_or(ParseError::NotCanonical)?;
    if padding.len() < 20 && !padding.contains(&true) { Ok(ticket) } else { Err(ParseError::NotCanonical) }
}

fn read(r: &mut Reader<'_>) -> Option<(Subject, Loss)> {
    let about_sequences = r.get(1)? == 1;
    let loss = Loss::from_code(r.get(4)?)?;
    let subject = if about_sequences { read_sequences(r)? } else { read_bundle(r)? };
    Some((subject, loss))
}

fn read_sequences(r: &mut Reader<'_>) -> Option<Subject> {
    let len = r.get(5)?.checked_add(1)?;
    let mut channel = String::new();
    for _ in 0..len {
        let index = usize::try_from(r.get(6)?).ok()?;
        channel.push(char::from(*CHANNEL_SYMBOLS.get(index)?));
    }
    let channel = ChannelName::new(channel).ok()?;
    let first = r.get_golomb(0)?.checked_add(1)?;
    let count = r.get_golomb(0)?.checked_add(1)?;
    Some(Subject::Sequences { channel, first, count })
}

fn read_bundle(r: &mut Reader<'_>) -> Option<Subject> {
    let announce = r.get(1)? == 1;
    let hashes = r.get(1)? == 1;
    let code = r.get(2)?;
    let bundle = BundleId(r.get(64)?);
    let data = match code {
        0 => Data::Nothing,
        1 => Data::All,
        2 => Data::Ranges(read_ranges(r)?),
        _ => return None,
    };
    Some(Subject::Bundle { bundle, announce, hashes, data })
}

fn read_ranges(r: &mut Reader<'_>) -> Option<Vec<Lack>> {
    let count = usize::try_from(r.get_golomb(0)?.checked_add(1)?).ok()?;
    let mut order = |width| r.get(width).and_then(|order| u32::try_from(order).ok());
    let (of_gaps, of_lengths, of_needs) = (order(ORDER.1)?, order(ORDER.1)?, order(NEED_ORDER.1)?);
    if count > r.left() / MIN_RANGE_BITS {
        return None;
    }
    let mut ranges = Vec::with_capacity(count);
    let mut end: u32 = 0;
    for _ in 0..count {
        let first = end.checked_add(u32::try_from(r.get_golomb(of_gaps)?).ok()?)?;
        let blocks = u32::try_from(r.get_golomb(of_lengths)?).ok()?.checked_add(1)?;
        let need = match u16::try_from(r.get_golomb(of_needs)?).ok()? {
            0 => Need::Whole,
            n => Need::Symbols(n),
        };
        end = first.checked_add(blocks)?;
        ranges.push(Lack { first, blocks, need });
    }
    Some(ranges)
}
