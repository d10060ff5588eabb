//! The control socket: how the commands talk to a running daemon.
//!
//! A Unix stream socket of mode 0660. A client sends one line, a JSON value, and gets lines back: `{"value": …}` any number of
//! times and then `{"end": true}`, or `{"error": {"exit": 75, "text": "…"}}`, which ends it too. While there is nothing
//! to say the daemon sends an empty line every few seconds, so that each side notices when the other is gone. Then
//! the connection is closed: one request a connection.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::exit::Exit;

mod client;
mod server;

pub use client::{Client, Stream};
pub use server::{BindError, Reply, Request, Server};

/// Longest request in bytes, its line feed not counted.
pub const MAX_REQUEST: usize = 1 << 20;
/// Longest line of a reply in bytes: `status` of a daemon that keeps many bundles.
pub const MAX_REPLY: usize = 64 << 20;
/// Connections at once. What comes on top is told to try again.
pub const MAX_CONNECTIONS: usize = 64;
/// How long a client may take to send its request.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a client may leave a line unread.
pub const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// How often the daemon says that it is still there.
pub const KEEPALIVE: Duration = Duration::from_secs(5);
/// How long a client waits for a sign of life.
pub const SILENCE: Duration = Duration::from_secs(20);

/// Why the daemon does not do what it was asked. Sent to the client, who prints `text` and exits with `exit`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{text}")]
pub struct Refusal {
    /// What the command exits with.
    pub exit: Exit,
    /// One line for a person.
    pub text: String,
}

impl Refusal {
    /// A refusal with this exit code and one line for a person.
    #[must_use]
    pub fn new(exit: Exit, text: impl Into<String>) -> Self {
        Self { exit, text: text.into() }
    }
}

/// Why a command got no answer from the daemon. Each is one line.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// Nobody listens there.
    #[error("{path}: the daemon is not running; start it, or give the `--config` that it was started with")]
    NotRunning {
        /// The socket.
        path: PathBuf,
    },
    /// This user may not connect.
    #[error("{path}: this user may not talk to the daemon; join the group of that socket")]
    NotAllowed {
        /// The socket.
        path: PathBuf,
    },
    /// The daemon said why it does not do it.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The daemon is there, and silent.
    #[error("{path}: the daemon does not answer")]
    Silent {
        /// The socket.
        path: PathBuf,
    },
    /// The daemon went away before it had said everything.
    #[error("{path}: the daemon closed the connection before it had answered")]
    Closed {
        /// The socket.
        path: PathBuf,
    },
    /// What came back is not of this protocol.
    #[error("{path}: not the answer of a checkvalve daemon")]
    Malformed {
        /// The socket.
        path: PathBuf,
    },
    /// The connection failed.
    #[error("{path}: {error}")]
    Io {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        error: std::io::Error,
    },
}

impl ControlError {
    /// What a command exits with.
    #[must_use]
    pub fn exit(&self) -> Exit {
        match self {
            Self::NotRunning { .. } => Exit::Unavailable,
            Self::NotAllowed { .. } => Exit::NoPerm,
            Self::Refused(refusal) => refusal.exit,
            Self::Silent { .. } | Self::Closed { .. } => Exit::TempFail,
            Self::Malformed { .. } => Exit::Protocol,
            Self::Io { error, .. } => Exit::from_io(error),
        }
    }
}

/// A line of a reply.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Line {
    Value(Value),
    Error(Refusal),
    End(bool),
}

#[cfg(test)]
mod tests;
