//! `status`: what arrived, what is under way, what never came.

use std::fmt::{self, Write as _};
use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::time::Duration;

use checkvalve_host::json::Stamp;
use checkvalve_host::log::escape;
use checkvalve_host::progress::{counted, human_bytes, human_duration, human_rate};
use checkvalve_host::say::is_unread;
use clap::Args as ClapArgs;

use super::{CommandError, ask, say, say_json};
use crate::config::Config;
use crate::control::alarms::newest_installed;
use crate::control::{DaemonStatus, LinkView, Request};
use crate::delivery::status::{BundleStatus, SenderStatus};
use crate::delivery::{NO_KEY, NOT_ITS};
use crate::ledger::State;
use crate::windows::LinkWindow;

/// Bundles that the text shows of each state; JSON has more.
const SHOWN: usize = 20;

#[derive(Debug, ClapArgs)]
pub(super) struct Args {
    /// Show it again every second, until Ctrl-C.
    #[arg(long)]
    watch: bool,
}

pub(super) fn status(args: &Args, config: &Path, json: bool) -> Result<(), CommandError> {
    let config = Config::peek(config)?;
    loop {
        let status: DaemonStatus = ask(&config, &Request::DaemonStatus)?;
        if json {
            say_json(&status)?;
        } else {
            if args.watch && io::stdout().is_terminal() {
                drop(write!(io::stdout(), "\x1b[H\x1b[2J"));
            }
            say(text(&status).trim_end());
        }
        if !args.watch || is_unread() {
            return Ok(());
        }
        std::thread::sleep(Duration::from_secs(1));
    }
}

pub(super) fn text(status: &DaemonStatus) -> String {
    let mut out = String::new();
    // Writing to a string cannot fail.
    let _ = write_text(&mut out, status);
    out
}

fn write_text(out: &mut String, status: &DaemonStatus) -> fmt::Result {
    let insecure = if status.link.sealed { "" } else { ", INSECURE: not sealed" };
    writeln!(out, "checkvalve-receiver {} on {}{insecure}", status.version, status.link.listen)?;
    for alarm in &status.alarms {
        writeln!(out, "! {}", escape(&alarm.text))?;
    }
    write_senders(out, status)?;
    write_link(out, status)?;
    write_loss(out, &status.link)?;
    let staging = &status.deliveries.staging;
    writeln!(
        out,
        "staging  {} unfinished, {} free on the disk",
        human_bytes(staging.bytes),
        human_bytes(staging.free)
    )?;
    writeln!(out, "\n{:<20} {:>8} {:>8}", "channel", "newest", "to hook")?;
    for channel in &status.deliveries.channels {
        let note = match (channel.hook, channel.running, channel.blocked_by) {
            (false, ..) => "  no hook".to_owned(),
            (true, true, _) => "  hook running".to_owned(),
            (true, false, Some(sequence)) => format!("  waits for {sequence}"),
            (true, false, None) => String::new(),
        };
        let begins = channel.begins_at.filter(|&at| at > 1);
        let note =
            begins.map_or(note.clone(), |at| format!("{note}  begins at {at}: what was sent before is not known here"));
        writeln!(out, "{:<20} {:>8} {:>8}{note}", channel.name.as_str(), channel.newest, channel.passed)?;
    }
    for state in [
        State::Held,
        State::Receiving,
        State::Incomplete,
        State::Missing,
        State::Installing,
        State::Complete,
        State::Failed,
        State::Quarantined,
        State::Installed,
        State::Superseded,
        State::Withdrawn,
        State::Rejected,
    ] {
        write_bundles(out, &status.deliveries.bundles, state, status.deliveries.now_at)?;
    }
    Ok(())
}

fn write_senders(out: &mut String, status: &DaemonStatus) -> fmt::Result {
    let senders = &status.deliveries.senders;
    if senders.is_empty() {
        return writeln!(out, "sender   nothing heard yet");
    }
    for sender in senders {
        let name = if senders.len() > 1 { format!("{}: ", sender.name) } else { String::new() };
        write_sender(out, status, sender, &name)?;
    }
    Ok(())
}

fn write_sender(out: &mut String, status: &DaemonStatus, sender: &SenderStatus, name: &str) -> fmt::Result {
    let Some(last) = sender.last_beacon_at else {
        return writeln!(out, "sender   {name}nothing heard yet");
    };
    let ago = human_duration(Duration::from_millis(status.deliveries.now_at.0.saturating_sub(last.0)));
    let rate = human_rate(sender.rate_bits);
    write!(out, "sender   {name}beacon {ago} ago, session {}, {rate}", sender.session_number)?;
    match &sender.on_wire {
        Some(wire) if !sender.silent => {
            let percent = u64::from(wire.blocks_sent)
                .saturating_mul(100)
                .checked_div(u64::from(wire.blocks))
                .unwrap_or(0)
                .min(100);
            writeln!(
                out,
                ", transmits {}/{} ({percent} % of pass {} of {})",
                wire.channel, wire.sequence, wire.pass, wire.passes
            )
        }
        _ => writeln!(out),
    }
}

fn write_link(out: &mut String, status: &DaemonStatus) -> fmt::Result {
    let link = &status.link;
    writeln!(
        out,
        "link     {}, {}; blocks: {} whole, {} decoded; {} in memory",
        counted(link.datagrams, "datagram"),
        human_bytes(link.bytes),
        link.blocks_whole,
        link.blocks_decoded,
        human_bytes(link.memory)
    )?;
    let drops: Vec<String> = link
        .dropped
        .iter()
        .filter(|(_, count)| **count > 0)
        .map(|(reason, count)| format!("{count} {reason}"))
        .collect();
    if !drops.is_empty() {
        writeln!(out, "dropped  {}", drops.join(", "))?;
    }
    let discarded: Vec<String> =
        status.deliveries.discarded.iter().map(|(rule, count)| format!("{count} {rule}")).collect();
    if !discarded.is_empty() {
        writeln!(out, "discarded  {}", discarded.join(", "))?;
    }
    if link.blocks_failed + link.blocks_lost > 0 {
        writeln!(out, "! blocks: {} could not be stored, {} lost unfinished", link.blocks_failed, link.blocks_lost)?;
    }
    Ok(())
}

/// Loss by span and by place.
fn write_loss(out: &mut String, link: &LinkView) -> fmt::Result {
    writeln!(
        out,
        "\n{:<9}{:>13} {:>9} {:>13}   lost: {:>9} {:>9} {:>9}   worst block",
        "loss", "sent", "lost", "longest burst", "link", "kernel", "memory"
    )?;
    let rows = [("1 min", &link.minute), ("1 h", &link.hour), ("1 day", &link.day)];
    if link.senders.len() > 1 {
        // What one sender says is no fact about the others.
        for sender in &link.senders {
            writeln!(out, "of {}:", sender.name)?;
            for (span, window) in [("1 min", &sender.minute), ("1 h", &sender.hour), ("1 day", &sender.day)] {
                write_window(out, span, window, window.lost, ["-".into(), "-".into()])?;
            }
        }
        writeln!(out, "of all:")?;
        for (span, window) in rows {
            let dropped = [window.lost_kernel, window.dropped_memory].map(|count| count.to_string());
            write_window(out, span, &LinkWindow::default(), 0, dropped)?;
        }
        return Ok(());
    }
    for (span, window) in rows {
        let dropped = [window.lost_kernel, window.dropped_memory].map(|count| count.to_string());
        write_window(out, span, window, window.lost.saturating_sub(window.lost_kernel), dropped)?;
    }
    Ok(())
}

fn write_window(out: &mut String, span: &str, window: &LinkWindow, link: u64, dropped: [String; 2]) -> fmt::Result {
    let share = if window.sent == 0 {
        "-".to_owned()
    } else {
        format!("{:.3} %", window.lost as f64 * 100.0 / window.sent as f64)
    };
    let margin = match window.least_margin {
        None => "-".to_owned(),
        Some(margin) if margin < 0 => "lacked symbols".to_owned(),
        Some(margin) => format!("{} % of its repair to spare", margin / 10),
    };
    let [kernel, memory] = dropped;
    writeln!(
        out,
        "{span:<9}{:>13} {share:>9} {:>13}         {link:>9} {kernel:>9} {memory:>9}   {margin}",
        window.sent, window.longest_burst,
    )
}

fn write_bundles(out: &mut String, bundles: &[BundleStatus], state: State, now: Stamp) -> fmt::Result {
    let mut ours: Vec<_> = bundles.iter().filter(|bundle| bundle.state == state).collect();
    if ours.is_empty() {
        return Ok(());
    }
    ours.sort_by_key(|bundle| std::cmp::Reverse((bundle.changed_at, bundle.sequence)));
    writeln!(out, "\n{}", state.as_str())?;
    for bundle in ours.iter().take(SHOWN) {
        let number = bundle.number();
        let (id, bytes) = (&bundle.id, human_bytes(bundle.bytes));
        writeln!(out, "  {number:<22} {id:<16}  {bytes:>9}  {}{}", bundle.name, detail(bundle, now))?;
    }
    let tickets: Vec<_> = ours.iter().filter(|bundle| bundle.ticket.is_some()).collect();
    if let [first, more @ ..] = &tickets[..] {
        let which = if more.is_empty() && first.through.is_none() { &first.handle } else { "--all" };
        writeln!(out, "  -> checkvalve-receiver ticket {which}")?;
    }
    // The oldest first: what is older than what is installed is not installed any more.
    let newest = newest_installed(bundles);
    let may_be = |bundle: &&&BundleStatus| newest.get(bundle.channel.as_str()).is_none_or(|&at| at < bundle.sequence);
    let oldest = ours.iter().filter(may_be).min_by_key(|bundle| (&bundle.channel, bundle.sequence));
    if let (State::Failed | State::Quarantined, Some(oldest)) = (state, oldest) {
        let first = if ours.len() > 1 { ", the oldest first" } else { "" };
        match oldest.code.as_deref() {
            Some(NO_KEY) => writeln!(out, "  -> checkvalve-receiver trust add FILE.pub, if its key shall count")?,
            Some(NOT_ITS) => {
                writeln!(out, "  -> name its key in `channel.{}.signers`, if it shall count", oldest.channel)?
            }
            _ => writeln!(out, "  -> checkvalve-receiver retry {}, once the cause is mended{first}", oldest.handle)?,
        }
    }
    if ours.len() > SHOWN {
        writeln!(out, "  and {} more (--json has them)", ours.len() - SHOWN)?;
    }
    Ok(())
}

fn detail(bundle: &BundleStatus, now: Stamp) -> String {
    let mut out = String::new();
    if bundle.state.is_open() && bundle.bytes > 0 && bundle.received > 0 {
        let percent = u128::from(bundle.received) * 100 / u128::from(bundle.bytes);
        out += &format!("  {} % stored", percent.min(100));
    }
    if let Some(reason) = &bundle.reason {
        out += &format!(": {}", escape(reason));
    }
    if let Some(lacking) = bundle.lacking.filter(|lacking| lacking.symbols > 0 && bundle.state == State::Incomplete) {
        out += &format!("; {} of {}", counted(lacking.symbols, "symbol"), counted(lacking.blocks.into(), "block"));
    }
    if let Some(sequence) = bundle.waiting_for {
        out += &format!("  waits for {sequence}");
    }
    if bundle.attempt > 1 {
        out += &format!("  attempt {}", bundle.attempt);
    }
    if let Some(wait) =
        bundle.retry_at.and_then(|at| at.0.checked_sub(now.0)).filter(|_| bundle.state == State::Installing)
    {
        out += &format!("  again in {}", human_duration(Duration::from_millis(wait)));
    }
    out
}
