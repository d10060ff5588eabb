//! A ledger that was damaged or lost, made again from what else is on the disk: the audit trail says what became of each bundle,
//! its recorded manifest what it is. So nothing that was installed is installed again, and what never arrived is still missed.

use std::collections::BTreeMap;
use std::path::Path;

use checkvalve_host::log::escape_path;
use checkvalve_host::progress::counted;
use checkvalve_protocol::id::{BundleId, ChannelName};
use checkvalve_protocol::manifest::Announce;

use super::alarms::{Alarm, Code};
use super::telling::subject;
use crate::audit::{Audit, Event, Told, Unreadable};
use crate::inbox::{Address, Inbox};
use crate::ledger::file::{Damage, LedgerFile};
use crate::ledger::{Entry, Signer, Standing, State};

/// Takes from the audit trail what the ledger does not know, or knows an older state of. Gives how many bundles, and what
/// cannot be read.
pub(super) fn rebuild(ledger: &LedgerFile, audit: &Audit, inbox: &Inbox) -> std::io::Result<(usize, Unreadable)> {
    let mut ends: BTreeMap<BundleId, Entry> = BTreeMap::new();
    let mut passed: BTreeMap<ChannelName, u64> = BTreeMap::new();
    let (mut given_up, mut allowed) = (Vec::new(), Vec::new());
    let unreadable = audit.read(&mut |told| {
        let Some(channel) = told.channel.clone() else { return };
        let Some(id) = told.bundle else {
            match told.event.as_str() {
                "rejected" => given_up.push((channel, told.sequence..=told.through.unwrap_or(told.sequence))),
                "approved" => allowed.push((channel, told.sequence)),
                _ => {}
            }
            return;
        };
        if told.event == "hook" {
            let last = passed.entry(channel.clone()).or_default();
            *last = told.sequence.max(*last);
        }
        let has_failed = ends.get(&id).is_some_and(|entry: &Entry| entry.state() == State::Failed);
        if told.event == "retried"
            && has_failed
            && let Some(last) = passed.get_mut(&channel)
        {
            *last = told.sequence.min(*last); // its hook has its turn again
        }
        let entry = ends.entry(id).or_insert_with(|| {
            let mut entry = Entry::new(id, told.at.0);
            (entry.channel, entry.sequence, entry.standing) = (Some(channel), told.sequence, Standing::Signed);
            entry
        });
        follow(entry, &told);
    })?;
    if unreadable.count > 0 {
        tracing::error!(
            lines = unreadable.named(),
            count = unreadable.count,
            "lines of the audit trail cannot be read: what became of their bundles is not known, and a hook may run again for one"
        );
    }
    let mut count = 0;
    for (_, mut entry) in ends {
        let known = ledger.lock().entry(entry.id).cloned();
        if rank(entry.state()) <= known.as_ref().map_or(0, |known| rank(known.state())) {
            continue;
        }
        let place = Address { id: entry.id, channel: entry.channel.clone(), sequence: entry.sequence };
        match (known, inbox.recorded(&place).ok().and_then(|(bytes, _)| Announce::peek(&bytes).ok())) {
            (Some(known), _) if !known.name.is_empty() => (entry.name, entry.bytes) = (known.name, known.bytes),
            (_, Some(announce)) => (entry.name, entry.bytes) = (announce.name.clone(), announce.data_len()),
            _ => {}
        }
        count += usize::from(ledger.lock().relearn(entry));
    }
    let mut ledger = ledger.lock();
    for (channel, sequence) in allowed {
        ledger.allow(&channel, sequence);
    }
    for (channel, sequences) in given_up {
        ledger.change_channel(&channel, |channel| channel.give_up(&sequences));
    }
    for (channel, sequence) in passed {
        ledger.change_channel(&channel, |channel| channel.pass(sequence));
    }
    Ok((count, unreadable))
}

/// [`Ledger::settle_turns`](crate::ledger::Ledger::settle_turns), with what failed in the log and in the audit trail.
pub(super) fn settle_turns(ledger: &LedgerFile, audit: &Audit, now_ms: u64) {
    let failed = ledger.lock().settle_turns(now_ms);
    for entry in &failed {
        let (attempt, ended) = (entry.attempt, entry.reason.as_deref().unwrap_or_default());
        tracing::error!(bundle = %entry.id, sequence = entry.sequence, attempt, ended, state = "failed", "hook");
        audit
            .note(now_ms, &Event::Hook { bundle: subject(entry), stage: "install", attempt, outcome: "failed", ended });
    }
}

/// What a person should know of that, until the next restart.
pub(super) fn told(damage: &Damage, rebuilt: usize, unreadable: &Unreadable, state: &Path) -> Vec<Alarm> {
    let mut alarms = Vec::new();
    // A line that a power cut tore off the end loses nothing by itself.
    if rebuilt > 0 || !damage.corrupt.is_empty() || damage.unreadable > 0 {
        let (bytes, ranges, records) = (damage.torn_bytes, damage.corrupt.len(), damage.unreadable);
        let what = match damage.is_any() {
            true => format!("was damaged ({bytes} bytes torn off, {ranges} ranges and {records} records not readable)"),
            false => "was gone".to_owned(),
        };
        alarms.push(Alarm::new(
            Code::LedgerRebuilt,
            format!(
                "the ledger {what} when this daemon started, and {} made again from the audit trail and the manifests: look after the disk \
                 (`dmesg`), compare `checkvalve-receiver status` with `checkvalve-sender status` on the low side; `systemctl restart \
                 checkvalve-receiver` ends this alarm",
                counted_were(rebuilt)
            ),
        ));
    }
    if unreadable.count > 0 {
        let path = escape_path(&state.join("audit.jsonl"));
        let first = unreadable.lines.first().copied().unwrap_or(1);
        alarms.push(Alarm::new(
            Code::TrailUnreadable,
            format!(
                "{} of the audit trail cannot be read, so that a hook may run again for a bundle that they told of: {} (`sed -n {first}p {path}`). \
                 Look in the logs of hooks whether what `status` calls `complete` was installed; `systemctl restart checkvalve-receiver` ends \
                 this alarm",
                counted(unreadable.count, "line"),
                unreadable.named()
            ),
        ));
    }
    alarms
}

fn counted_were(bundles: usize) -> String {
    match bundles {
        1 => "1 bundle of it was".to_owned(),
        many => format!("{} of it were", counted(many as u64, "bundle")),
    }
}

/// What an event makes of a bundle.
fn follow(entry: &mut Entry, told: &Told) {
    entry.changed_ms = told.at.0;
    entry.reason = told.reason.clone();
    if let Some(key) = told.signer {
        entry.signer = Some(Signer { key, name: told.signer_name.clone().unwrap_or_default() });
    }
    match (told.event.as_str(), told.outcome.as_deref()) {
        ("published", _) => {
            entry.complete();
            entry.sent = true;
            entry.announce = told.manifest.as_deref().and_then(|hex| blake3::Hash::from_hex(hex).ok()).map(Into::into);
        }
        ("quarantined", _) => {
            entry.quarantine(entry.rule.clone(), told.reason.clone());
            entry.moved_to_quarantine();
        }
        ("withdrawn", _) => entry.withdraw(told.reason.clone()),
        ("rejected", _) => entry.reject(told.reason.clone()),
        // Its hook is to run again.
        ("retried", _) if entry.state() == State::Failed => entry.complete(),
        ("retried", _) if entry.state() == State::Installing => {}
        // What was undone, and what is only held, is not an end.
        ("retried" | "held" | "approved", _) => entry.miss(told.reason.clone()),
        ("hook", Some(outcome)) => {
            entry.attempt = told.attempt.unwrap_or(1);
            match outcome {
                "installed" => entry.installed(),
                "failed" => entry.fail(told.ended.clone()),
                // Moving it there is gone through again where it was not finished.
                "quarantined" => entry.quarantine(Some("hook".to_owned()), told.ended.clone()),
                _ => {
                    entry.install();
                    entry.reason = told.ended.clone();
                }
            }
        }
        _ => {}
    }
}

/// How far a state is: a later one outranks what an older record says.
fn rank(state: State) -> u8 {
    match state {
        State::Receiving | State::Incomplete | State::Missing => 0,
        State::Complete => 1,
        State::Installing => 2,
        _ => 3,
    }
}
