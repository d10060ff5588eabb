//! Waiting for a bundle to be transmitted, with a progress bar.

use std::time::{Duration, Instant};

use checkvalve_host::exit::Exit;
use checkvalve_host::progress::{Bar, human_bytes, human_duration};
use checkvalve_protocol::id::{BundleId, ChannelName};

use super::{CommandError, ask, say_json};
use crate::config::Config;
use crate::control::{FoundBundle, Request};
use crate::engine::{BundleState, BundleView};

const EVERY: Duration = Duration::from_millis(100);

/// What was put into the spool.
pub(super) struct Dropped {
    pub(super) channel: ChannelName,
    /// As it is shown.
    pub(super) name: String,
    pub(super) name_hex: Option<String>,
    pub(super) inode: u64,
    pub(super) since_ms: u64,
}

/// Waits until what was dropped is transmitted (all its passes) or failed.
pub(super) fn until_transmitted(config: &Config, dropped: &Dropped, json: bool) -> Result<(), CommandError> {
    let Dropped { channel, name, inode, since_ms, .. } = dropped;
    let request = Request::Find { channel: channel.clone(), inode: *inode, since_ms: *since_ms };
    until(
        name,
        json,
        || Ok(ask::<FoundBundle>(config, &request)?.bundle),
        |view| view.state == BundleState::Transmitted,
    )
}

/// Waits until a bundle has no resends left.
pub(super) fn until_resent(config: &Config, bundle: &str, id: BundleId, json: bool) -> Result<(), CommandError> {
    let request = Request::Bundle { bundle: id.to_string() };
    until(bundle, json, || ask(config, &request).map(Some), |view| view.resends == 0)
}

fn until(
    label: &str,
    json: bool,
    mut look: impl FnMut() -> Result<Option<BundleView>, CommandError>,
    is_over: impl Fn(&BundleView) -> bool,
) -> Result<(), CommandError> {
    let begun = Instant::now();
    let mut bar = (!json).then(|| Bar::stderr(label));
    loop {
        let view = look()?;
        if let Some(view) = &view {
            if view.state == BundleState::Failed || is_over(view) {
                return end(view, bar, begun.elapsed(), json);
            }
            if let Some(bar) = &mut bar {
                bar.update(begun.elapsed(), done_bytes(view), view.bytes.saturating_mul(u64::from(view.passes.max(1))));
            }
        }
        std::thread::sleep(EVERY);
    }
}

/// How much of all passes is done, in bytes of the bundle.
fn done_bytes(view: &BundleView) -> u64 {
    let this_pass = view.on_wire.as_ref().map_or(0, |wire| {
        let blocks = u128::from(wire.blocks.max(1));
        u64::try_from(u128::from(view.bytes) * u128::from(wire.blocks_sent.min(wire.blocks)) / blocks).unwrap_or(0)
    });
    view.bytes.saturating_mul(u64::from(view.passes_done)).saturating_add(this_pass)
}

fn end(view: &BundleView, bar: Option<Bar<std::io::Stderr>>, took: Duration, json: bool) -> Result<(), CommandError> {
    if json {
        say_json(view)?;
    }
    let number =
        view.sequence.map_or_else(|| view.channel.to_string(), |sequence| format!("{}/{sequence}", view.channel));
    if view.state == BundleState::Failed {
        if let Some(mut bar) = bar {
            bar.finish(&format!("failed {number} {}", view.name));
        }
        let reason = view.reason.as_deref().unwrap_or("no reason is known");
        return Err(CommandError::new(Exit::DataErr, format!("{number} {}: {reason}", view.name)));
    }
    if let Some(mut bar) = bar {
        let (size, took) = (human_bytes(view.bytes), human_duration(took));
        bar.finish(&format!("transmitted {number} {} ({size} in {took}, id {})", view.name, view.id));
    }
    Ok(())
}
