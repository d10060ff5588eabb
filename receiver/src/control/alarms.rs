//! What a person should look at.

use std::collections::BTreeMap;
use std::time::Duration;

use checkvalve_host::json::Stamp;
use checkvalve_host::progress::{human_bytes, human_duration};

use super::LinkView;
use crate::delivery::alarms::{Alarm, Code};
use crate::delivery::status::{BundleStatus, Status};
use crate::ledger::State;
use crate::sink::StoreError;

/// Margins below this are an alarm, in parts in a thousand of a block's repair symbols.
const LEAST_MARGIN: i32 = 250;
/// Sequences that are named one by one.
const NAMED: usize = 5;

/// Each alarm, the worst first; `noted` are those that happened of late.
pub(super) fn of(status: &Status, link: &LinkView, noted: Vec<Alarm>) -> Vec<Alarm> {
    let mut alarms = Vec::new();
    let mut push = |code: Code, text: String| alarms.push(Alarm::new(code, text));
    if status.trusted.is_empty() {
        push(
            Code::NoTrust,
            "no key is trusted, so that nothing counts: `checkvalve-receiver trust add FILE.pub`".to_owned(),
        );
    }
    match status.sender.last_beacon_at {
        None if noted.iter().any(|alarm| is_disbelief(alarm.code)) => {
            push(Code::NoBeaconYet, "no beacon that counts was heard yet: see above".to_owned());
        }
        None => push(Code::NoBeaconYet, no_beacon(link)),
        Some(_) if status.sender.silent && noted.iter().any(|alarm| is_disbelief(alarm.code)) => {
            push(Code::Silent, "beacons come, and none of them counts: see above".to_owned())
        }
        Some(Stamp(at)) if status.sender.silent => {
            let ago = human_duration(Duration::from_millis(status.now_at.0.saturating_sub(at)));
            push(
                Code::Silent,
                format!("no beacon for {ago}: the sender or the link is down; what is sent now is not known of"),
            );
        }
        Some(_) => {}
    }
    for bundle in status.bundles.iter().filter(|bundle| bundle.state == State::Held).take(NAMED) {
        let reason = bundle.reason.as_deref().unwrap_or_default();
        push(Code::Held, format!("{}/{} is held: {reason}", bundle.channel, bundle.sequence));
    }
    let failed = |bundle: &&BundleStatus| bundle.state == State::Failed && !has_newer(status, bundle);
    for bundle in status.bundles.iter().filter(failed).take(NAMED) {
        let (number, reason) = (format!("{}/{}", bundle.channel, bundle.sequence), bundle.reason.as_deref());
        push(
            Code::Failed,
            format!(
                "{number}: {}: what it wrote is in `logs/{}` in `state`; mend that, then `checkvalve-receiver retry {number}`",
                reason.unwrap_or("its hook failed"),
                bundle.channel
            ),
        );
    }
    let no_room = StoreError::NoRoom.to_string();
    let lacks_room = |bundle: &&BundleStatus| bundle.reason.as_ref().is_some_and(|reason| reason.starts_with(&no_room));
    for bundle in status.bundles.iter().filter(lacks_room).take(NAMED) {
        let (channel, sequence, size) = (&bundle.channel, bundle.sequence, human_bytes(bundle.bytes));
        push(
            Code::NoRoom,
            format!(
                "staging has no room for {channel}/{sequence}, which has {size}: raise `quota` or `channel.{channel}.quota`, free the disk, or \
                 `checkvalve-receiver reject {channel}/{sequence}`; then `checkvalve-receiver ticket {channel}/{sequence}` asks for the rest"
            ),
        );
    }
    for (state, code, what) in
        [(State::Missing, Code::Missing, "never came"), (State::Incomplete, Code::Incomplete, "are incomplete")]
    {
        let mut channels: BTreeMap<&str, Vec<(u64, u64)>> = BTreeMap::new();
        // Where only the disk is in the way no ticket is offered; the bundle's own line says what to do.
        let lacks =
            |bundle: &&BundleStatus| bundle.state == state && bundle.ticket.is_some() && !bundle.channel.is_empty();
        for bundle in status.bundles.iter().rev().filter(lacks) {
            channels
                .entry(&bundle.channel)
                .or_default()
                .push((bundle.sequence, bundle.through.unwrap_or(bundle.sequence)));
        }
        for (channel, ranges) in channels {
            let count = |&(first, last): &(u64, u64)| last.saturating_sub(first).saturating_add(1);
            let number = |&(first, last): &(u64, u64)| {
                if first == last { first.to_string() } else { format!("{first}-{last}") }
            };
            let (named, others) = ranges.split_at(ranges.len().min(NAMED));
            let numbers = named.iter().map(number).collect::<Vec<_>>().join(", ");
            let more = others.iter().map(count).fold(0, u64::saturating_add);
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            let is_one = ranges.iter().map(count).fold(0, u64::saturating_add) == 1;
            let what = if is_one { what.replace("are", "is") } else { what.to_owned() };
            push(
                code,
                format!(
                    "channel {channel}: {numbers}{more} {what}; `checkvalve-receiver ticket --all` says what to send again"
                ),
            );
        }
    }
    match link.minute.least_margin {
        Some(margin) if margin < 0 => push(
            Code::Repair,
            "the link loses more than `fec.repair` mends: in the last minute blocks lacked symbols; raise it on the sender"
                .to_owned(),
        ),
        Some(margin) if margin < LEAST_MARGIN => push(
            Code::RepairLow,
            format!(
                "the link loses nearly what `fec.repair` mends: the worst block of the last minute had {} % of its repair \
                 symbols to spare; raise it on the sender",
                margin / 10
            ),
        ),
        _ => {}
    }
    if link.minute.lost_kernel > 0 {
        let lost = link.minute.lost_kernel;
        push(
            Code::KernelDrops,
            format!(
                "the kernel dropped {lost} datagrams in the last minute: this machine is too slow or `link.receive_buffer` too small"
            ),
        );
    }
    if link.minute.dropped_memory > 0 {
        let lost = link.minute.dropped_memory;
        push(
            Code::Memory,
            format!(
                "{lost} datagrams of the last minute found no memory: the disk is too slow for this rate, or `memory` too small"
            ),
        );
    }
    // What happened before what it led to.
    noted.into_iter().chain(alarms).collect()
}

/// Whether it says that what a sender says does not count.
fn is_disbelief(code: Code) -> bool {
    matches!(code, Code::UnknownKey | Code::AnotherState | Code::OldEpoch | Code::OlderState | Code::TwoSenders)
}

/// Whether a later bundle of its channel went to the hook: then it is too late for this one.
fn has_newer(status: &Status, bundle: &BundleStatus) -> bool {
    let newer = |other: &BundleStatus| {
        other.channel == bundle.channel && other.sequence > bundle.sequence && other.state == State::Installed
    };
    status.bundles.iter().any(newer)
}

/// Why nothing is heard, as far as drops tell.
fn no_beacon(link: &LinkView) -> String {
    let dropped = |reason: &str| link.dropped.get(reason).copied().unwrap_or(0);
    if dropped("key") > 0 {
        return "no beacon was heard yet, but datagrams come that are sealed under another link key: copy `keys.link` from the sender, \
                compare what `check-config` prints on both sides, and restart this receiver"
            .to_owned();
    }
    if dropped("mode") > 0 {
        return "no beacon was heard yet, but datagrams come in the other mode: set `link.insecure` alike on both sides".to_owned();
    }
    if dropped("version") > 0 {
        return "no beacon was heard yet, but datagrams of another version come: install the same release on both sides".to_owned();
    }
    "no beacon was heard yet: is the sender running, does it send to this address, and does it have this host's MAC address?".to_owned()
}
