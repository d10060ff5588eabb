//! Config files: TOML into a struct, and every mistake as one line that names the key and says what to write instead.
//!
//! Structs say `#[serde(deny_unknown_fields)]`; values with units are those of [`crate::units`]. What no type can check
//! (a range, two keys that contradict each other) is checked after loading, with [`ConfigError::new`].

use std::fmt;
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Access, OFlags};
use serde::de::DeserializeOwned;

use crate::log::{escape, escape_path};

mod explain;
mod lanes;

pub use lanes::{Addresses, list};

/// Longest config file or key file in bytes.
const MAX_FILE: u64 = 1 << 20;

/// What is wrong with the configuration. Printed it is one line: `FILE: key ``link.rate``: PROBLEM; HINT`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    /// The key with all the tables that it is in, as in TOML (`channel.default.priority`); empty if it is about the whole file.
    pub key: String,
    /// The config file, where it is known.
    pub file: Option<PathBuf>,
    /// What is wrong.
    pub problem: String,
    /// What to do about it, beginning with the verb: `write "900 Mbit/s"`. May be empty.
    pub hint: String,
}

impl ConfigError {
    /// An error about `key`. `hint` begins with its verb.
    #[must_use]
    pub fn new(key: impl Into<String>, problem: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { key: key.into(), file: None, problem: problem.into(), hint: hint.into() }
    }

    /// The same, in this config file.
    #[must_use]
    pub fn in_file(mut self, file: &Path) -> Self {
        self.file = Some(file.to_owned());
        self
    }
}

impl std::error::Error for ConfigError {}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(file) = &self.file {
            write!(f, "{}: ", escape_path(file))?;
        }
        if !self.key.is_empty() {
            write!(f, "key `{}`: ", escape(&self.key))?;
        }
        f.write_str(&escape(&self.problem))?;
        if self.hint.is_empty() { Ok(()) } else { write!(f, "; {}", escape(&self.hint)) }
    }
}

/// Reads a config file.
///
/// Errors: the file cannot be read or is over 1 MiB; its group or others may write to it (they would decide what is
/// trusted); it is not TOML; a key is unknown, missing or of the wrong type; a value is refused by its type.
pub fn load<T: DeserializeOwned>(path: &Path) -> Result<T, ConfigError> {
    let error = |(problem, hint): Told| ConfigError::new("", problem, hint).in_file(path);
    let file = open_regular(path).map_err(error)?;
    let meta = file.metadata().map_err(|e| error((plain(&e), "")))?;
    unwritable("", "it", &escape_path(path), &meta).map_err(|e| e.in_file(path))?;
    parse(&read_open(file, path).map_err(error)?).map_err(|error| error.in_file(path))
}

/// Reads the text of a config file. Errors: as [`load`], without the file's name.
pub fn parse<T: DeserializeOwned>(text: &str) -> Result<T, ConfigError> {
    let document = toml::Deserializer::parse(text).map_err(|error| explain::syntax(text, &error))?;
    serde_path_to_error::deserialize(document).map_err(|error| explain::value(&error))
}

/// Checks that the directory that `key` names exists and that its path is absolute.
pub fn existing_dir(key: &str, path: &Path) -> Result<(), ConfigError> {
    let shown = escape_path(path);
    if !path.is_absolute() {
        return Err(ConfigError::new(key, format!("`{shown}` is not absolute"), "write a path that begins with `/`"));
    }
    match std::fs::metadata(path) {
        Ok(meta) if meta.is_dir() => Ok(()),
        Ok(_) => Err(ConfigError::new(key, format!("`{shown}` is not a directory"), "write the path of a directory")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let hint = format!("create it (`mkdir -p {shown}`) or write the path of a directory that exists");
            Err(ConfigError::new(key, format!("directory `{shown}` does not exist"), hint))
        }
        Err(error) => Err(ConfigError::new(key, format!("`{shown}`: {}", plain(&error)), "let this user reach it")),
    }
}

/// As [`existing_dir`], and checks that this process may create files in it.
pub fn writable_dir(key: &str, path: &Path) -> Result<(), ConfigError> {
    existing_dir(key, path)?;
    rustix::fs::access(path, Access::WRITE_OK | Access::EXEC_OK).map_err(|error| {
        let uid = rustix::process::geteuid().as_raw();
        let problem = format!("`{}` cannot be written to: {}", escape_path(path), plain(&error.into()));
        ConfigError::new(key, problem, format!("give it to the user that this runs as (uid {uid})"))
    })
}

/// Reads the text of the secret that `key` names: a regular file that belongs to this user or root and that nobody else
/// may read or write. Symbolic links to such a file are followed.
pub fn key_file(key: &str, path: &Path) -> Result<String, ConfigError> {
    read_checked(key, path, |meta| {
        let (shown, mode) = (escape_path(path), meta.mode() & 0o7777);
        let ours = rustix::process::geteuid().as_raw();
        if meta.uid() != ours && meta.uid() != 0 {
            let problem = format!("`{shown}` belongs to another user (uid {})", meta.uid());
            let hint = match ours {
                // Taking a daemon's key from it would keep it from starting.
                0 => "run this command as that user, with `runuser -u USER -- COMMAND`".to_owned(),
                _ => format!("run `chown {ours} {shown}`"),
            };
            return Err(ConfigError::new(key, problem, hint));
        }
        if mode & 0o077 != 0 {
            let problem = format!("others may read or write `{shown}` (its mode is {mode:04o})");
            return Err(ConfigError::new(key, problem, format!("run `chmod 600 {shown}`")));
        }
        Ok(())
    })
}

/// Reads the text of the file that `key` names, which is no secret: a regular file that nobody but its owner and
/// group may write to.
pub fn public_file(key: &str, path: &Path) -> Result<String, ConfigError> {
    read_checked(key, path, |meta| {
        if meta.mode() & 0o002 == 0 {
            return Ok(());
        }
        let shown = escape_path(path);
        let problem = format!("anyone may write to `{shown}` (its mode is {:04o})", meta.mode() & 0o7777);
        Err(ConfigError::new(key, problem, format!("run `chmod o-w {shown}`")))
    })
}

/// Checks that nobody but this user or root could have changed what `key` names: it belongs to one of them, and neither group nor
/// others may write to it. Whoever can write to a hook or to the directory of trusted keys decides what is installed.
pub fn guarded(key: &str, path: &Path) -> Result<(), ConfigError> {
    let shown = escape_path(path);
    let meta = std::fs::metadata(path)
        .map_err(|error| ConfigError::new(key, format!("`{shown}`: {}", plain(&error)), "let this user reach it"))?;
    let ours = rustix::process::geteuid().as_raw();
    if meta.uid() != ours && meta.uid() != 0 {
        let problem = format!("`{shown}` belongs to another user (uid {})", meta.uid());
        return Err(ConfigError::new(key, problem, format!("run `chown root {shown}`")));
    }
    unwritable(key, &format!("`{shown}`"), &shown, &meta)
}

fn unwritable(key: &str, what: &str, shown: &str, meta: &std::fs::Metadata) -> Result<(), ConfigError> {
    let mode = meta.mode() & 0o7777;
    if mode & 0o022 == 0 {
        return Ok(());
    }
    let problem = format!("others may write to {what} (its mode is {mode:04o})");
    Err(ConfigError::new(key, problem, format!("run `chmod go-w {shown}`")))
}

fn read_checked(
    key: &str,
    path: &Path,
    check: impl FnOnce(&std::fs::Metadata) -> Result<(), ConfigError>,
) -> Result<String, ConfigError> {
    let error = |(problem, hint): (String, &str)| ConfigError::new(key, problem, hint);
    let file = open_regular(path).map_err(error)?;
    check(&file.metadata().map_err(|e| error((plain(&e), "")))?)?;
    read_open(file, path).map_err(error)
}

type Told = (String, &'static str);

/// Opens a regular file without blocking. Opening a FIFO would otherwise wait for the process at its other end.
fn open_regular(path: &Path) -> Result<std::fs::File, Told> {
    let shown = escape_path(path);
    let flags = i32::try_from(OFlags::NONBLOCK.bits()).unwrap_or(0);
    let told = |error: &io::Error| match error.kind() {
        io::ErrorKind::NotFound => (format!("file `{shown}` does not exist"), "write the path of a file that does"),
        io::ErrorKind::PermissionDenied => (format!("this user may not read `{shown}`"), "change its owner or mode"),
        _ => (format!("`{shown}` cannot be read: {}", plain(error)), ""),
    };
    let file = std::fs::OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(|e| told(&e))?;
    if file.metadata().map_err(|e| told(&e))?.is_file() {
        Ok(file)
    } else {
        Err((format!("`{shown}` is not a regular file"), "write the path of a file"))
    }
}

fn read_open(file: std::fs::File, path: &Path) -> Result<String, Told> {
    let shown = escape_path(path);
    let mut bytes = Vec::new();
    let read = file.take(MAX_FILE + 1).read_to_end(&mut bytes);
    read.map_err(|e| (format!("`{shown}` cannot be read: {}", plain(&e)), ""))?;
    if bytes.len() as u64 > MAX_FILE {
        return Err((format!("`{shown}` is longer than 1 MiB"), "write the path of another file"));
    }
    String::from_utf8(bytes).map_err(|_| (format!("`{shown}` is not text in UTF-8"), "save it as UTF-8"))
}

/// An I/O error without its `(os error 13)`.
fn plain(error: &io::Error) -> String {
    let text = error.to_string();
    let end = text.find(" (os error").unwrap_or(text.len());
    text[..end].to_lowercase()
}

#[cfg(test)]
mod tests;
