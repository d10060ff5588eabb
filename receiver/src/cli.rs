//! The command line.

mod check_config;
mod decide;
mod reject;
mod status;
mod ticket;
mod trust;
mod verify;

use std::io;
use std::path::PathBuf;

use checkvalve_host::config::ConfigError;
use checkvalve_host::control::{Client, ControlError};
use checkvalve_host::exit::Exit;
use checkvalve_host::log::{self, escape};
use checkvalve_host::say::{self, say};
use clap::{Parser, Subcommand};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::config::{Config, DEFAULT_PATH};
use crate::control::Request;

/// Receives bundles over a one-way link from a checkvalve-sender: rebuilds them, proves that they are exactly what a
/// trusted key signed, publishes each by one rename, and hands it to an install hook.
///
/// It never transmits anything on the link.
#[derive(Debug, Parser)]
#[command(name = "checkvalve-receiver", version, max_term_width = 100, after_help = AFTER)]
struct Cli {
    /// The config file.
    #[arg(long, global = true, value_name = "FILE", default_value = DEFAULT_PATH)]
    config: PathBuf,
    /// Print JSON instead of text.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

const AFTER: &str = "\
Exit codes are those of sysexits: 0 done, 64 wrong command line, 65 not as signed, 66 no such thing, 69 the daemon is not \
running, 73 cannot create a file, 75 try again later, 77 not allowed, 78 wrong configuration.";

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the daemon until SIGTERM or SIGINT.
    ///
    /// Bundles appear as INBOX/CHANNEL/SEQUENCE/NAME. What is not as a trusted key signed it goes to
    /// QUARANTINE/CHANNEL/SEQUENCE-ID/ with reason.json. The hook of the channel runs as `HOOK PATH`, in sequence order, with
    /// CHECKVALVE_BUNDLE_ID, _CHANNEL, _SEQUENCE, _NAME, _PATH, _STAGE, _ATTEMPT, _SIGNER and _PREVIOUS_PATH in its environment and
    /// the manifest as JSON on its standard input; exit 0 is done, 75 try again, 65 or 77 quarantine, anything else failed.
    /// Its output is in STATE/logs/CHANNEL/.
    ///
    /// Logs go to standard error; CHECKVALVE_LOG sets how much (for example `debug`).
    Run,
    /// Show what arrived, what is under way, what is lacking and what never came.
    ///
    /// States: receiving; incomplete (its transmission ended and something is lacking); missing (sent, and nothing of it came);
    /// held (for an operator: `approve` or `reject`); quarantined; complete (in the inbox); then of the hook installing, installed or failed; withdrawn (by the sender);
    /// rejected (by an operator); superseded (came after a later one had gone to the hook).
    Status(status::Args),
    /// Print what is lacking as a ticket: a few lines of text that a person carries to the sender, which sends exactly that
    /// (`checkvalve-sender resend --ticket`). Or show it as a QR code.
    Ticket(ticket::Args),
    /// Prove that a published bundle is still what was signed: every name, mode, time, link and byte.
    Verify(verify::Args),
    /// Give up a bundle that is missing, incomplete or waiting, so that later ones go to the hook.
    ///
    /// What is published stays in the inbox. A bundle that was given up is not received any more.
    Reject(reject::Args),
    /// Let a bundle come that is held, because its sequence is far ahead; or say that a channel's sequences up to CHANNEL/SEQUENCE are in
    /// use.
    Approve(decide::Args),
    /// Undo the refusal of a bundle (quarantined, rejected, withdrawn, held): what is here of it is published, what is not may come again.
    /// Or run a hook again that failed, or at once one that waits to be run again.
    Retry(decide::Args),
    /// Say whose bundles are accepted.
    Trust {
        /// What to do.
        #[command(subcommand)]
        command: trust::TrustCommand,
    },
    /// Check the configuration, the directories, hooks and keys it names, and print what follows from it.
    ///
    /// Prints one line that names the key and says what to write instead, and exits with 78, if something is wrong.
    CheckConfig,
}

/// Why a command ended without doing what it should. Each is one line.
#[derive(Debug, thiserror::Error)]
enum CommandError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Control(#[from] ControlError),
    #[error(transparent)]
    Run(#[from] crate::run::RunError),
    #[error("{text}")]
    Said { exit: Exit, text: String },
}

impl CommandError {
    fn new(exit: Exit, text: impl Into<String>) -> Self {
        Self::Said { exit, text: text.into() }
    }

    fn io(what: impl std::fmt::Display, error: &io::Error) -> Self {
        Self::new(Exit::from_io(error), format!("{what}: {error}"))
    }

    fn exit(&self) -> Exit {
        match self {
            Self::Config(_) => Exit::Config,
            Self::Control(error) => error.exit(),
            Self::Run(error) => error.exit(),
            Self::Said { exit, .. } => *exit,
        }
    }
}

/// Runs the command that the process was started with; gives what it exits with.
#[must_use]
pub fn main() -> Exit {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are no errors. If nobody reads them, nothing can be done.
            drop(error.print());
            return if error.use_stderr() { Exit::Usage } else { Exit::Ok };
        }
    };
    match execute(&cli) {
        Ok(()) => Exit::Ok,
        Err(error) => {
            eprintln!("checkvalve-receiver: {}", escape(&error.to_string()));
            error.exit()
        }
    }
}

fn execute(cli: &Cli) -> Result<(), CommandError> {
    match &cli.command {
        Command::Run => {
            log::init().map_err(|error| CommandError::new(Exit::Usage, error.to_string()))?;
            Ok(crate::run::run(&cli.config)?)
        }
        Command::Status(args) => status::status(args, &cli.config, cli.json),
        Command::Ticket(args) => ticket::ticket(args, &cli.config, cli.json),
        Command::Verify(args) => verify::verify(args, &cli.config, cli.json),
        Command::Reject(args) => reject::reject(args, &cli.config, cli.json),
        Command::Approve(args) => decide::approve(args, &cli.config, cli.json),
        Command::Retry(args) => decide::retry(args, &cli.config, cli.json),
        Command::Trust { command } => trust::trust(command, &cli.config, cli.json),
        Command::CheckConfig => check_config::check_config(&cli.config, cli.json),
    }
}

/// Asks the daemon of this config.
fn ask<T: DeserializeOwned>(config: &Config, request: &Request) -> Result<T, CommandError> {
    let body = serde_json::to_value(request).map_err(|e| CommandError::new(Exit::Software, e.to_string()))?;
    let value = Client::call(&config.control, &body)?;
    serde_json::from_value(value)
        .map_err(|e| CommandError::new(Exit::Protocol, format!("the daemon is of another version: {e}")))
}

/// Prints a value as one line of JSON.
fn say_json<T: Serialize>(value: &T) -> Result<(), CommandError> {
    say::json(value).map_err(|error| CommandError::new(Exit::Software, error.to_string()))
}

#[cfg(test)]
mod tests;
