//! `check-config`: what follows from a configuration.

use std::path::Path;

use checkvalve_host::config::list;
use checkvalve_host::log::{escape, escape_path};
use checkvalve_host::progress::{human_bytes, human_duration};
use serde_json::json;

use super::{CommandError, say, say_json};
use crate::config::{ChannelConfig, Checked, Config};

pub(super) fn check_config(path: &Path, json: bool) -> Result<(), CommandError> {
    let checked = Config::load(path)?;
    if json {
        let trusted: Vec<_> =
            checked.trusted.iter().map(|(key, _, name)| json!({ "key": key, "name": name })).collect();
        return say_json(&json!({
            "config": escape_path(path),
            "listen": checked.listen,
            "sealed": checked.link_key.is_some(),
            "link_key": checked.link_key.as_ref().map(|key| key.id()),
            "trusted": trusted,
            "channels": checked.config.channels.keys().collect::<Vec<_>>(),
            "staging": escape_path(&checked.staging),
            "block_memory_bytes": checked.block_memory,
            "workers": checked.workers,
        }));
    }
    text(path, &checked);
    Ok(())
}

fn text(path: &Path, checked: &Checked) {
    let config = &checked.config;
    let line = |what: &str, value: String| say(format_args!("{what:<17} {value}"));
    say(format_args!("{} is right", escape_path(path)));
    line("listens on", format!("{} (as many lanes as the sender has)", list(&checked.listen)));
    match &checked.link_key {
        Some(key) => line("link key", format!("{} (must be the sender's)", key.id())),
        None => line("link key", "NONE: insecure, anyone on the link can disturb it".to_owned()),
    }
    for (key, _, name) in checked.trusted.iter() {
        line("trusts", format!("{key} {}", escape(name)));
    }
    if checked.trusted.is_empty() {
        line("trusts", "NOBODY: nothing will be accepted (`trust add FILE.pub`)".to_owned());
    }
    for (name, channel) in &config.channels {
        line(&format!("channel {name}"), describe(channel));
        for key in channel.signers.iter().flatten() {
            let trusted = checked.trusted.get(key).is_some();
            line("  signed by", format!("{key}{}", if trusted { "" } else { ", which is NOT TRUSTED" }));
        }
    }
    line("other channels", "published, no hook".to_owned());
    line("unfinished in", escape_path(&checked.staging));
    let quota = config.quota.map_or_else(|| "no quota".to_owned(), |quota| format!("quota {quota}"));
    line("room", format!("{quota}, {} left free", config.reserve));
    line(
        "memory",
        format!("{} for blocks under way; the sender's interleaving must fit", human_bytes(checked.block_memory)),
    );
    line("kernel buffer", format!("{} a lane", config.link.receive_buffer));
    line("workers", checked.workers.to_string());
}

fn describe(channel: &ChannelConfig) -> String {
    let wait = match channel.wait_for_missing.and_then(|wait| wait.duration()) {
        Some(wait) => format!("a missing bundle holds up later ones for {}", human_duration(wait)),
        None => "a missing bundle holds up later ones until it comes or is rejected".to_owned(),
    };
    let quota = channel.quota.map_or_else(String::new, |quota| format!("; quota {quota}"));
    match &channel.hook {
        None => format!("published, no hook{quota}"),
        Some(hook) => format!(
            "{}, {} at most, again after {} to {}; {wait}{quota}",
            escape_path(&hook.install),
            human_duration(hook.timeout.duration()),
            human_duration(hook.backoff.duration()),
            human_duration(hook.backoff_max.duration()),
        ),
    }
}
