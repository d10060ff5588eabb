//! `verify`: a published bundle against its recorded manifest.

use std::ops::ControlFlow;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use checkvalve_host::disk::{Disk, OsDisk, read_all};
use checkvalve_host::exit::Exit;
use checkvalve_host::json::hex_unless_utf8;
use checkvalve_host::log::{escape, escape_path};
use checkvalve_host::progress::{counted, human_bytes};
use checkvalve_protocol::admit::Trust;
use checkvalve_protocol::id::ChannelName;
use checkvalve_protocol::limits::MAX_MANIFEST_LEN;
use checkvalve_protocol::manifest::Announce;
use clap::Args as ClapArgs;
use serde_json::json;

use super::{CommandError, say, say_json};
use crate::config::{Config, load_trusted};
use crate::delivery::Which;
use crate::inbox::check::{Mismatch, differences};
use crate::inbox::open_record;

/// Differences that are named one by one.
const SHOWN: usize = 100;

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
    if OsDisk.lstat(&dir).is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound) {
        let text = format!(
            "{channel}/{sequence}: {} is not there any more: it was published, and somebody removed it",
            escape_path(&dir)
        );
        return Err(CommandError::new(Exit::NoInput, text));
    }
    let (mut found, mut times, mut unreadable) = (Found::default(), Found::default(), Found::default());
    differences(&OsDisk, &dir, &announce, &files, &mut |mismatch| {
        let of = match mismatch {
            Mismatch::Disk { .. } => &mut unreadable,
            Mismatch::Time(_) => &mut times,
            _ => &mut found,
        };
        of.add(mismatch);
        ControlFlow::Continue(())
    });
    let (bytes, number) = (announce.data_len(), format!("{channel}/{sequence}"));
    let is_known = unreadable.total == 0;
    if json {
        say_json(&json!({
            "channel": channel, "sequence": sequence, "id": announce.bundle, "files": files.len(), "bytes": bytes,
            "as_signed": if is_known || found.total > 0 { Some(is_known && found.total == 0) } else { None },
            "differences": found.json(), "differences_total": found.total,
            "unreadable": unreadable.json(), "unreadable_total": unreadable.total, "times_not_held_total": times.total,
        }))?;
    } else {
        found.say();
        unreadable.say();
    }
    if found.total > 0 {
        return Err(CommandError::new(
            Exit::DataErr,
            format!(
                "{number} is not what was signed. It was when it was published, so it was changed here since. Find out by whom; then drop the \
                 bundle again on the low side: it comes under a new number"
            ),
        ));
    }
    if let Some(Mismatch::Disk { error, .. }) = unreadable.first.first() {
        let text = format!("{number} cannot be read, so that it is not known whether it is as signed");
        return Err(CommandError::new(Exit::from_io(error), text));
    }
    if !json {
        let but = match times.total {
            0 => String::new(),
            some => {
                format!(", but for {}, which this file system cannot hold exactly", counted(some, "modification time"))
            }
        };
        say(format_args!(
            "{number} is as signed: {}, {}, {}{but}",
            counted(announce.entries.len() as u64, "entry"),
            counted(files.len() as u64, "file"),
            human_bytes(bytes)
        ));
    }
    Ok(())
}

/// What was found: how much, and the first of it.
#[derive(Default)]
struct Found {
    first: Vec<Mismatch>,
    total: u64,
}

impl Found {
    fn add(&mut self, mismatch: Mismatch) {
        self.total += 1;
        if self.first.len() < SHOWN {
            self.first.push(mismatch);
        }
    }

    /// A line each, and how many more there are.
    fn say(&self) {
        self.first.iter().for_each(|mismatch| say(escape(&mismatch.to_string())));
        let more = self.total.saturating_sub(self.first.len() as u64);
        if more > 0 {
            say(format_args!("and {more} more"));
        }
    }

    fn json(&self) -> Vec<serde_json::Value> {
        self.first.iter().map(difference).collect()
    }
}

fn difference(found: &Mismatch) -> serde_json::Value {
    let path = found.path();
    let mut value = json!({ "path": escape_path(path), "what": found.what() });
    if let Some(hex) = hex_unless_utf8(path.as_os_str().as_bytes()) {
        value["path_hex"] = hex.into();
    }
    value
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
