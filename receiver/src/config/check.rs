//! What no type can check: ranges, contradictions, files and directories.

use std::ffi::OsStr;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use checkvalve_host::config::{ConfigError, existing_dir, guarded, key_file, public_file, writable_dir};
use checkvalve_host::log::escape_path;
use checkvalve_protocol::crypto::{LinkKey, PublicKey, TrustStore};
use checkvalve_protocol::limits::{MAX_CHANNELS, MAX_MTU, MIN_MTU};

use super::{Checked, Config, Hook};

const MOST_WORKERS: usize = 64;
const LEAST_MEMORY: u64 = 32 << 20;
const LEAST_BUFFER: u64 = 64 << 10;

pub(super) fn check(config: Config) -> Result<Checked, ConfigError> {
    let listen = listen(&config)?;
    numbers(&config)?;
    directories(&config)?;
    for (name, channel) in &config.channels {
        if let Some(hook) = &channel.hook {
            check_hook(&format!("channel.{name}.hook"), hook)?;
        }
        if channel.signers.as_ref().is_some_and(Vec::is_empty) {
            let hint = "write the ids of the keys that may sign for it, or remove it: then every trusted key may";
            return Err(ConfigError::new(
                format!("channel.{name}.signers"),
                "nobody could sign for this channel",
                hint,
            ));
        }
    }
    let link_key = link_key(&config)?;
    let trusted = load_trusted(&config.keys.trusted)?;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let workers = config.workers.unwrap_or_else(|| cores.saturating_sub(listen.len()).max(1));
    Ok(Checked {
        staging: staging(&config),
        block_memory: config.memory.bytes() / 3 * 2,
        workers,
        listen,
        link_key,
        trusted,
        config,
    })
}

/// A public key in the directory of trusted ones.
#[derive(Debug, Clone)]
pub struct TrustedFile {
    /// The key.
    pub key: PublicKey,
    /// What it is called: the comment in the file, or the file's name where there is none.
    pub name: String,
    /// The file.
    pub path: PathBuf,
}

/// The public keys of a directory's `*.pub` files. Errors: [`ConfigError`] of `keys.trusted`.
pub fn load_trusted(dir: &Path) -> Result<TrustStore, ConfigError> {
    let mut trusted = TrustStore::new();
    for file in trusted_files(dir)? {
        let id = file.key.id();
        let same = trusted.by_tag(id.tag()).filter(|other| *other != id);
        if let Some(other) = same {
            let problem = format!(
                "`{}`: key {id} begins as key {other} does, so that bundles do not tell them apart",
                escape_path(&file.path)
            );
            return Err(ConfigError::new("keys.trusted", problem, "trust one of them, and make the other anew"));
        }
        trusted.insert(file.key, file.name);
    }
    Ok(trusted)
}

/// The same with the files they are in, by name. Errors: as [`load_trusted`].
pub fn trusted_files(dir: &Path) -> Result<Vec<TrustedFile>, ConfigError> {
    const KEY: &str = "keys.trusted";
    existing_dir(KEY, dir)?;
    guarded(KEY, dir)?;
    let list = || -> std::io::Result<Vec<PathBuf>> {
        let mut paths: Vec<PathBuf> =
            std::fs::read_dir(dir)?.map(|entry| entry.map(|e| e.path())).collect::<Result<_, _>>()?;
        paths.retain(|path| path.extension() == Some(OsStr::new("pub")));
        paths.sort();
        Ok(paths)
    };
    let paths = list().map_err(|error| {
        ConfigError::new(KEY, format!("`{}`: {error}", escape_path(dir)), "let this user read the directory")
    })?;
    let read = |path: PathBuf| {
        guarded(KEY, &path)?;
        let text = public_file(KEY, &path)?;
        let (key, comment) = PublicKey::from_text(&text).map_err(|error| {
            let hint = "put only files there that `checkvalve-sender keygen signing` made (`.pub`)";
            ConfigError::new(KEY, format!("`{}`: {error}", escape_path(&path)), hint)
        })?;
        let stem = || path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
        let name = if comment.is_empty() { stem() } else { comment };
        Ok(TrustedFile { key, name, path })
    };
    paths.into_iter().map(read).collect()
}

fn listen(config: &Config) -> Result<Vec<SocketAddr>, ConfigError> {
    let hint = "write this host's address on the link and a port, for example \"10.0.0.2:7700\"";
    let unusable = |address: &SocketAddr| (address.port() == 0).then(|| format!("`{address}` has no port"));
    config.link.listen.lanes(config.link.lanes, "link.listen", hint, unusable)
}

fn numbers(config: &Config) -> Result<(), ConfigError> {
    let mtu = config.link.mtu;
    if !(MIN_MTU..=MAX_MTU).contains(&mtu) {
        let problem = format!("{mtu} is too {}", if mtu < MIN_MTU { "small" } else { "large" });
        let hint = format!("write the link's MTU in bytes, {MIN_MTU} to {MAX_MTU}, for example 1500");
        return Err(ConfigError::new("link.mtu", problem, hint));
    }
    if config.memory.bytes() < LEAST_MEMORY {
        let problem = format!("\"{}\" is too little", config.memory);
        return Err(ConfigError::new("memory", problem, "write at least \"32 MiB\", for example \"192 MiB\""));
    }
    let buffer = config.link.receive_buffer;
    if !(LEAST_BUFFER..=i32::MAX as u64).contains(&buffer.bytes()) {
        let hint = "write \"64 KiB\" to \"1 GiB\", for example \"32 MiB\"";
        return Err(ConfigError::new("link.receive_buffer", format!("\"{buffer}\" cannot be"), hint));
    }
    if config.silence.millis() < 2_000 {
        let hint = "write at least \"2 s\", for example \"30 s\"";
        return Err(ConfigError::new("silence", format!("\"{}\" is too short", config.silence), hint));
    }
    if let Some(workers) = config.workers.filter(|workers| !(1..=MOST_WORKERS).contains(workers)) {
        let hint = format!("write a number from 1 to {MOST_WORKERS}, or remove it");
        return Err(ConfigError::new("workers", format!("there cannot be {workers}"), hint));
    }
    if let Some(quota) = config.quota.filter(|quota| quota.bytes() == 0) {
        let hint = "write a size, for example \"100 GiB\", or remove it";
        return Err(ConfigError::new("quota", format!("with \"{quota}\" nothing can be received"), hint));
    }
    let limits = &config.limits;
    let counts = [
        ("objects", limits.objects, 256),
        ("open_blocks", limits.open_blocks, 1_024),
        ("unannounced", limits.unannounced, 16),
        ("unannounced_bundles", limits.unannounced_bundles, 16),
        ("files", usize::try_from(limits.files).unwrap_or(usize::MAX), 1_024),
        ("signatures", limits.signatures as usize, 10),
    ];
    if let Some((key, value, least)) = counts.into_iter().find(|(_, value, least)| value < least) {
        let hint = format!("write at least {least}, or remove it");
        return Err(ConfigError::new(format!("limits.{key}"), format!("{value} is too few"), hint));
    }
    if config.channels.len() > MAX_CHANNELS {
        let problem = format!("there are {} channels", config.channels.len());
        return Err(ConfigError::new("channel", problem, format!("write at most {MAX_CHANNELS}")));
    }
    Ok(())
}

fn directories(config: &Config) -> Result<(), ConfigError> {
    let dirs = [("inbox", &config.inbox), ("quarantine", &config.quarantine), ("state", &config.state)];
    for (key, path) in dirs {
        writable_dir(key, path)?;
    }
    for (n, (key, path)) in dirs.iter().enumerate() {
        for (other, other_path) in dirs.iter().take(n) {
            if let (Ok(path), Ok(other_path)) = (path.canonicalize(), other_path.canonicalize())
                && (path.starts_with(&other_path) || other_path.starts_with(&path))
            {
                let problem = format!("`{key}` and `{other}` may not contain each other");
                return Err(ConfigError::new(*key, problem, "write the path of a directory of its own"));
            }
        }
    }
    match config.control.parent() {
        Some(parent) if parent != Path::new("") => existing_dir("control", parent),
        _ => Err(ConfigError::new("control", "this is no path of a socket", "write a path that begins with `/`")),
    }
}

fn check_hook(key: &str, hook: &Hook) -> Result<(), ConfigError> {
    let error = |name: &str, problem: String, hint: &str| Err(ConfigError::new(format!("{key}.{name}"), problem, hint));
    let (path, shown) = (&hook.install, escape_path(&hook.install));
    if !path.is_absolute() {
        return error("install", format!("`{shown}` is not absolute"), "write a path that begins with `/`");
    }
    match std::fs::metadata(path) {
        Err(problem) => return error("install", format!("`{shown}`: {problem}"), "write the path of a program"),
        Ok(meta) if !meta.is_file() => {
            return error("install", format!("`{shown}` is not a file"), "write the path of a program");
        }
        Ok(meta) if meta.permissions().mode() & 0o111 == 0 => {
            return error("install", format!("`{shown}` is not executable"), &format!("run `chmod +x {shown}`"));
        }
        Ok(_) => guarded(&format!("{key}.install"), &hook.install)?,
    }
    if hook.timeout.millis() == 0 {
        return error(
            "timeout",
            format!("\"{}\" leaves it no time", hook.timeout),
            "write a time, for example \"1 h\"",
        );
    }
    if hook.backoff.millis() == 0 {
        let hint = "write at least \"1 ms\", for example \"1 s\"";
        return error("backoff", format!("\"{}\" is no pause", hook.backoff), hint);
    }
    if hook.backoff_max < hook.backoff {
        let hint = format!("write at least `backoff`, \"{}\"", hook.backoff);
        return error("backoff_max", format!("\"{}\" is less than `backoff`", hook.backoff_max), &hint);
    }
    Ok(())
}

fn link_key(config: &Config) -> Result<Option<LinkKey>, ConfigError> {
    match (&config.keys.link, config.link.insecure) {
        (Some(path), false) => {
            let text = key_file("keys.link", path)?;
            let hint = "write the path of a copy of the sender's link key (`checkvalve-sender keygen link` made it)";
            LinkKey::from_text(&text).map(Some).map_err(|error| ConfigError::new("keys.link", error.to_string(), hint))
        }
        (None, true) => Ok(None),
        (None, false) => {
            let hint = "write `link = \"/etc/checkvalve/link.key\"` in `[keys]`, a copy of the sender's";
            Err(ConfigError::new("keys.link", "it is missing", hint))
        }
        (Some(_), true) => {
            let problem = "it says to receive without a key, and `keys.link` is there";
            Err(ConfigError::new("link.insecure", problem, "write `insecure = false`, or remove `link` from `[keys]`"))
        }
    }
}

/// In the state directory where renaming from there to the inbox is possible, else in the inbox.
fn staging(config: &Config) -> PathBuf {
    if mount_of(&config.state) == mount_of(&config.inbox) {
        config.state.join("staging")
    } else {
        config.inbox.join(".staging")
    }
}

/// The file system that a directory is on, and the mount it is reached through: nothing can be renamed from one mount to
/// another of the same file system, and the sandboxes of service managers make a mount of each path that may be written to.
fn mount_of(path: &Path) -> Option<(u64, Option<String>)> {
    let opened = std::fs::File::open(path).ok()?;
    let device = opened.metadata().ok()?.dev();
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", opened.as_raw_fd())).ok();
    let mount =
        info.and_then(|info| Some(info.lines().find_map(|line| line.strip_prefix("mnt_id:"))?.trim().to_owned()));
    Some((device, mount))
}
