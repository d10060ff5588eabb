//! `check-config`: what follows from a configuration.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use checkvalve_host::config::list;
use checkvalve_host::log::escape_path;
use checkvalve_host::progress::{counted, human_bytes, human_duration, human_rate};
use serde_json::json;

use super::{CommandError, say, say_json};
use crate::config::{Checked, Config};

pub(super) fn check_config(path: &Path, json: bool) -> Result<(), CommandError> {
    let checked = Config::load(path)?;
    let parameters = &checked.parameters;
    if json {
        return say_json(&json!({
            "config": escape_path(path),
            "destination": checked.destinations,
            "lanes": checked.destinations.len(),
            "sealed": checked.link_key.is_some(),
            "link_key": checked.link_key.as_ref().map(|key| key.id()),
            "signing_key": checked.signing_key.public().id(),
            "channels": checked.rules.keys().collect::<Vec<_>>(),
            "symbol_bytes": parameters.symbol_size(),
            "block_symbols": parameters.block_symbols(),
            "repair_symbols": parameters.repair_symbols(parameters.block_symbols()),
            "depth": parameters.depth(),
            "memory_bytes": parameters.memory(),
            "wire_overhead": parameters.wire_overhead(),
            "goodput_bytes_per_second": parameters.goodput(),
            "survivable_burst_ms": parameters.survivable_burst().as_secs_f64() * 1e3,
            "survivable_loss": parameters.survivable_loss(),
            "memory_binds": parameters.memory_binds(),
        }));
    }
    text(path, &checked);
    Ok(())
}

fn text(path: &Path, checked: &Checked) {
    let (config, parameters) = (&checked.config, &checked.parameters);
    let line = |what: &str, value: String| say(format_args!("{what:<17} {value}"));
    say(format_args!("{} is right", escape_path(path)));
    let lanes = if checked.destinations.len() == 1 { "lane" } else { "lanes" };
    line("destination", format!("{}; {} {lanes}", list(&checked.destinations), checked.destinations.len()));
    match &checked.link_key {
        Some(key) => line("link key", format!("{} (must be the receiver's)", key.id())),
        None => line("link key", "NONE: insecure, anyone on the link can read and disturb it".to_owned()),
    }
    line("signing key", format!("{} (the receiver must trust it)", checked.signing_key.public().id()));
    for (name, rules) in &checked.rules {
        let mut what = format!("priority {}, {}", rules.priority, counted(rules.passes.into(), "pass"));
        if rules.passes > 1 && rules.pass_interval_ms > 0 {
            what += &format!(" {} apart", human_duration(std::time::Duration::from_millis(rules.pass_interval_ms)));
        }
        if let Some(every) = rules.carousel_ms {
            what += &format!(", again every {}", human_duration(std::time::Duration::from_millis(every)));
        }
        line(&format!("channel {name}"), what);
    }
    let block = u64::from(parameters.block_symbols()) * u64::from(parameters.symbol_size());
    let repair = parameters.repair_symbols(parameters.block_symbols());
    line(
        "source block",
        format!(
            "{} of {} ({}) and {}",
            counted(parameters.block_symbols().into(), "symbol"),
            counted(parameters.symbol_size().into(), "byte"),
            human_bytes(block),
            counted(repair.into(), "repair symbol")
        ),
    );
    line(
        "interleaved",
        format!("{}, {}", counted(parameters.depth().into(), "block"), human_bytes(parameters.memory())),
    );
    let percent = |share: f64| format!("{:.1} %", share * 100.0);
    let goodput = parameters.goodput() * 8.0;
    line(
        "on the wire",
        format!(
            "{} at most, of which {} are overhead: {} of data",
            human_rate(parameters.rate()),
            percent(parameters.wire_overhead()),
            // A rate in bits fits.
            human_rate(goodput as u64)
        ),
    );
    let burst = parameters.survivable_burst();
    let micros = burst.as_micros();
    let shown = if micros < 10_000 { format!("{:.1} ms", micros as f64 / 1e3) } else { human_duration(burst) };
    line(
        "survives",
        format!(
            "an outage of {shown} at full rate, or {} random loss (a bundle of 1 GiB, 99 times in 100)",
            percent(parameters.survivable_loss())
        ),
    );
    if parameters.memory_binds() {
        line(
            "",
            format!("(`memory` = \"{}\" is too little for `fec.burst` = \"{}\")", config.memory, config.fec.burst),
        );
    }
    if device(&config.spool) != device(&config.state) {
        line("holding area", "in the spool (.checkvalve), since state is on another file system".to_owned());
    }
}

/// The file system that a directory is on. Nothing is created or tried here: the daemon runs as another user, perhaps.
fn device(path: &Path) -> Option<u64> {
    std::fs::metadata(path).ok().map(|meta| meta.dev())
}
