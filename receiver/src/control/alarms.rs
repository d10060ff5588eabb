//! What a person should look at.

use std::collections::BTreeMap;
use std::time::Duration;

use checkvalve_host::json::Stamp;
use checkvalve_host::progress::{counted, human_bytes, human_duration};
use checkvalve_protocol::id::{BundleId, KeyId};

use super::{LinkView, SenderLink};
use crate::delivery::alarms::{Alarm, Code};
use crate::delivery::status::{Blocked, BundleStatus, SenderStatus, Status};
use crate::delivery::{NO_KEY, NOT_ITS};
use crate::hook::Outcome;
use crate::ledger::State;
use crate::sink::NO_ROOM;
use crate::store::space::Bound;

/// Margins below this are an alarm, in parts in a thousand of a block's repair symbols.
const LEAST_MARGIN: i32 = 250;
/// What came so lately comes now, in milliseconds.
const RECENT_MS: u64 = 3_000;
/// Beacons of the last ten seconds that do not count: honest senders send about one a second each.
const BEACON_FLOOD: u64 = 1_000;
/// Sequences that are named one by one.
const NAMED: usize = 5;

/// Each alarm, the worst first; `noted` are those that happened of late.
pub(crate) fn of(status: &Status, link: &LinkView, noted: Vec<Alarm>) -> Vec<Alarm> {
    let mut alarms = Vec::new();
    let mut push = |code: Code, text: String| alarms.push(Alarm::new(code, text));
    if status.trusted.is_empty() {
        push(
            Code::NoTrust,
            "no key is trusted, so that nothing counts: `checkvalve-receiver trust add FILE.pub`".to_owned(),
        );
    }
    let disbelieved = noted.iter().any(|alarm| is_disbelief(alarm.code));
    if status.senders.iter().all(|sender| sender.last_beacon_at.is_none()) {
        let counts = if disbelieved { "that counts was" } else { "was" };
        push(Code::NoBeaconYet, format!("no beacon {counts} heard yet{}", no_beacon(link, disbelieved)));
    } else {
        for sender in status.senders.iter().filter(|sender| sender.silent) {
            push(Code::Silent, silent(status, sender, link, disbelieved));
        }
    }
    for (oldest, later) in held(&status.bundles).into_iter().take(NAMED) {
        push(Code::Held, format!("{} is held: {}{}", oldest.number(), reason(oldest), likewise(&later)));
    }
    let newest = newest_installed(&status.bundles);
    let is_last = |bundle: &&BundleStatus| newest.get(bundle.channel.as_str()).is_none_or(|&at| at < bundle.sequence);
    let mut of_code = |code: Code, is: &dyn Fn(&&BundleStatus) -> bool, text: &dyn Fn(&BundleStatus) -> String| {
        // The oldest first, as they are to be mended.
        let mut bundles = status.bundles.iter().rev().filter(is);
        bundles.by_ref().take(NAMED).for_each(|bundle| push(code, text(bundle)));
        let more = bundles.count();
        if more > 0 {
            push(code, format!("and {more} more of them: `checkvalve-receiver status --json` lists them"));
        }
    };
    of_code(Code::HookAgain, &is_run_again, &|bundle| hook_again(status, bundle));
    of_code(Code::Failed, &|bundle| bundle.state == State::Failed && is_last(bundle), &failed);
    of_code(Code::Quarantined, &|bundle| is_refused(bundle) && is_last(bundle), &refused);
    for blocked in &status.blocked {
        push(Code::CannotPublish, cannot_publish(blocked));
    }
    let lacks_room = |bundle: &&BundleStatus| {
        bundle.state.is_open() && (bundle.bound.is_some() || reason(bundle).starts_with(NO_ROOM))
    };
    for bundle in status.bundles.iter().filter(lacks_room).take(NAMED) {
        push(Code::NoRoom, no_room(status, bundle));
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
            let waits = |bundle: &&BundleStatus| {
                let of =
                    |&(first, last): &(u64, u64)| bundle.waiting_for.is_some_and(|by| (first..=last).contains(&by));
                bundle.channel == channel && ranges.iter().any(of)
            };
            let waiting = waiting(status.bundles.iter().filter(waits).count());
            push(
                code,
                format!(
                    "channel {channel}: {numbers}{more} {what}{waiting}; `checkvalve-receiver ticket --all` says what to send again"
                ),
            );
        }
    }
    // A block that lacks symbols counts once it has waited for them; that its bundle is incomplete is known before.
    let lacks =
        |bundle: &BundleStatus| bundle.state == State::Incomplete && bundle.lacking.is_some_and(|l| l.symbols > 0);
    for sender in &link.senders {
        let tag = sender.key.tag();
        let its = |bundle: &BundleStatus| bundle.id.parse().is_ok_and(|id: BundleId| id.tag() == tag);
        let is_short = sender.minute.lost > 0 && status.bundles.iter().any(|bundle| its(bundle) && lacks(bundle));
        margin(sender, is_short, &whose(status, sender.key, &sender.name), &mut push);
    }
    if link.minute.lost_kernel > 0 {
        let lost = link.minute.lost_kernel;
        push(
            Code::KernelDrops,
            format!(
                "the kernel dropped {} in the last minute: this machine is too slow, or the kernel's buffer too small: load the shipped sysctl \
                 file (`net.core.rmem_max`), see `link.receive_buffer`, and restart",
                counted(lost, "datagram")
            ),
        );
    }
    if link.minute.dropped_memory > 0 {
        let lost = link.minute.dropped_memory;
        push(
            Code::Memory,
            format!(
                "{} of the last minute found no memory: the disk is too slow for this rate, or `memory` too small",
                counted(lost, "datagram")
            ),
        );
    }
    // Events come before the states that they led to.
    noted.into_iter().chain(alarms).collect()
}

/// Names a sender where there are several.
fn whose(status: &Status, key: KeyId, name: &str) -> String {
    if status.senders.len() > 1 { format!(" of the sender with key {key} ({name})") } else { String::new() }
}

fn silent(status: &Status, sender: &SenderStatus, link: &LinkView, disbelieved: bool) -> String {
    let of = sender.key.map_or_else(String::new, |key| whose(status, key, &sender.name));
    let since = sender.last_beacon_at.map_or_else(
        || "since this daemon started".to_owned(),
        |Stamp(at)| format!("for {}", human_duration(Duration::from_millis(status.now_at.0.saturating_sub(at)))),
    );
    if let Some(flood) = beacon_flood(link) {
        return format!("no beacon{of} {since}{flood}");
    }
    match sender.key {
        Some(key) if !of.is_empty() => format!(
            "no beacon{of} {since}: it or its link is down, and what it sends now is not known of; if it is gone for good, \
             `checkvalve-receiver trust remove {key}` ends this"
        ),
        _ => format!("no beacon {since}{}", why_silent(status, link, disbelieved)),
    }
}

/// How near the repair came to its end for what one sender sent. `is_short`: blocks of it lack symbols.
fn margin(sender: &SenderLink, is_short: bool, of: &str, push: &mut impl FnMut(Code, String)) {
    match sender.minute.least_margin {
        margin if is_short || margin.is_some_and(|margin| margin < 0) => push(
            Code::Repair,
            format!(
                "the link loses more than `fec.repair`{of} mends: in the last minute blocks lacked symbols; raise it on the sender. If a \
                 large share is lost, and always the same, compare `lanes`, addresses and MTU of both configs first"
            ),
        ),
        Some(margin) if margin < LEAST_MARGIN => push(
            Code::RepairLow,
            format!(
                "the link loses nearly what `fec.repair`{of} mends: the worst block of the last minute had {} % of its repair \
                 symbols to spare; raise it on the sender",
                margin / 10
            ),
        ),
        _ => {}
    }
}

/// Those that are held, the oldest first. What one lost state reused is one, with what came later: one command mends all of it.
fn held(bundles: &[BundleStatus]) -> Vec<(&BundleStatus, Vec<&BundleStatus>)> {
    let mut all: Vec<(&BundleStatus, Vec<&BundleStatus>)> = Vec::new();
    let by = |bundle: &BundleStatus| bundle.signer.as_ref().map(|signer| signer.key);
    for bundle in bundles.iter().rev().filter(|bundle| bundle.state == State::Held) {
        let is_like = |(first, _): &&mut (&BundleStatus, _)| {
            bundle.code.as_deref() == Some("sequence-reused")
                && (&first.code, &first.channel, by(first)) == (&bundle.code, &bundle.channel, by(bundle))
        };
        match all.iter_mut().find(is_like) {
            Some((_, later)) => later.push(bundle),
            None => all.push((bundle, Vec::new())),
        }
    }
    all
}

fn likewise(later: &[&BundleStatus]) -> String {
    if later.is_empty() {
        return String::new();
    }
    let give_up =
        |bundle: &&BundleStatus| format!("{} (`checkvalve-receiver reject {}`)", bundle.number(), bundle.handle);
    let named: Vec<String> = later.iter().take(NAMED).map(give_up).collect();
    let more = later.len().saturating_sub(NAMED);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!(
        ". So are later ones, for which the same `adopt` is enough, to be given up afterwards: {}{more}",
        named.join(", ")
    )
}

fn reason(bundle: &BundleStatus) -> &str {
    bundle.reason.as_deref().unwrap_or_default()
}

/// Names the log file of a bundle's hook, if there is one.
fn log(bundle: &BundleStatus) -> String {
    bundle.log.as_ref().map_or_else(String::new, |log| format!("; what it wrote is in {log}"))
}

/// Its hook was run again, and that did not help: once may be by design.
fn is_run_again(bundle: &&BundleStatus) -> bool {
    let again = bundle.attempt > 2 || bundle.attempt == 2 && bundle.retry_at.is_some();
    // A stop of the daemon says nothing about the hook.
    let asked = bundle.reason.as_ref().is_some_and(|reason| *reason != Outcome::Interrupted.to_string());
    bundle.state == State::Installing && asked && again
}

fn hook_again(status: &Status, bundle: &BundleStatus) -> String {
    let (number, handle, attempt) = (bundle.number(), &bundle.handle, bundle.attempt);
    let waits = |other: &&BundleStatus| other.channel == bundle.channel && other.waiting_for == Some(bundle.sequence);
    let waiting = waiting(status.bundles.iter().filter(waits).count());
    let (reason, log) = (reason(bundle), log(bundle));
    if bundle.retry_at.is_none() {
        return format!(
            "{number} was not installed by {} attempts: {reason}{waiting}. Another one is running",
            attempt - 1
        );
    }
    format!(
        "{number} is not installed after {attempt} attempts: {reason}{log}{waiting}. Mend that: it is tried again by itself, at once with \
         `checkvalve-receiver retry {handle}`; or give it up with `checkvalve-receiver reject {handle}`"
    )
}

/// Says how many later bundles wait for a bundle.
fn waiting(count: usize) -> String {
    match count {
        0 => String::new(),
        1 => "; 1 later bundle waits for it".to_owned(),
        many => format!("; {} wait for it", counted(many as u64, "later bundle")),
    }
}

fn failed(bundle: &BundleStatus) -> String {
    let (number, handle) = (bundle.number(), &bundle.handle);
    let reason = bundle.reason.as_deref().unwrap_or("its hook failed");
    format!("{number}: {reason}{}. Mend that, then `checkvalve-receiver retry {handle}`", log(bundle))
}

/// Refused, and not because of what an operator did.
fn is_refused(bundle: &BundleStatus) -> bool {
    bundle.state == State::Quarantined && !matches!(bundle.code.as_deref(), Some(NO_KEY | NOT_ITS))
}

fn refused(bundle: &BundleStatus) -> String {
    let (number, handle) = (bundle.number(), &bundle.handle);
    let give_up = format!("`checkvalve-receiver reject {handle}` ends this alarm");
    if bundle.code.as_deref() == Some("hook") {
        return format!(
            "{number} is in quarantine: {}{}. Once that is mended, `checkvalve-receiver retry {handle}` runs it again; {give_up}",
            reason(bundle),
            log(bundle)
        );
    }
    format!(
        "{number} is in quarantine: {}; its `reason.json` there says who signed it. If that is mended, \
         `checkvalve-receiver retry {handle}`; {give_up}",
        reason(bundle)
    )
}

fn cannot_publish(blocked: &Blocked) -> String {
    let Blocked { cause, mend, bundles, more } = blocked;
    let more = if *more > 0 { format!(" and {more} more") } else { String::new() };
    format!("{}{more} cannot be stored or published: {cause}. {mend}; then it goes on by itself", bundles.join(", "))
}

fn no_room(status: &Status, bundle: &BundleStatus) -> String {
    let (number, handle, channel) = (bundle.number(), &bundle.handle, &bundle.channel);
    let size = human_bytes(bundle.bytes);
    let give_up = format!("give it up with `checkvalve-receiver reject {handle}`");
    if bundle.bound == Some(Bound::Passed) {
        return format!(
            "{number}, which has {size}, found no room in staging before; there is room now: `checkvalve-receiver ticket {handle}` asks for \
             the rest; or {give_up}"
        );
    }
    let free = status.staging.free.saturating_sub(status.staging.reserve);
    let lacks = bundle.bytes.saturating_sub(bundle.received);
    let others = |is: &dyn Fn(&&BundleStatus) -> bool| -> u64 {
        let open = status.bundles.iter().filter(|other| other.state.is_open());
        open.filter(is).map(|other| other.received).fold(0, u64::saturating_add)
    };
    let mend = match bundle.bound {
        None => "the disk says that it is full: look at its free space (`df`), its inodes (`df -i`) and its quotas"
            .to_owned(),
        Some(Bound::Disk) => format!(
            "it lacks {}, and the disk has {} free, of which `reserve` leaves {} alone: free {} at least",
            human_bytes(lacks),
            human_bytes(status.staging.free),
            human_bytes(status.staging.reserve),
            at_least(lacks.saturating_sub(free))
        ),
        Some(Bound::Quota) => format!(
            "staging holds {}, and `quota` is too small: raise it to {} at least, and restart",
            human_bytes(status.staging.bytes),
            at_least(status.staging.bytes.saturating_add(lacks))
        ),
        Some(Bound::Files) => {
            "`limits.files` is too small: raise it by the number of its files and directories at least, and restart"
                .to_owned()
        }
        Some(Bound::Inodes) => {
            "the file system of staging has few inodes left (`df -i`): remove files from it, or make it anew with more"
                .to_owned()
        }
        Some(Bound::Pieces) => {
            "too many pieces of bundles are under way: wait until others are complete, or reject some".to_owned()
        }
        Some(Bound::Channel) => {
            let needs = others(&|other| other.channel == *channel).saturating_add(lacks);
            format!(
                "it is more than channel {channel} may take, `channel.{channel}.quota` or else four fifths of `quota` and of the disk, which \
                 has {} free: set `channel.{channel}.quota` to {} at least and restart, or free the disk",
                human_bytes(status.staging.free),
                at_least(needs)
            )
        }
        Some(Bound::Key) => {
            let key = |bundle: &BundleStatus| bundle.signer.as_ref().map(|signer| signer.key);
            let needs = others(&|other| key(other) == key(bundle)).saturating_add(lacks);
            format!(
                "it is more than the bundles of one key may take, four fifths of `quota` and of the disk: raise `quota` to {} at least and \
                 restart, and see that the disk has as much",
                at_least(needs.saturating_add(needs / 4))
            )
        }
        Some(Bound::Unsigned | Bound::Passed) => "what nobody signed for is full: it goes by itself".to_owned(),
    };
    format!(
        "staging has no room for {number}, which has {size}: {mend}. Then `checkvalve-receiver ticket {handle}` asks for what was lost \
         meanwhile; or {give_up}"
    )
}

/// As it may be written into the config: whole units, rounded up.
fn at_least(bytes: u64) -> String {
    let (unit, name) = match bytes {
        0..1_048_576 => (1_024, "KiB"),
        1_048_576..10_737_418_240 => (1_048_576, "MiB"),
        _ => (1_073_741_824, "GiB"),
    };
    format!("{} {name}", bytes.div_ceil(unit).max(1))
}

/// Whether it says that what a sender says does not count.
fn is_disbelief(code: Code) -> bool {
    matches!(code, Code::UnknownKey | Code::AnotherState | Code::OldEpoch | Code::OlderState | Code::TwoSenders)
}

/// The newest bundle of each channel that is installed: for older ones it is too late.
pub(crate) fn newest_installed(bundles: &[BundleStatus]) -> BTreeMap<&str, u64> {
    let mut newest = BTreeMap::new();
    for bundle in bundles.iter().filter(|bundle| bundle.state == State::Installed) {
        let at = newest.entry(bundle.channel.as_str()).or_insert(0);
        *at = bundle.sequence.max(*at);
    }
    newest
}

/// So many beacons come that do not count that few of the sender's are looked at.
fn beacon_flood(link: &LinkView) -> Option<String> {
    let count = link.dropped_lately.get("beacon").copied().filter(|&count| count >= BEACON_FLOOD)?;
    let who = if link.sealed { "somebody with the link key" } else { "somebody" };
    Some(format!(
        ", but {count} beacons that do not count were checked in the last ten seconds: {who} floods the link, so that few of the sender's are \
         looked at, and nothing is known of the sender until that ends; bundles come all the same"
    ))
}

/// Why nothing was heard yet, as far as drops tell.
fn no_beacon(link: &LinkView, disbelieved: bool) -> String {
    match foreign(&link.dropped_lately).or_else(|| foreign(&link.dropped)) {
        _ if disbelieved => ": see above".to_owned(),
        Some(foreign) => foreign.to_owned(),
        None => ": is the sender running, does it send to this address, and does it have this host's MAC address?"
            .to_owned(),
    }
}

/// Why nothing is heard any more, as far as what comes now tells.
fn why_silent(status: &Status, link: &LinkView, disbelieved: bool) -> String {
    if let Some(foreign) = foreign(&link.dropped_lately) {
        return foreign.to_owned();
    }
    let is_recent = |Stamp(at): Stamp| status.now_at.0.saturating_sub(at) < RECENT_MS;
    let dropped = |reason: &str| link.dropped_lately.get(reason).copied().unwrap_or(0);
    if disbelieved {
        ": beacons come, and none of them counts: see above".to_owned()
    } else if dropped("beacon") > 0 || link.last_heard_at.is_some_and(is_recent) {
        ", but datagrams come that are rightly sealed, and none is a beacon that counts: see `discarded`, and compare the key on the low \
         side (`checkvalve-sender status`) with `checkvalve-receiver trust list`"
            .to_owned()
    } else if dropped("place") > 0 {
        ", but datagrams come of a length that they do not say: compare `mtu` of both configs, and the MTU of all devices between".to_owned()
    } else {
        ": the sender or the link is down; what is sent now is not known of".to_owned()
    }
}

/// What datagrams come that mean nothing here, and how to mend that.
fn foreign(dropped: &BTreeMap<String, u64>) -> Option<&'static str> {
    let came = |reason: &str| dropped.get(reason).is_some_and(|&count| count > 0);
    if came("key") {
        Some(
            ", but datagrams come that are sealed under another link key: copy `keys.link` from the sender, compare what `check-config` prints \
             on both sides, and restart this receiver",
        )
    } else if came("mode") {
        Some(
            ", but datagrams come in the other mode: set `link.insecure` alike on both sides, and restart this receiver",
        )
    } else if came("version") {
        Some(", but datagrams of another version come: install the same release on both sides")
    } else {
        None
    }
}
