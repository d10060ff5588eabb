//! A ticket in words, and bit by bit.

use std::fmt::Write;

use super::bits::Writer;
use super::{Data, Subject, Ticket, content};

pub(super) fn explain(ticket: &Ticket) -> String {
    let mut w = Writer::labelled();
    content::write(ticket, &mut w);
    let (bits, labels) = w.finish();
    let mut text = summary(ticket);
    let padding = bits.len().next_multiple_of(20).saturating_sub(bits.len());
    let _ = writeln!(
        text,
        "\nEvery bit of it: {} of content, {padding} zeros up to a full group, 20 that check the whole, and 20 in each line that check \
         the line.\n",
        bits.len(),
    );
    let mut from = 0;
    for (to, label) in labels {
        let digits = bits.get(from..to).unwrap_or_default().iter().map(|&bit| if bit { '1' } else { '0' });
        let digits: String = digits.collect();
        let _ = writeln!(text, "{from:>6}  {digits}  {label}");
        from = to;
    }
    text
}

fn summary(ticket: &Ticket) -> String {
    let mut text = String::new();
    match &ticket.subject {
        Subject::Bundle { bundle, announce, hashes, data } => {
            let _ = writeln!(text, "Bundle {bundle} is not complete. Asked for:");
            if *announce {
                text.push_str("- its announce\n");
            }
            if *hashes {
                text.push_str("- its hashes\n");
            }
            match data {
                Data::Nothing => {}
                Data::All => text.push_str("- all of its data\n"),
                Data::Ranges(ranges) => {
                    for lack in ranges {
                        let _ = writeln!(text, "- {}", content::range(lack));
                    }
                }
            }
        }
        Subject::Sequences { channel, first, count: 1 } => {
            let _ = writeln!(text, "Bundle {channel}/{first} never came. Asked for: all of it.");
        }
        Subject::Sequences { channel, first, count } => {
            let last = first.saturating_add(count.saturating_sub(1));
            let _ = writeln!(text, "Bundles {channel}/{first} to {channel}/{last} never came. Asked for: all of them.");
        }
    }
    let _ = writeln!(text, "Datagrams that the link lost lately: {}.", ticket.loss);
    text
}
