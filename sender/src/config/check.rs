//! What no type can check: ranges, contradictions, files and directories.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use checkvalve_host::config::{ConfigError, existing_dir, key_file, writable_dir};
use checkvalve_host::units::Size;
use checkvalve_protocol::crypto::{LinkKey, SigningKey};
use checkvalve_protocol::id::ChannelName;
use checkvalve_protocol::limits::{MAX_CHANNELS, MAX_MTU, MIN_MTU};
use checkvalve_protocol::transmit::{self, ParameterError, Parameters};

use super::{ChannelConfig, Checked, Config};
use crate::engine::Rules;

const MOST_PASSES: u32 = 100;

/// The channel that there is without any table of one.
pub(super) fn usual_channel() -> Option<ChannelName> {
    // A literal that is a channel's name.
    ChannelName::new("default").ok()
}

pub(super) fn check(mut config: Config) -> Result<Checked, ConfigError> {
    if config.channels.is_empty() {
        config.channels.extend(usual_channel().map(|name| (name, ChannelConfig::default())));
    }
    let destinations = destinations(&config)?;
    let parameters = parameters(&config)?;
    let rules = rules(&config)?;
    directories(&config)?;
    let link_key = link_key(&config)?;
    let text = secret("keys.signing", "signing", &config.keys.signing)?;
    let signing_key = SigningKey::from_text(&text).map_err(|error| bad_key("keys.signing", "signing", &error))?;
    let signing_key = Arc::new(signing_key);
    Ok(Checked { destinations, link_key, signing_key, parameters, rules, config })
}

fn destinations(config: &Config) -> Result<Vec<SocketAddr>, ConfigError> {
    let hint = "write an IPv4 address and a port, for example \"10.0.0.2:7700\"";
    config.link.destination.lanes(config.link.lanes, "link.destination", hint, |address| {
        if address.is_ipv6() {
            return Some(format!("`{address}` is no IPv4 address"));
        }
        let nowhere = address.port() == 0 || address.ip().is_unspecified();
        nowhere.then(|| format!("nothing can be sent to `{address}`"))
    })
}

pub(super) fn parameters(config: &Config) -> Result<Parameters, ConfigError> {
    let link = transmit::Link {
        mtu: config.link.mtu,
        rate: config.link.rate.bits(),
        repair: config.fec.repair.fraction(),
        burst: config.fec.burst.duration(),
        memory: memory_for_blocks(config.memory),
    };
    Parameters::derive(&link).map_err(|error| {
        let problem = error.to_string();
        match error {
            ParameterError::Mtu => {
                let problem = format!("{} is too {}", link.mtu, if link.mtu < MIN_MTU { "small" } else { "large" });
                let hint = format!("write the link's MTU in bytes, {MIN_MTU} to {MAX_MTU}, for example 1500");
                ConfigError::new("link.mtu", problem, hint)
            }
            ParameterError::Rate => {
                ConfigError::new("link.rate", problem, "write a rate in that range, for example \"900 Mbit/s\"")
            }
            ParameterError::Repair => {
                ConfigError::new("fec.repair", problem, "write a share in that range, for example \"5 %\"")
            }
            ParameterError::Burst => {
                ConfigError::new("fec.burst", problem, "write a time up to that, for example \"10 ms\"")
            }
            ParameterError::Memory(needed) => {
                let least = Size::from_bytes((needed * 2).div_ceil(1 << 20) << 20);
                let problem = format!("\"{}\" is too little for this link", config.memory);
                ConfigError::new("memory", problem, format!("write at least \"{least}\""))
            }
        }
    })
}

/// What of `memory` the blocks in flight may take; the rest is for reading, coding and sending them, and for what the
/// first and the last of them carry more.
fn memory_for_blocks(memory: Size) -> u64 {
    memory.bytes() / 2
}

fn rules(config: &Config) -> Result<BTreeMap<ChannelName, Rules>, ConfigError> {
    if config.channels.len() > MAX_CHANNELS {
        let problem = format!("there are {} channels", config.channels.len());
        return Err(ConfigError::new("channel", problem, format!("write at most {MAX_CHANNELS}")));
    }
    let check_passes = |key: String, passes: u32| {
        let hint = format!("write a number from 1 to {MOST_PASSES}");
        let fits = (1..=MOST_PASSES).contains(&passes);
        if fits { Ok(passes) } else { Err(ConfigError::new(key, format!("there cannot be {passes} passes"), hint)) }
    };
    let usual = check_passes("fec.passes".into(), config.fec.passes)?;
    let mut rules = BTreeMap::new();
    for (name, channel) in &config.channels {
        let key = |key: &str| format!("channel.{name}.{key}");
        if channel.carousel.is_some_and(|every| every.millis() < 1_000) {
            let hint = "write at least \"1 s\", or remove it";
            return Err(ConfigError::new(key("carousel"), "this is too often", hint));
        }
        rules.insert(
            name.clone(),
            Rules {
                priority: channel.priority,
                passes: channel.passes.map_or(Ok(usual), |passes| check_passes(key("passes"), passes))?,
                pass_interval_ms: channel.pass_interval.map_or(0, |interval| interval.millis()),
                carousel_ms: channel.carousel.map(|every| every.millis()),
            },
        );
    }
    Ok(rules)
}

fn directories(config: &Config) -> Result<(), ConfigError> {
    let (spool, state) = (&config.spool, &config.state);
    writable_dir("spool", spool)?;
    writable_dir("state", state)?;
    if let (Ok(spool), Ok(state)) = (spool.canonicalize(), state.canonicalize())
        && (spool.starts_with(&state) || state.starts_with(&spool))
    {
        let hint = "write the path of a directory that is not in the spool, and that the spool is not in";
        return Err(ConfigError::new("state", "spool and state may not contain each other", hint));
    }
    let control = &config.control;
    match control.parent() {
        Some(parent) if parent != Path::new("") => existing_dir("control", parent),
        _ => Err(ConfigError::new("control", "this is no path of a socket", "write a path that begins with `/`")),
    }
}

fn link_key(config: &Config) -> Result<Option<LinkKey>, ConfigError> {
    match (&config.keys.link, config.link.insecure) {
        (Some(path), false) => {
            let text = secret("keys.link", "link", path)?;
            LinkKey::from_text(&text).map(Some).map_err(|error| bad_key("keys.link", "link", &error))
        }
        (None, true) => Ok(None),
        (None, false) => {
            let hint =
                "write `link = \"/etc/checkvalve/link.key\"` in `[keys]` (`checkvalve-sender keygen link` makes one)";
            Err(ConfigError::new("keys.link", "it is missing", hint))
        }
        (Some(_), true) => {
            let problem = "it says to send without a key, and `keys.link` is there";
            Err(ConfigError::new("link.insecure", problem, "write `insecure = false`, or remove `link` from `[keys]`"))
        }
    }
}

fn secret(key: &str, kind: &str, path: &Path) -> Result<String, ConfigError> {
    key_file(key, path).map_err(|error| match std::fs::symlink_metadata(path) {
        Err(io) if io.kind() == std::io::ErrorKind::NotFound => bad_key(key, kind, &error.problem),
        _ => error,
    })
}

fn bad_key(key: &str, kind: &str, error: &dyn std::fmt::Display) -> ConfigError {
    let hint = format!("write the path of a file that `checkvalve-sender keygen {kind}` made");
    ConfigError::new(key, error.to_string(), hint)
}
