//! What a person should look at.

use std::collections::BTreeMap;
use std::time::Duration;

use checkvalve_host::progress::human_duration;

use super::LinkView;
use crate::delivery::status::{BundleStatus, Status};
use crate::ledger::State;

/// Margins below this are an alarm, in parts in a thousand of a block's repair symbols.
const LEAST_MARGIN: i32 = 250;
/// Sequences that are named one by one.
const NAMED: usize = 5;

/// One line for each alarm, the worst first.
pub(super) fn of(status: &Status, link: &LinkView) -> Vec<String> {
    let mut alarms = Vec::new();
    match status.sender.last_beacon_ms {
        None => alarms.push("no beacon was heard yet: is the sender running, and is the link key the same?".to_owned()),
        Some(at) if status.sender.silent => {
            let ago = human_duration(Duration::from_millis(status.now_ms.saturating_sub(at)));
            alarms
                .push(format!("no beacon for {ago}: the sender or the link is down; what is sent now is not known of"));
        }
        Some(_) => {}
    }
    for (state, what) in [(State::Missing, "never came"), (State::Incomplete, "are incomplete")] {
        let mut channels: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        // Where only the disk is in the way no ticket is offered; the bundle's own line says what to do.
        let lacks =
            |bundle: &&BundleStatus| bundle.state == state && bundle.ticket.is_some() && !bundle.channel.is_empty();
        for bundle in status.bundles.iter().rev().filter(lacks) {
            let number = match bundle.through {
                None => bundle.sequence.to_string(),
                Some(through) => format!("{}-{through}", bundle.sequence),
            };
            channels.entry(&bundle.channel).or_default().push(number);
        }
        for (channel, mut numbers) in channels {
            let more = numbers.len().saturating_sub(NAMED);
            numbers.truncate(NAMED);
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            let one = numbers.len() == 1 && more.is_empty();
            let what = if one { what.replace("are", "is") } else { what.to_owned() };
            alarms.push(format!(
                "channel {channel}: {}{more} {what}; `checkvalve-receiver ticket --all` says what to send again",
                numbers.join(", ")
            ));
        }
    }
    match link.minute.least_margin {
        Some(margin) if margin < 0 => alarms.push(
            "the link loses more than `fec.repair` mends: in the last minute blocks lacked symbols; raise it on the sender"
                .to_owned(),
        ),
        Some(margin) if margin < LEAST_MARGIN => alarms.push(format!(
            "the link loses nearly what `fec.repair` mends: the worst block of the last minute had {} % of its repair symbols \
             to spare; raise it on the sender",
            margin / 10
        )),
        _ => {}
    }
    if link.minute.lost_kernel > 0 {
        alarms.push(format!(
            "the kernel dropped {} datagrams in the last minute: this machine is too slow or `link.receive_buffer` too small",
            link.minute.lost_kernel
        ));
    }
    if link.minute.dropped_memory > 0 {
        alarms.push(format!(
            "{} datagrams of the last minute found no memory: the disk is too slow for this rate, or `memory` too small",
            link.minute.dropped_memory
        ));
    }
    alarms
}
