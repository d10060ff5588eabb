//! `verify`: a published bundle against its recorded manifest.

use std::path::{Path, PathBuf};

use checkvalve_host::disk::{Disk, OsDisk, read_all};
use checkvalve_host::exit::Exit;
use checkvalve_host::log::escape_path;
use checkvalve_host::progress::human_bytes;
use checkvalve_protocol::admit::Trust;
use checkvalve_protocol::id::ChannelName;
use checkvalve_protocol::limits::MAX_MANIFEST_LEN;
use checkvalve_protocol::manifest::Announce;
use clap::Args as ClapArgs;
use serde_json::json;

use super::{CommandError, say, say_json};
use crate::config::{Config, load_trusted};
use crate::delivery::Which;
use crate::inbox::check::{Mismatch, check};
use crate::inbox::open_record;

#[derive(Debug, ClapArgs)]
pub(super) struct Args {
    /// The bundle: CHANNEL/SEQUENCE, its directory in the inbox, or what is in that.
    #[arg(value_name = "BUNDLE")]
    path: PathBuf,
}

pub(super) fn verify(args: &Args, config: &Path, json: bool) -> Result<(), CommandError> {
    let config = Config::peek(config)?;
    let (channel, sequence) = place(&config, &args.path)?;
    let (announce, files) = manifest(&config, &channel, sequence)?;
    let dir = config.inbox.join(channel.as_str()).join(format!("{sequence:08}"));
    check(&OsDisk, &dir, &announce, &files).map_err(|error| {
        let exit = match &error {
            Mismatch::Disk { error, .. } => Exit::from_io(error),
            _ => Exit::DataErr,
        };
        CommandError::new(exit, error.to_string())
    })?;
    let bytes = announce.data_len();
    if json {
        return say_json(&json!({
            "channel": channel, "sequence": sequence, "id": announce.bundle, "files": files.len(), "bytes": bytes,
        }));
    }
    say(format_args!(
        "{channel}/{sequence} is as signed: {} entries, {} files, {}",
        announce.entries.len(),
        files.len(),
        human_bytes(bytes)
    ));
    Ok(())
}

/// Which bundle is named, by its number or by a path in the inbox.
fn place(config: &Config, path: &Path) -> Result<(ChannelName, u64), CommandError> {
    if let Some(Ok(Which::Sequence(channel, sequence))) = path.to_str().map(str::parse)
        && !path.exists()
    {
        return Ok((channel, sequence));
    }
    let shown = escape_path(path);
    let full = std::path::absolute(path).map_err(|error| CommandError::io(&shown, &error))?;
    // The bundle itself may be a symbolic link; only what it is in is resolved.
    let inbox = config.inbox.canonicalize().map_err(|error| CommandError::io(escape_path(&config.inbox), &error))?;
    let candidates = [full.canonicalize().unwrap_or_else(|_| full.clone()), full];
    let inside = candidates.iter().find_map(|p| p.strip_prefix(&inbox).or_else(|_| p.strip_prefix(&config.inbox)).ok());
    let outside = || {
        let text = format!("{shown}: not in the inbox; write CHANNEL/SEQUENCE, or a path that is in the inbox");
        CommandError::new(Exit::NoInput, text)
    };
    let mut parts = inside.ok_or_else(outside)?.components().map(|part| part.as_os_str().to_str());
    let channel = parts.next().flatten().and_then(|name| ChannelName::new(name).ok()).ok_or_else(outside)?;
    let sequence = parts.next().flatten().and_then(|number| number.parse().ok()).ok_or_else(outside)?;
    Ok((channel, sequence))
}

fn manifest(config: &Config, channel: &ChannelName, sequence: u64) -> Result<(Announce, Vec<[u8; 32]>), CommandError> {
    let dir = config.state.join("manifests").join(channel.as_str());
    let prefix = format!("{sequence:08}-");
    let names = match OsDisk.read_dir(&dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(CommandError::io(escape_path(&dir), &error));
        }
        names => names.unwrap_or_default(),
    };
    let of_bundle = names.iter().filter_map(|name| name.to_str()).filter(|name| name.starts_with(&prefix));
    let bases: Vec<&str> = of_bundle.filter_map(|name| name.strip_suffix(".announce")).collect();
    let trust = Trust { keys: load_trusted(&config.keys.trusted)?, signers: config.signers() };
    let mut last = CommandError::new(
        Exit::NoInput,
        format!(
            "{channel}/{sequence}: no manifest of it is recorded; it was not published by this receiver, or is long ago"
        ),
    );
    // There are several if a bundle of that number was recorded and then not published.
    for base in bases {
        let read = |kind: &str| {
            let path = dir.join(format!("{base}.{kind}"));
            read_all(&OsDisk, &path, MAX_MANIFEST_LEN as u64)
                .map_err(|error| CommandError::io(escape_path(&path), &error))
        };
        let Some(bundle) = base.strip_prefix(&prefix).and_then(|id| id.parse().ok()) else { continue };
        match open_record(bundle, &read("announce")?, &read("hashes")?, &trust) {
            Ok(record) => return Ok(record),
            Err(error) => last = CommandError::new(Exit::DataErr, format!("{channel}/{sequence}: {error}")),
        }
    }
    Err(last)
}
