//! What commands ask the daemon through its control socket, and what it answers: JSON, one value each.

use checkvalve_host::control::Refusal;
use checkvalve_host::exit::Exit;
use checkvalve_protocol::id::{ChannelName, SessionId};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::engine::{BundleState, BundleView, Chosen, Engine, Now, ResendError, View};
use crate::pipeline::LinkStats;

/// What commands ask.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "lowercase", deny_unknown_fields)]
pub enum Request {
    /// For a [`Status`].
    Status,
    /// For the [`Found`] of what was put into the spool.
    Find {
        /// The channel's folder that it was put into.
        channel: ChannelName,
        /// Its inode.
        inode: u64,
        /// When it was put there, in milliseconds since 1970: inodes are used again.
        since_ms: u64,
    },
    /// For the [`BundleView`] of a bundle.
    Bundle {
        /// `CHANNEL/SEQUENCE`, or the first digits of an id.
        bundle: String,
    },
    /// To send a bundle again; answered with [`Resent`].
    Resend {
        /// `CHANNEL/SEQUENCE`, or the first digits of an id.
        bundle: String,
        /// Source blocks: the first and the one after the last of each range; empty for all.
        #[serde(default)]
        blocks: Vec<(u32, u32)>,
    },
}

/// What `status --json` prints. Fields are added, never changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Which of the two daemons this is: `sender`.
    pub daemon: String,
    /// The program's version.
    pub version: String,
    /// The daemon's process.
    pub pid: u32,
    /// When it was started, in milliseconds since 1970.
    pub started_ms: u64,
    /// The present run.
    pub session: SessionView,
    /// The link.
    pub link: LinkView,
    /// Bundles, channels and spool.
    #[serde(flatten)]
    pub view: View,
}

/// The present run of the daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionView {
    /// Its id, which every datagram carries.
    pub id: SessionId,
    /// Its number, higher than any before.
    pub number: u64,
}

/// The link.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkView {
    /// Where to, the first lane's port.
    pub destination: String,
    /// How many ports are sent to.
    pub lanes: u16,
    /// Largest IP datagram in bytes.
    pub mtu: u16,
    /// Bits a second on the wire, at most.
    pub rate_bits: u64,
    /// Whether datagrams are sealed with a link key.
    pub sealed: bool,
    /// What was sent in this session; its fields are the data plane's ([`LinkStats`]).
    pub sent: Value,
}

/// What the daemon itself adds to a [`Status`].
#[derive(Debug, Clone)]
pub struct About {
    /// See [`Status::started_ms`].
    pub started_ms: u64,
    /// See [`SessionView::id`].
    pub session: SessionId,
    /// The link, its `sent` empty.
    pub link: LinkView,
}

/// Whether what was put into the spool was claimed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Found {
    /// Its bundle, once it is one.
    pub bundle: Option<BundleView>,
}

/// A bundle that will be sent again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resent {
    /// The bundle, `CHANNEL/SEQUENCE`.
    pub bundle: String,
    /// Its id.
    pub id: checkvalve_protocol::id::BundleId,
    /// How many source blocks will be sent.
    pub blocks: u64,
    /// How many it has.
    pub of_blocks: u64,
    /// Length of its data in bytes.
    pub bytes: u64,
}

/// Answers a request. Errors: [`Refusal`], which the command prints and exits with.
pub fn answer(
    body: Value,
    engine: &mut Engine,
    about: &About,
    stats: impl FnOnce() -> LinkStats,
    now: Now,
) -> Result<Value, Refusal> {
    let request = serde_json::from_value(body).map_err(|error| {
        Refusal::new(Exit::Protocol, format!("the daemon does not understand the command: {error}"))
    })?;
    match request {
        Request::Status => json(&status(engine, about, &stats())),
        Request::Find { channel, inode, since_ms } => {
            json(&Found { bundle: engine.find_dropped(&channel, inode, since_ms) })
        }
        Request::Bundle { bundle } => {
            let record = engine.choose(&bundle).map_err(|error| refusal(&error))?;
            json(&engine.bundle_view(record))
        }
        Request::Resend { bundle, blocks } => {
            let ranges: Vec<_> = blocks.into_iter().map(|(from, to)| (from..to, None)).collect();
            let chosen = engine.resend(&bundle, &ranges, now).map_err(|error| refusal(&error))?;
            json(&resent(&chosen))
        }
    }
}

/// What status says.
#[must_use]
pub fn status(engine: &Engine, about: &About, stats: &LinkStats) -> Status {
    let mut link = about.link.clone();
    link.sent = serde_json::to_value(stats).unwrap_or_default();
    Status {
        daemon: "sender".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
        started_ms: about.started_ms,
        session: SessionView { id: about.session, number: engine.session_number() },
        link,
        view: engine.view(),
    }
}

impl std::fmt::Display for BundleState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Queued => "queued",
            Self::Transmitting => "transmitting",
            Self::Transmitted => "transmitted",
            Self::Failed => "failed",
        })
    }
}

fn resent(chosen: &Chosen) -> Resent {
    let Chosen { id, channel, sequence, blocks, of_blocks, bytes } = chosen;
    Resent { bundle: format!("{channel}/{sequence}"), id: *id, blocks: *blocks, of_blocks: *of_blocks, bytes: *bytes }
}

fn refusal(error: &ResendError) -> Refusal {
    let exit = match error {
        ResendError::Unknown(_) | ResendError::NotRetained(_) => Exit::NoInput,
        ResendError::Ambiguous(..) | ResendError::Blocks(..) => Exit::Usage,
        ResendError::NotTransmitted(_) | ResendError::Ledger(_) => Exit::TempFail,
        ResendError::Failed(..) => Exit::DataErr,
    };
    Refusal::new(exit, error.to_string())
}

fn json<T: Serialize>(value: &T) -> Result<Value, Refusal> {
    serde_json::to_value(value).map_err(|error| Refusal::new(Exit::Software, error.to_string()))
}
