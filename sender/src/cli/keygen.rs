//! `keygen`: key files.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use aws_lc_rs::rand::{SecureRandom, SystemRandom};
use checkvalve_host::exit::Exit;
use checkvalve_host::log::escape_path;
use checkvalve_protocol::crypto::{LinkKey, SigningKey};
use clap::Subcommand;
use serde_json::json;

use super::{CommandError, say, say_json};

#[derive(Debug, Subcommand)]
pub(super) enum KeyKind {
    /// The key that sender and receiver share: it seals every datagram. Both need the same file.
    Link {
        /// The file to write, mode 0600.
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
    },
    /// The key that signs bundles, and beside it FILE.pub, which the receiver has to trust (`checkvalve-receiver trust add`).
    Signing {
        /// The file to write, mode 0600; FILE.pub has mode 0644.
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
        /// What FILE.pub says of itself, for those who have to decide whether to trust it [default: the host's name].
        #[arg(long, value_name = "TEXT")]
        comment: Option<String>,
    },
}

pub(super) fn keygen(kind: &KeyKind, json: bool) -> Result<(), CommandError> {
    let mut seed = [0; 32];
    SystemRandom::new()
        .fill(&mut seed)
        .map_err(|_| CommandError::new(Exit::OsErr, "the system gives no random numbers"))?;
    match kind {
        KeyKind::Link { out } => {
            let key = LinkKey::from_bytes(seed);
            write_new(out, 0o600, &key.to_text())?;
            if json {
                return say_json(&json!({ "kind": "link", "key": escape_path(out), "id": key.id() }));
            }
            say(format_args!(
                "link key {} written to {}; the receiver needs the same file",
                key.id(),
                escape_path(out)
            ));
        }
        KeyKind::Signing { out, comment } => {
            let key = SigningKey::from_seed(seed);
            let mut public = out.clone().into_os_string();
            public.push(".pub");
            let public = PathBuf::from(public);
            let comment = comment.clone().unwrap_or_else(host_name);
            write_new(out, 0o600, &key.to_text())?;
            if let Err(error) = write_new(&public, 0o644, &key.public().to_text(&comment)) {
                // A secret key whose public half nobody has would only be in the way of the next try.
                drop(std::fs::remove_file(out));
                return Err(error);
            }
            let id = key.public().id();
            if json {
                return say_json(
                    &json!({ "kind": "signing", "key": escape_path(out), "public": escape_path(&public), "id": id }),
                );
            }
            say(format_args!(
                "signing key {id} written to {}; carry {} to the receiver (`checkvalve-receiver trust add`)",
                escape_path(out),
                escape_path(&public)
            ));
        }
    }
    Ok(())
}

/// Writes a file that must not be there yet, durably.
fn write_new(path: &Path, mode: u32, text: &str) -> Result<(), CommandError> {
    let failed = |error: &io::Error| {
        let text = match error.kind() {
            io::ErrorKind::AlreadyExists => "is there already and is not overwritten; write another name".to_owned(),
            io::ErrorKind::NotFound => "its directory does not exist".to_owned(),
            _ => error.to_string(),
        };
        CommandError::new(Exit::CantCreat, format!("{}: {text}", escape_path(path)))
    };
    let file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path);
    let mut file = file.map_err(|error| failed(&error))?;
    let parent = path.parent().filter(|parent| *parent != Path::new("")).unwrap_or(Path::new("."));
    let written = file
        .write_all(text.as_bytes())
        .and_then(|()| file.sync_all())
        .and_then(|()| std::fs::File::open(parent)?.sync_all());
    written.map_err(|error| {
        drop(std::fs::remove_file(path));
        failed(&error)
    })
}

fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}
