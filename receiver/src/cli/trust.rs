//! `trust`: whose bundles are accepted.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use checkvalve_host::control::ControlError;
use checkvalve_host::disk::{Disk, OsDisk, write_atomic};
use checkvalve_host::exit::Exit;
use checkvalve_host::log::{escape, escape_path};
use checkvalve_protocol::crypto::PublicKey;
use checkvalve_protocol::id::KeyId;
use clap::Subcommand;
use serde_json::json;

use super::{CommandError, ask, say, say_json};
use crate::config::{Config, load_trusted, trusted_files};
use crate::control::{DaemonStatus, Request};
use crate::delivery::Judged;

#[derive(Debug, Subcommand)]
pub(super) enum TrustCommand {
    /// Accept the bundles that a key signs from now on.
    ///
    /// Copies FILE into the directory that `keys.trusted` names; a running daemon takes it up before this returns, and judges again what
    /// it refused for want of that key. Compare the key's id with what the sender's operator reads from
    /// `checkvalve-sender check-config`.
    Add {
        /// The public half of a signing key, as `checkvalve-sender keygen signing` made it.
        #[arg(value_name = "FILE.pub")]
        file: PathBuf,
        /// What to call it in status, logs and audit trail. Default: the comment in the file, or the file's name.
        #[arg(long)]
        name: Option<String>,
    },
    /// Accept the bundles of a key no more, from now on.
    ///
    /// Removes its file from the directory that `keys.trusted` names. A running daemon puts every bundle of that key into quarantine that
    /// is under way or waits for its hook, before this returns; what is installed stays.
    Remove {
        /// The key's id, as `trust list` shows it.
        key: KeyId,
    },
    /// List the keys whose bundles are accepted: those of the directory, and of the running daemon where these differ.
    List,
}

pub(super) fn trust(command: &TrustCommand, config: &Path, json: bool) -> Result<(), CommandError> {
    let config = Config::peek(config)?;
    match command {
        TrustCommand::Add { file, name } => add(&config, file, name.as_deref(), json),
        TrustCommand::Remove { key } => remove(&config, *key, json),
        TrustCommand::List => list(&config, json),
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
    let id = key.id();
    if let Some((_, known)) = known.get(&id) {
        return Err(CommandError::new(Exit::CantCreat, format!("{shown}: key {id} is trusted already, as {known}")));
    }
    if let Some(other) = known.by_tag(id.tag()) {
        let problem = format!("{shown}: key {id} begins as key {other} does, which is trusted: make another key");
        return Err(CommandError::new(Exit::CantCreat, problem));
    }
    let path = free_name(dir, file, &key);
    write_atomic(&OsDisk, &path, key.to_text(&name).as_bytes(), 0o644)
        .map_err(|error| CommandError::io(escape_path(&path), &error))?;
    let judged = reload(config)?;
    if json {
        let file = escape_path(&path);
        return say_json(&json!({ "key": id, "name": name, "file": file, "daemon": judged }));
    }
    let when = if judged.is_some() { "from now on" } else { "when the daemon is started" };
    say(format_args!("{id} ({}) is trusted {when}", escape(&name)));
    say_judged(judged.as_ref());
    Ok(())
}

fn remove(config: &Config, key: KeyId, json: bool) -> Result<(), CommandError> {
    let files: Vec<_> = trusted_files(&config.keys.trusted)?.into_iter().filter(|file| file.key.id() == key).collect();
    if files.is_empty() {
        return Err(CommandError::new(
            Exit::NoInput,
            format!("key {key} is not trusted; `trust list` shows those that are"),
        ));
    }
    for file in &files {
        OsDisk.remove_file(&file.path).map_err(|error| CommandError::io(escape_path(&file.path), &error))?;
    }
    OsDisk
        .sync_dir(&config.keys.trusted)
        .map_err(|error| CommandError::io(escape_path(&config.keys.trusted), &error))?;
    let judged = reload(config)?;
    if json {
        return say_json(&json!({ "key": key, "daemon": judged }));
    }
    let when = if judged.is_some() { "from now on" } else { "when the daemon is started" };
    say(format_args!("{key} is no longer trusted, {when}"));
    say_judged(judged.as_ref());
    if load_trusted(&config.keys.trusted)?.is_empty() {
        say("no key is trusted now: nothing counts until `checkvalve-receiver trust add FILE.pub`");
    }
    Ok(())
}

/// Has a running daemon read the keys again. None: none runs.
fn reload(config: &Config) -> Result<Option<Judged>, CommandError> {
    match ask::<Judged>(config, &Request::Trust) {
        Ok(judged) => Ok(Some(judged)),
        Err(CommandError::Control(ControlError::NotRunning { .. })) => Ok(None),
        Err(error) => Err(error),
    }
}

fn say_judged(judged: Option<&Judged>) {
    let Some(judged) = judged else { return };
    let lines = [("refused now, since their key does not count", &judged.refused), ("accepted now", &judged.admitted)];
    for (what, bundles) in lines.into_iter().filter(|(_, bundles)| !bundles.is_empty()) {
        say(format_args!("{what}: {}", bundles.join(", ")));
    }
    if !judged.admitted.is_empty() {
        say(
            "what is lacking of them comes by itself if the sender sends it again, or by `checkvalve-receiver ticket --all`",
        );
    }
    if !judged.running.is_empty() {
        say(format_args!("its hook is running, and is not stopped: {}", judged.running.join(", ")));
    }
}

/// The file's own name where that is free and would be looked at, else one after the key.
fn free_name(dir: &Path, file: &Path, key: &PublicKey) -> PathBuf {
    let own = file.file_name().filter(|_| file.extension() == Some(OsStr::new("pub"))).map(|name| dir.join(name));
    own.filter(|path| path.symlink_metadata().is_err()).unwrap_or_else(|| dir.join(format!("{}.pub", key.id())))
}

fn list(config: &Config, json: bool) -> Result<(), CommandError> {
    let files = trusted_files(&config.keys.trusted)?;
    let daemon = match ask::<DaemonStatus>(config, &Request::DaemonStatus) {
        Ok(status) => Some(status.deliveries.trusted),
        Err(CommandError::Control(_)) => None,
        Err(error) => return Err(error),
    };
    let by_daemon = |key: KeyId| daemon.as_ref().map(|keys| keys.iter().any(|trusted| trusted.key == key));
    let only_daemon: Vec<_> = daemon.iter().flatten().filter(|t| !files.iter().any(|f| f.key.id() == t.key)).collect();
    if json {
        let mut keys: Vec<_> = files
            .iter()
            .map(|f| json!({ "key": f.key.id(), "name": f.name, "file": escape_path(&f.path), "daemon": by_daemon(f.key.id()) }))
            .collect();
        keys.extend(only_daemon.iter().map(|t| json!({ "key": t.key, "name": t.name, "file": null, "daemon": true })));
        return say_json(&json!({ "keys": keys }));
    }
    for file in &files {
        let shown = file.path.file_name().map(|name| escape_path(name.as_ref())).unwrap_or_default();
        let note = if by_daemon(file.key.id()) == Some(false) { "  ! not by the running daemon" } else { "" };
        say(format_args!("{}  {shown}  {}{note}", file.key.id(), escape(&file.name)));
    }
    for trusted in &only_daemon {
        say(format_args!("{}  -  {}  ! by the running daemon only", trusted.key, escape(&trusted.name)));
    }
    let differ = !only_daemon.is_empty() || files.iter().any(|file| by_daemon(file.key.id()) == Some(false));
    if differ {
        say("`systemctl reload checkvalve-receiver` has the daemon read the directory again");
    }
    if files.is_empty() {
        say("no key is trusted, so that nothing counts; `trust add FILE.pub` adds one");
    }
    Ok(())
}
