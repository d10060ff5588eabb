//! `trust`: whose bundles are accepted.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use checkvalve_host::control::ControlError;
use checkvalve_host::disk::{OsDisk, write_atomic};
use checkvalve_host::exit::Exit;
use checkvalve_host::log::{escape, escape_path};
use checkvalve_protocol::crypto::PublicKey;
use clap::Subcommand;
use serde_json::json;

use super::{CommandError, ask, say, say_json};
use crate::config::{Config, load_trusted, trusted_files};
use crate::control::Request;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Accept the bundles that a key signs from now on.
    ///
    /// Copies FILE into the directory that `keys.trusted` names; a running daemon takes it up at once. Compare the key's id with
    /// what the sender's operator reads from `checkvalve-sender check-config`. To end the trust, remove the file from that
    /// directory and restart the daemon.
    Add {
        /// The public half of a signing key, as `checkvalve-sender keygen signing` made it.
        #[arg(value_name = "FILE.pub")]
        file: PathBuf,
        /// What to call it in status, logs and audit trail. Default: the comment in the file, or the file's name.
        #[arg(long)]
        name: Option<String>,
    },
    /// List the keys whose bundles are accepted.
    List,
}

pub(super) fn trust(command: &Command, config: &Path, json: bool) -> Result<(), CommandError> {
    let config = Config::peek(config)?;
    match command {
        Command::Add { file, name } => add(&config, file, name.as_deref(), json),
        Command::List => list(&config, json),
    }
}

fn add(config: &Config, file: &Path, name: Option<&str>, json: bool) -> Result<(), CommandError> {
    let shown = escape_path(file);
    let text = std::fs::read_to_string(file).map_err(|error| CommandError::io(&shown, &error))?;
    let (key, comment) =
        PublicKey::from_text(&text).map_err(|error| CommandError::new(Exit::DataErr, format!("{shown}: {error}")))?;
    let stem = file.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    let name = name.map(str::to_owned).unwrap_or(if comment.is_empty() { stem } else { comment });
    let dir = &config.keys.trusted;
    let known = load_trusted(dir)?;
    if let Some((_, known)) = known.get(&key.id()) {
        return Err(CommandError::new(
            Exit::CantCreat,
            format!("{shown}: key {} is trusted already, as {known}", key.id()),
        ));
    }
    let path = free_name(dir, file, &key);
    write_atomic(&OsDisk, &path, key.to_text(&name).as_bytes(), 0o644)
        .map_err(|error| CommandError::io(escape_path(&path), &error))?;
    let running = match ask::<usize>(config, &Request::Trust) {
        Ok(_) => true,
        Err(CommandError::Control(ControlError::NotRunning { .. })) => false,
        Err(error) => return Err(error),
    };
    if json {
        return say_json(&json!({ "key": key.id(), "name": name, "file": path, "daemon": running }));
    }
    let when = if running { "from now on" } else { "when the daemon is started" };
    say(format_args!("{} ({}) is trusted {when}", key.id(), escape(&name)));
    Ok(())
}

/// The file's own name where that is free and would be looked at, else one after the key.
fn free_name(dir: &Path, file: &Path, key: &PublicKey) -> PathBuf {
    let own = file.file_name().filter(|_| file.extension() == Some(OsStr::new("pub"))).map(|name| dir.join(name));
    own.filter(|path| path.symlink_metadata().is_err()).unwrap_or_else(|| dir.join(format!("{}.pub", key.id())))
}

fn list(config: &Config, json: bool) -> Result<(), CommandError> {
    let files = trusted_files(&config.keys.trusted)?;
    if json {
        let keys = files.iter().map(|f| json!({ "key": f.key.id(), "name": f.name, "file": f.path }));
        return say_json(&keys.collect::<Vec<_>>());
    }
    for file in &files {
        let shown = file.path.file_name().map(|name| escape_path(name.as_ref())).unwrap_or_default();
        say(format_args!("{}  {shown}  {}", file.key.id(), escape(&file.name)));
    }
    if files.is_empty() {
        say("no key is trusted: every bundle will be quarantined; `trust add FILE.pub` adds one");
    }
    Ok(())
}
