//! `status`: what the daemon does.

use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::time::Duration;

use checkvalve_host::log::escape;
use checkvalve_host::progress::{counted, human_bytes, human_duration, human_rate};
use checkvalve_host::say::is_unread;
use clap::Args as ClapArgs;

use super::{CommandError, ask, say, say_json};
use crate::config::Config;
use crate::control::{Request, Status};
use crate::engine::{BundleState, BundleView};
use crate::pipeline::LinkStats;

/// Bundles that the text shows of each state; JSON has all.
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
        let status: Status = ask(&config, &Request::Status)?;
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

fn text(status: &Status) -> String {
    let mut out = String::new();
    // Writing to a string cannot fail.
    let _ = write_text(&mut out, status);
    out
}

fn write_text(out: &mut String, status: &Status) -> std::fmt::Result {
    let link = &status.link;
    writeln!(
        out,
        "checkvalve-sender {} to {} at {}, MTU {}{}",
        status.version,
        link.destination,
        human_rate(link.rate_bits),
        link.mtu,
        if link.sealed { "" } else { ", INSECURE: not sealed" }
    )?;
    for trouble in &link.sent.troubles {
        writeln!(out, "! link: {}", escape(&trouble.text))?;
    }
    for trouble in &status.view.troubles {
        writeln!(out, "! {}", escape(&trouble.text))?;
    }
    for waiting in status.view.spool.waiting.iter().filter(|waiting| waiting.problem) {
        writeln!(out, "! spool/{}/{}: {}", waiting.channel, waiting.name, escape(&waiting.why))?;
    }
    writeln!(out)?;
    writeln!(out, "{:<20} {:>8} {:>8} {:>8} {:>12}", "channel", "priority", "newest", "queued", "to send")?;
    for channel in &status.view.channels {
        let bytes = human_bytes(channel.queued_bytes);
        writeln!(
            out,
            "{:<20} {:>8} {:>8} {:>8} {bytes:>12}{}",
            channel.name.as_str(),
            channel.priority,
            channel.newest,
            channel.queued,
            if channel.configured { "" } else { "  (not in the configuration)" }
        )?;
    }
    for state in [BundleState::Transmitting, BundleState::Queued, BundleState::Transmitted, BundleState::Failed] {
        write_bundles(out, &status.view.bundles, state)?;
    }
    let settling = status.view.spool.waiting.iter().filter(|waiting| !waiting.problem).count();
    if settling > 0 {
        writeln!(out, "\n{settling} in the spool not claimed yet (open for writing, or settling)")?;
    }
    let LinkStats { datagrams, bytes, send_errors, .. } = link.sent;
    writeln!(
        out,
        "\n{} sent since the start ({}); {} the system refused one and it was tried again",
        counted(datagrams, "datagram"),
        human_bytes(bytes),
        counted(send_errors, "time"),
    )?;
    let retained = &status.view.retained;
    writeln!(out, "{} retained, {}", counted(retained.bundles, "transmitted bundle"), human_bytes(retained.bytes))
}

fn write_bundles(out: &mut String, bundles: &[BundleView], state: BundleState) -> std::fmt::Result {
    let mut ours: Vec<_> = bundles.iter().filter(|bundle| bundle.state == state).collect();
    if ours.is_empty() {
        return Ok(());
    }
    if state != BundleState::Queued {
        ours.sort_by_key(|bundle| std::cmp::Reverse((bundle.claimed_at, bundle.sequence)));
    }
    writeln!(out, "\n{state}")?;
    for bundle in ours.iter().take(SHOWN) {
        let number = bundle.sequence.map_or_else(|| "-".to_owned(), |sequence| sequence.to_string());
        let number = format!("{}/{number}", bundle.channel);
        let bytes = human_bytes(bundle.bytes);
        writeln!(out, "  {number:<22} {}  {bytes:>9}  {}{}", bundle.id, bundle.name, detail(bundle))?;
    }
    if ours.len() > SHOWN {
        writeln!(out, "  and {} more (--json has all)", ours.len() - SHOWN)?;
    }
    Ok(())
}

fn detail(bundle: &BundleView) -> String {
    let mut out = String::new();
    if let Some(reason) = &bundle.reason {
        out += &format!(": {}", escape(reason));
    }
    if let Some(wire) = &bundle.on_wire {
        let percent = wire.blocks_sent.saturating_mul(100).checked_div(wire.blocks).unwrap_or(100).min(100);
        out += &format!("  {percent} %");
    }
    if bundle.passes > 1 && matches!(bundle.state, BundleState::Transmitting | BundleState::Queued) {
        out += &format!("  {} of {} done", bundle.passes_done, counted(bundle.passes.into(), "pass"));
    }
    if let (Some(wait), None) = (bundle.next_in_ms.filter(|ms| *ms > 0), &bundle.on_wire) {
        out += &format!("  next in {}", human_duration(Duration::from_millis(wait)));
    }
    if bundle.resends > 0 {
        out += "  to be sent again";
    }
    if bundle.state == BundleState::Transmitted && !bundle.retained {
        out += "  (not retained)";
    }
    out
}
