//! `send`: into the spool, as a program should do it.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use checkvalve_host::disk::{Disk, OsDisk};
use checkvalve_host::exit::Exit;
use checkvalve_host::json::hex_unless_utf8;
use checkvalve_host::log::escape_path;
use checkvalve_protocol::id::ChannelName;
use clap::Args as ClapArgs;
use serde::Serialize;

use super::{CommandError, copy, say, say_json, wait};
use crate::config::Config;
use crate::spool::is_ignored;

#[derive(Debug, ClapArgs)]
pub(super) struct Args {
    /// Files and directories; each becomes a bundle of its own.
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// The channel.
    #[arg(long, value_name = "NAME", default_value = "default", value_parser = parse_channel)]
    channel: ChannelName,
    /// Call the bundle NAME instead of as PATH is called. Only with one PATH.
    #[arg(long, value_name = "NAME")]
    name: Option<OsString>,
    /// Make hard links instead of copies. Faster, but the files must not be written to until they were transmitted, or the bundle
    /// fails; PATH must be on the spool's file system.
    #[arg(long)]
    link: bool,
    /// Wait until each is transmitted (all its passes), with a progress bar. Says nothing about whether it arrived.
    #[arg(long)]
    wait: bool,
}

/// What `--json` says without `--wait`.
#[derive(Serialize)]
struct InSpool<'a> {
    channel: &'a ChannelName,
    name: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    name_hex: &'a Option<String>,
    inode: u64,
}

pub(super) fn send(args: &Args, config: &Path, json: bool) -> Result<(), CommandError> {
    let config = Config::peek(config)?;
    if args.name.is_some() && args.paths.len() > 1 {
        return Err(CommandError::new(Exit::Usage, "--name is for one PATH"));
    }
    let folder = folder(&config, &args.channel)?;
    // All are looked at before the first is sent.
    let named = args.paths.iter().map(|path| Ok((path, name(path, args.name.as_deref())?)));
    let named: Vec<_> = named.collect::<Result<_, CommandError>>()?;
    for (number, (path, name)) in named.iter().enumerate() {
        let temporary = folder.join(format!(".send-{}-{number}.tmp", std::process::id()));
        let dropped = drop_in(path, &folder, &temporary, name, args);
        let dropped = dropped.inspect_err(|_| drop(OsDisk.remove_tree(&temporary)))?;
        if args.wait {
            wait::until_transmitted(&config, &dropped, json)?;
        } else if json {
            let wait::Dropped { channel, name, name_hex, inode, .. } = &dropped;
            say_json(&InSpool { channel, name, name_hex, inode: *inode })?;
        } else {
            say(format_args!("{} is in the spool of channel {}", dropped.name, dropped.channel));
        }
    }
    Ok(())
}

fn folder(config: &Config, channel: &ChannelName) -> Result<PathBuf, CommandError> {
    super::known_channel(config, channel)?;
    let folder = config.spool.join(channel.as_str());
    match std::fs::metadata(&folder) {
        Ok(meta) if meta.is_dir() => return Ok(folder),
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            let text = format!(
                "{}: this user may not drop bundles: join the group of {} (`usermod -aG GROUP USER`, from the next login on)",
                escape_path(&folder),
                escape_path(&config.spool)
            );
            return Err(CommandError::new(Exit::NoPerm, text));
        }
        _ => {}
    }
    let text = format!("{} is not there yet: start the daemon once, which makes it", escape_path(&folder));
    Err(CommandError::new(Exit::Unavailable, text))
}

fn name(path: &Path, given: Option<&OsStr>) -> Result<OsString, CommandError> {
    let name = match given {
        Some(name) => name.to_owned(),
        None => match path.file_name() {
            Some(name) => name.to_owned(),
            // `.`, `..`, `a/..`
            None => {
                let real = path.canonicalize().map_err(|e| CommandError::io(escape_path(path), &e))?;
                let name = real.file_name().map(OsStr::to_owned);
                name.ok_or_else(|| CommandError::new(Exit::Usage, format!("{} has no name", escape_path(path))))?
            }
        },
    };
    if name.is_empty() || name.as_bytes().contains(&b'/') {
        let text = format!("\"{}\" is not a name", escape_path(name.as_ref()));
        return Err(CommandError::new(Exit::Usage, text));
    }
    if is_ignored(&name) {
        let shown = escape_path(name.as_ref());
        let text = format!("the spool leaves \"{shown}\" alone (.*, *.part, *.tmp); give it another name with --name");
        return Err(CommandError::new(Exit::Usage, text));
    }
    Ok(name)
}

fn drop_in(
    path: &Path,
    folder: &Path,
    temporary: &Path,
    name: &OsStr,
    args: &Args,
) -> Result<wait::Dropped, CommandError> {
    copy::tree(path, temporary, args.link).map_err(|(at, error)| CommandError::io(escape_path(&at), &error))?;
    let inode = std::fs::symlink_metadata(temporary).map_err(|e| CommandError::io(escape_path(temporary), &e))?.ino();
    // The daemon's clock is this host's; a little is allowed for its being set.
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let since_ms = u64::try_from(now.as_millis()).unwrap_or(0).saturating_sub(1_000);
    OsDisk.rename_noreplace(temporary, &folder.join(name)).map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => {
            let text = format!("{} is in the spool already and was not claimed yet", escape_path(name.as_ref()));
            CommandError::new(Exit::TempFail, text)
        }
        _ => CommandError::io(escape_path(folder), &error),
    })?;
    Ok(wait::Dropped {
        channel: args.channel.clone(),
        name: escape_path(name.as_ref()),
        name_hex: hex_unless_utf8(name.as_bytes()),
        inode,
        since_ms,
    })
}

fn parse_channel(text: &str) -> Result<ChannelName, String> {
    ChannelName::new(text).map_err(|error| error.to_string())
}
