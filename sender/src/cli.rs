//! The command line.

mod adopt;
mod check_config;
mod copy;
mod keygen;
mod resend;
mod send;
mod status;
mod ticket;
mod wait;

use std::io;
use std::path::PathBuf;

use checkvalve_host::config::ConfigError;
use checkvalve_host::control::{Client, ControlError, Refusal};
use checkvalve_host::exit::Exit;
use checkvalve_host::log::{self, escape};
use checkvalve_host::say::{self, say};
use checkvalve_protocol::id::ChannelName;
use clap::{Parser, Subcommand};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::config::{Config, DEFAULT_PATH};
use crate::control::Request;

/// Sends bundles over a one-way link: takes what is put into a spool directory and transmits it over UDP, with forward
/// error correction and signatures, to a checkvalve-receiver from which nothing can come back.
///
/// What is sent is "transmitted", never "delivered": whether it arrived, only the receiver can know.
#[derive(Debug, Parser)]
#[command(name = "checkvalve-sender", version, max_term_width = 100, after_help = AFTER)]
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
Exit codes are those of sysexits: 0 done, 64 wrong command line, 65 the bundle failed, 66 no such thing, 69 the daemon is \
not running, 73 cannot create a file, 75 try again later, 77 not allowed, 78 wrong configuration.";

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the daemon until SIGTERM or SIGINT.
    ///
    /// What is renamed into SPOOL/CHANNEL/ is claimed at once; what is written there in place, when it was closed and is quiet
    /// for `settle`. Names that begin with a dot or end with .part or .tmp are left alone. A file or a directory with all in
    /// it is one bundle. What cannot be sent goes to SPOOL/CHANNEL/.failed/NAME beside NAME.reason.
    ///
    /// Logs go to standard error; CHECKVALVE_LOG sets how much (for example `debug`).
    Run,
    /// Put files or directories into the spool, each as one bundle.
    ///
    /// Each PATH is copied beside its channel's folder under a hidden name and then renamed, so that the daemon claims it whole.
    Send(send::Args),
    /// Show what waits, what is on the wire, what was transmitted and what failed.
    Status(status::Args),
    /// Send a bundle again that was transmitted and is still retained.
    ///
    /// Only repair symbols that were never sent before go out, so everything that arrives counts on the other side, whatever it
    /// has already. What is retained is proven to be unchanged first.
    ///
    /// With --ticket exactly what the other side lacks is sent, with a margin for the loss that the ticket states. How much that is
    /// and how long it takes is said beforehand.
    Resend(resend::Args),
    /// Go on after the sender's state was lost, restored from a backup or cloned. The daemon must be stopped.
    ///
    /// Begins a new epoch, so that the receiver tells this sender from the one that was, and goes on after the sequences that the
    /// receiver knows. What is unsent is sent under new ids and sequences, since nobody knows what the receiver has heard of it.
    Adopt(adopt::Args),
    /// Tickets: the text that a person carries back from the other side.
    Ticket {
        /// What to do with one.
        #[command(subcommand)]
        command: ticket::TicketCommand,
    },
    /// Make a key file that only its owner may read; never overwrites one.
    Keygen {
        /// Which key.
        #[command(subcommand)]
        kind: keygen::KeyKind,
    },
    /// Check the configuration, the directories and the keys it names, and print what follows from it.
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
    /// More than one thing was refused; the first says how it ends.
    #[error("{first}, and {} more", .others.len())]
    Several { first: Refusal, others: Vec<Refusal> },
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
            Self::Several { first, .. } => first.exit,
        }
    }

    /// What to tell, a line each.
    fn lines(&self) -> Vec<String> {
        match self {
            Self::Several { first, others } => {
                std::iter::once(first).chain(others).map(|refusal| refusal.text.clone()).collect()
            }
            other => vec![other.to_string()],
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
            for line in error.lines() {
                eprintln!("checkvalve-sender: {}", escape(&line));
            }
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
        Command::Send(args) => send::send(args, &cli.config, cli.json),
        Command::Status(args) => status::status(args, &cli.config, cli.json),
        Command::Resend(args) => resend::resend(args, &cli.config, cli.json),
        Command::Adopt(args) => adopt::run(args, &cli.config, cli.json),
        Command::Ticket { command } => ticket::ticket(command, cli.json),
        Command::Keygen { kind } => keygen::keygen(kind, cli.json),
        Command::CheckConfig => check_config::check_config(&cli.config, cli.json),
    }
}

/// Whether the configuration has this channel. Errors: it has not, and which it has.
fn known_channel(config: &Config, channel: &ChannelName) -> Result<(), CommandError> {
    let names = config.channel_names();
    if names.contains(channel) {
        return Ok(());
    }
    let names: Vec<_> = names.iter().map(ChannelName::as_str).collect();
    Err(CommandError::new(Exit::Usage, format!("there is no channel {channel}; there is {}", names.join(", "))))
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
