//! `resend`: a bundle once more.

use std::path::Path;

use checkvalve_host::progress::human_bytes;
use clap::Args as ClapArgs;

use super::{CommandError, ask, say, say_json, wait};
use crate::config::Config;
use crate::control::{Request, Resent};

#[derive(Debug, ClapArgs)]
pub(super) struct Args {
    /// The bundle: CHANNEL/SEQUENCE, or the first digits of its id (`status` shows both).
    bundle: String,
    /// Only these source blocks, numbered from 0: `7`, `3-5` (both ends included), or several with commas between them.
    #[arg(long, value_name = "RANGES", value_parser = parse_ranges)]
    blocks: Option<Ranges>,
    /// Wait until it was transmitted, with a progress bar.
    #[arg(long)]
    wait: bool,
}

/// Ranges of blocks, the end of each excluded.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Ranges(Vec<(u32, u32)>);

pub(super) fn resend(args: &Args, config: &Path, json: bool) -> Result<(), CommandError> {
    let config = Config::peek(config)?;
    let blocks = args.blocks.clone().map_or_else(Vec::new, |ranges| ranges.0);
    let resent: Resent = ask(&config, &Request::Resend { bundle: args.bundle.clone(), blocks })?;
    if args.wait {
        return wait::until_resent(&config, &resent, json);
    }
    if json {
        return say_json(&resent);
    }
    let Resent { bundle, blocks, of_blocks, bytes, .. } = resent;
    say(format_args!(
        "{bundle}: {blocks} of {of_blocks} source blocks ({} in all) will be sent again",
        human_bytes(bytes)
    ));
    Ok(())
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
