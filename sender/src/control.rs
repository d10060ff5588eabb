//! What commands ask the daemon through its control socket, and what it answers: JSON, one value each.

use checkvalve_host::control::Refusal;
use checkvalve_host::exit::Exit;
use checkvalve_host::json::{Stamp, hex_unless_utf8};
use checkvalve_host::log::escape_bytes;
use checkvalve_protocol::beacon::Epoch;
use checkvalve_protocol::id::{ChannelName, SessionId};
use checkvalve_protocol::ticket::Ticket;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::engine::{
    Asked, BundleState, BundleView, Chosen, Engine, Now, Priced, ResendError, RestoreError, Restoring, View,
};
use crate::pipeline::LinkStats;

/// What commands ask.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "lowercase", deny_unknown_fields)]
pub enum Request {
    /// For a [`Status`].
    Status,
    /// For the [`FoundBundle`] of what was put into the spool.
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
    /// To send again what a ticket asks for; answered with [`Tickets`].
    Ticket {
        /// The tickets' texts, one after the other.
        tickets: Vec<String>,
        /// Only say what it costs.
        #[serde(default)]
        dry_run: bool,
    },
    /// To take content back for a bundle that is no longer retained; answered with [`Restored`].
    Restore {
        /// `CHANNEL/SEQUENCE`, or the first digits of an id.
        bundle: String,
        /// Its name in the folder of the bundle's channel: begins with `.restore-`. None: only ask how far that is.
        name: Option<String>,
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
    /// When it was started.
    pub started_at: Stamp,
    /// The state that it goes on with; another one after `adopt`.
    pub epoch: Epoch,
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
    /// Its number: counts the runs of this epoch.
    pub number: u64,
}

/// The link.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkView {
    /// Where to, an address and port for each lane.
    pub destination: String,
    /// How many lanes there are.
    pub lanes: usize,
    /// Largest IP datagram in bytes.
    pub mtu: u16,
    /// Bits a second on the wire, at most.
    pub rate_bits: u64,
    /// Whether datagrams are sealed with a link key.
    pub sealed: bool,
    /// What was sent in this session.
    pub sent: LinkStats,
}

/// What the daemon itself adds to a [`Status`].
#[derive(Debug, Clone)]
pub struct About {
    /// See [`Status::started_at`].
    pub started_at: Stamp,
    /// See [`SessionView::id`].
    pub session: SessionId,
    /// The link, its `sent` empty.
    pub link: LinkView,
}

/// Whether what was put into the spool was claimed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FoundBundle {
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

/// What tickets ask for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tickets {
    /// Whether nothing was done about it.
    pub dry_run: bool,
    /// The link's rate in bits a second.
    pub rate_bits: u64,
    /// Bundle by bundle.
    pub bundles: Vec<AskedView>,
}

/// What a ticket asks of one bundle.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AskedView {
    /// The bundle, `CHANNEL/SEQUENCE`, or its id where nothing more is known.
    pub bundle: String,
    /// Why it is not sent again; all else is null or 0 then.
    pub refused: Option<Refusal>,
    /// Whether its content was let go, so that `--from` would help.
    pub not_retained: bool,
    /// Its id.
    pub id: Option<checkvalve_protocol::id::BundleId>,
    /// What it is called, escaped where it is not printable text.
    pub name: Option<String>,
    /// The bytes of that in hexadecimal digits; only there where they are not UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name_hex: Option<String>,
    /// How many source blocks symbols are sent of.
    pub blocks: u64,
    /// How many it has.
    pub of_blocks: u64,
    /// Length of its data in bytes.
    pub bytes: u64,
    /// Datagrams that are sent, announce and hashes among them.
    pub datagrams: u64,
    /// Their bytes on the wire, Ethernet overhead included.
    pub wire_bytes: u64,
    /// How long they take at the link's rate, in milliseconds.
    pub millis: u64,
}

/// How far taking a bundle back is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "lowercase")]
pub enum Restored {
    /// It is being read and compared.
    Proving,
    /// It is held.
    Held,
    /// It is not the same, or cannot be read.
    Refused {
        /// Why.
        reason: String,
    },
    /// Nothing of that is known.
    Unknown,
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
        Request::Status => json(&status(engine, about, stats())),
        Request::Find { channel, inode, since_ms } => {
            json(&FoundBundle { bundle: engine.find_dropped(&channel, inode, since_ms) })
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
        Request::Ticket { tickets, dry_run } => {
            let mut read = Vec::new();
            for text in &tickets {
                read.push(Ticket::parse(text).map_err(|error| Refusal::new(Exit::DataErr, error.to_string()))?);
            }
            let asked = read.iter().flat_map(|ticket| engine.resend_ticket(ticket, dry_run, now));
            let bundles = asked.map(asked_view).collect();
            json(&Tickets { dry_run, rate_bits: about.link.rate_bits, bundles })
        }
        Request::Restore { bundle, name: Some(name) } => {
            let begun = engine.restore(&bundle, name.as_ref(), now).map_err(|error| {
                let exit = match &error {
                    RestoreError::Resend(error) => return refusal(error),
                    RestoreError::Busy(_) => Exit::TempFail,
                    RestoreError::Name => Exit::Usage,
                    RestoreError::Disk(error) => Exit::from_io(error),
                };
                Refusal::new(exit, error.to_string())
            })?;
            json(&if begun { Restored::Proving } else { Restored::Held })
        }
        Request::Restore { bundle, name: None } => {
            let id = engine.choose(&bundle).map_err(|error| refusal(&error))?.id;
            json(&match engine.restoring(id) {
                None => Restored::Unknown,
                Some(Restoring::Proving) => Restored::Proving,
                Some(Restoring::Held) => Restored::Held,
                Some(Restoring::Refused(reason)) => Restored::Refused { reason: reason.clone() },
            })
        }
    }
}

/// What status says.
#[must_use]
pub fn status(engine: &Engine, about: &About, sent: LinkStats) -> Status {
    Status {
        daemon: "sender".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
        started_at: about.started_at,
        epoch: engine.epoch(),
        session: SessionView { id: about.session, number: engine.session_number() },
        link: LinkView { sent, ..about.link.clone() },
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

fn asked_view((bundle, result): Asked) -> AskedView {
    let not_retained = matches!(result, Err(ResendError::NotRetained(_)));
    match result {
        Ok(Priced { chosen, name, datagrams, wire_bytes, millis }) => AskedView {
            bundle,
            refused: None,
            not_retained,
            id: Some(chosen.id),
            name: Some(escape_bytes(&name)),
            name_hex: hex_unless_utf8(&name),
            blocks: chosen.blocks,
            of_blocks: chosen.of_blocks,
            bytes: chosen.bytes,
            datagrams,
            wire_bytes,
            millis,
        },
        Err(error) => AskedView {
            bundle,
            refused: Some(refusal(&error)),
            not_retained,
            id: None,
            name: None,
            name_hex: None,
            blocks: 0,
            of_blocks: 0,
            bytes: 0,
            datagrams: 0,
            wire_bytes: 0,
            millis: 0,
        },
    }
}

fn refusal(error: &ResendError) -> Refusal {
    let exit = match error {
        ResendError::Unknown(_) | ResendError::NotRetained(_) => Exit::NoInput,
        ResendError::Ambiguous(..) | ResendError::Blocks(..) => Exit::Usage,
        ResendError::NotTransmitted(_)
        | ResendError::TooManyRanges(..)
        | ResendError::TooManyBundles(_)
        | ResendError::Ledger(_) => Exit::TempFail,
        ResendError::Failed(..) => Exit::DataErr,
    };
    Refusal::new(exit, error.to_string())
}

fn json<T: Serialize>(value: &T) -> Result<Value, Refusal> {
    serde_json::to_value(value).map_err(|error| Refusal::new(Exit::Software, error.to_string()))
}
