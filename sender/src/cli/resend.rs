//! `resend`: a bundle once more, or what a ticket asks for.

mod restore;

use std::path::{Path, PathBuf};
use std::time::Duration;

use checkvalve_host::exit::Exit;
use checkvalve_host::progress::{counted, human_bytes, human_duration, human_rate};
use checkvalve_protocol::ticket::Ticket;
use clap::Args as ClapArgs;

use super::{CommandError, ask, copy, say, say_json, ticket, wait};
use crate::config::Config;
use crate::control::{AskedView, Request, Resent, Tickets};
use crate::engine::BundleView;

#[derive(Debug, ClapArgs)]
pub(super) struct Args {
    /// The bundle: CHANNEL/SEQUENCE, or the first digits of its id (`status` shows both). With --ticket it may be left out; if it
    /// is there, the ticket must be about it.
    #[arg(required_unless_present = "ticket")]
    bundle: Option<String>,
    /// Only these source blocks, numbered from 0: `7`, `3-5` (both ends included), or several with commas between them.
    #[arg(long, value_name = "RANGES", value_parser = parse_ranges, conflicts_with = "ticket")]
    blocks: Option<Ranges>,
    /// What `checkvalve-receiver ticket` printed: exactly that is sent. The text itself, a file with it, a picture of its QR code
    /// (PNG or JPEG), or `-` for standard input; asked for line by line if nothing is given.
    #[arg(long, value_name = "TICKET", num_args = 0..)]
    ticket: Option<Vec<String>>,
    /// Only say how much would be sent and how long that would take.
    #[arg(long, requires = "ticket")]
    dry_run: bool,
    /// Where the content of a bundle is that is no longer retained. It is copied, and proven to be the same (names, sizes, modes,
    /// times and every byte) before anything is sent.
    #[arg(long, value_name = "PATH", requires = "ticket")]
    from: Option<PathBuf>,
    /// Wait until it was transmitted, with a progress bar.
    #[arg(long)]
    wait: bool,
}

/// Ranges of blocks, the end of each excluded.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Ranges(Vec<(u32, u32)>);

pub(super) fn resend(args: &Args, config: &Path, json: bool) -> Result<(), CommandError> {
    let config = Config::peek(config)?;
    if let Some(values) = &args.ticket {
        return by_ticket(args, values, &config, json);
    }
    let blocks = args.blocks.clone().map_or_else(Vec::new, |ranges| ranges.0);
    let bundle = args.bundle.clone().unwrap_or_default();
    let resent: Resent = ask(&config, &Request::Resend { bundle, blocks })?;
    if args.wait {
        return wait::until_resent(&config, &resent.bundle, resent.id, json);
    }
    if json {
        return say_json(&resent);
    }
    let Resent { bundle, blocks, of_blocks, bytes, .. } = resent;
    say(format_args!(
        "{bundle}: {blocks} of {} ({} in all) will be sent again",
        counted(of_blocks, "source block"),
        human_bytes(bytes)
    ));
    Ok(())
}

/// 1. Reads the tickets. 2. Takes the content back, if it is given. 3. Says what will be sent. 4. Has it sent.
fn by_ticket(args: &Args, values: &[String], config: &Config, json: bool) -> Result<(), CommandError> {
    let tickets = ticket::read(values)?;
    let texts: Vec<String> = tickets.iter().filter_map(Ticket::to_text).collect();
    let mut plan: Tickets = ask(config, &Request::Ticket { tickets: texts.clone(), dry_run: true })?;
    if let Some(named) = &args.bundle {
        same_bundle(config, named, &plan)?;
    }
    if let (Some(path), false) = (&args.from, args.dry_run) {
        let mut gone = plan.bundles.iter().filter(|asked| asked.not_retained);
        match (gone.next(), gone.next()) {
            (Some(_), Some(_)) => {
                let text = "the tickets are about several bundles that are no longer retained; give them one by one";
                return Err(CommandError::new(Exit::Usage, text));
            }
            (Some(asked), None) => {
                restore::restore(config, &asked.bundle, path, json)?;
                plan = ask(config, &Request::Ticket { tickets: texts.clone(), dry_run: true })?;
            }
            (None, _) => {}
        }
    }
    if !json {
        plan.bundles.iter().for_each(|asked| say_plan(asked, plan.rate_bits));
    }
    if !args.dry_run && plan.bundles.iter().any(|asked| asked.refused.is_none()) {
        plan = ask(config, &Request::Ticket { tickets: texts, dry_run: false })?;
    }
    if json {
        say_json(&plan)?;
    }
    if args.wait && !args.dry_run {
        for asked in &plan.bundles {
            if let Some(id) = asked.id {
                wait::until_resent(config, &asked.bundle, id, json)?;
            }
        }
    }
    let refused: Vec<_> = plan.bundles.iter().filter_map(|asked| asked.refused.as_ref()).collect();
    match refused.as_slice() {
        [] => Ok(()),
        [one] => Err(CommandError::new(one.exit, one.text.clone())),
        [first, others @ ..] => {
            let others = others.iter().map(|&refusal| refusal.clone()).collect();
            Err(CommandError::Several { first: (*first).clone(), others })
        }
    }
}

fn same_bundle(config: &Config, named: &str, plan: &Tickets) -> Result<(), CommandError> {
    let view: BundleView = ask(config, &Request::Bundle { bundle: named.to_owned() })?;
    let shown = view.sequence.map(|sequence| format!("{}/{sequence}", view.channel));
    match plan.bundles.iter().find(|asked| shown.as_ref() != Some(&asked.bundle)) {
        None => Ok(()),
        Some(other) => {
            let text = format!("the ticket is about {}, not about {named}", other.bundle);
            Err(CommandError::new(Exit::Usage, text))
        }
    }
}

fn say_plan(asked: &AskedView, rate_bits: u64) {
    if asked.refused.is_some() {
        return;
    }
    let AskedView { bundle, blocks, of_blocks, datagrams, wire_bytes, bytes, .. } = asked;
    let name = asked.name.as_deref().unwrap_or_default();
    let what = match (blocks, of_blocks) {
        (0, _) => "announce and hashes only".to_owned(),
        (1, 1) => "its one source block".to_owned(),
        _ if blocks == of_blocks => format!("all {of_blocks} source blocks"),
        _ => format!("{blocks} of {}", counted(*of_blocks, "source block")),
    };
    say(format_args!(
        "{bundle} {name}: {what}; {}, {} on the wire for {} of data, {} at {}",
        counted(*datagrams, "datagram"),
        human_bytes(*wire_bytes),
        human_bytes(*bytes),
        human_duration(Duration::from_millis(asked.millis.max(1))),
        human_rate(rate_bits),
    ));
}

fn parse_ranges(text: &str) -> Result<Ranges, String> {
    let example = "write for example 7 or 3-5,9";
    let mut ranges = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let number =
            |text: &str| text.trim().parse::<u32>().map_err(|_| format!("\"{part}\" is no range of blocks; {example}"));
        let (first, last) = (number(first)?, number(last)?);
        let end = last.checked_add(1).filter(|end| *end > first);
        ranges.push((first, end.ok_or_else(|| format!("\"{part}\" ends before it begins; {example}"))?));
    }
    ranges.sort_unstable();
    if ranges.windows(2).any(|pair| pair[0].1 > pair[1].0) {
        return Err(format!("a block is named twice; {example}"));
    }
    Ok(Ranges(ranges))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_as_people_write_them() {
        let ranges = |text| parse_ranges(text).map(|ranges| ranges.0);
        assert_eq!(ranges("7"), Ok(vec![(7, 8)]));
        assert_eq!(ranges("9, 3-5"), Ok(vec![(3, 6), (9, 10)]));
        for bad in ["", "a", "5-3", "1,", "-1", "3-5,5", "4294967295"] {
            assert!(ranges(bad).is_err(), "{bad}");
        }
    }
}
