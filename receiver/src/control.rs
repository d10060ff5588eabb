//! What commands ask the daemon through its control socket, and what it answers: JSON, one value each.

pub(crate) mod alarms;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use checkvalve_host::control::Refusal;
use checkvalve_host::exit::Exit;
use checkvalve_host::json::Stamp;
use checkvalve_protocol::admit::Trust;
use checkvalve_protocol::id::{ChannelName, KeyId, KeyTag};
use checkvalve_protocol::receive::Drops;
use checkvalve_protocol::ticket::Loss;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::config::load_trusted;
use crate::delivery::alarms::Alarm;
use crate::delivery::status::{Status as Deliveries, TrustedKey};
use crate::delivery::ticket::{LackingOf, TicketError, TicketView};
use crate::delivery::{DecideError, Delivery, Judged, Which};
use crate::pipeline::LinkStats;
use crate::windows::LinkWindow;

/// What commands ask.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "lowercase", deny_unknown_fields)]
pub enum Request {
    /// For a [`DaemonStatus`].
    DaemonStatus,
    /// To give a bundle up; answered with null.
    Reject {
        /// `CHANNEL/SEQUENCE`, or the first digits of an id.
        bundle: String,
    },
    /// For [`Tickets`].
    Ticket {
        /// `CHANNEL/SEQUENCE`, or the first digits of an id; none for all that lack something.
        bundles: Vec<String>,
        /// Most lines of a ticket.
        max_lines: usize,
    },
    /// To let a bundle come that is held; answered with a line.
    Approve {
        /// `CHANNEL/SEQUENCE`, or the first digits of an id.
        bundle: String,
    },
    /// To undo a refusal, or to run a hook again that failed or waits; answered with a line.
    Retry {
        /// `CHANNEL/SEQUENCE`, or the first digits of an id.
        bundle: String,
    },
    /// To read the trusted keys again; answered with [`Judged`].
    Trust,
}

/// What is lacking.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tickets {
    /// The rate that the slowest of their senders is set to, in bits a second; 0 while unknown.
    pub rate_bits: u64,
    /// The loss that the first states.
    pub loss: String,
    /// The tickets.
    pub tickets: Vec<TicketView>,
    /// Bundles of which something is still coming, some of them: what they will lack is not known yet.
    #[serde(default)]
    pub receiving: Vec<String>,
    /// No beacon is heard, or none was since the start: what was sent meanwhile is not known of.
    #[serde(default)]
    pub silent: bool,
}

/// What `status --json` prints. Fields are added, never changed.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DaemonStatus {
    /// Which of the two daemons this is: `receiver`.
    pub daemon: String,
    /// The program's version.
    pub version: String,
    /// The daemon's process.
    pub pid: u32,
    /// When it was started.
    pub started_at: Stamp,
    /// What a person should look at, the worst first.
    #[serde(default)]
    pub alarms: Vec<Alarm>,
    /// The link.
    pub link: LinkView,
    /// Bundles, channels, sender, staging and keys.
    #[serde(flatten)]
    pub deliveries: Deliveries,
}

/// What happened on the link since the daemon started.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct LinkView {
    /// Where it listens, an address and port for each lane.
    pub listen: String,
    /// How many lanes there are.
    pub lanes: usize,
    /// Whether datagrams are sealed with a link key.
    pub sealed: bool,
    /// Datagrams that reached the daemon.
    pub datagrams: u64,
    /// Their bytes, UDP headers not counted.
    pub bytes: u64,
    /// Datagrams that the daemon dropped, by reason.
    pub dropped: BTreeMap<String, u64>,
    /// Those of the last ten seconds.
    #[serde(default)]
    pub dropped_lately: BTreeMap<String, u64>,
    /// Datagrams that the kernel dropped because its buffer was full.
    pub kernel_drops: u64,
    /// Blocks that came whole.
    pub blocks_whole: u64,
    /// Blocks that had to be decoded.
    pub blocks_decoded: u64,
    /// Blocks that could not be stored.
    pub blocks_failed: u64,
    /// Unfinished blocks kept on disk for want of memory, or because no symbol came for long.
    pub blocks_parked: u64,
    /// Unfinished blocks whose symbols could not be kept either.
    pub blocks_lost: u64,
    /// Bytes held in blocks that are not stored yet.
    pub memory: u64,
    /// Those of them of bundles that nobody signed for yet.
    #[serde(default)]
    pub unsigned_memory: u64,
    /// Objects under way.
    #[serde(default)]
    pub objects: usize,
    /// Those of them of bundles that nobody signed for yet.
    #[serde(default)]
    pub unsigned_objects: usize,
    /// Blocks under way.
    #[serde(default)]
    pub open_blocks: usize,
    /// When the last authentic datagram came; null before the first.
    pub last_heard_at: Option<Stamp>,
    /// What the sender with each trusted key says that it sent, and how much of that came.
    #[serde(default)]
    pub senders: Vec<SenderLink>,
    /// The last minute, as all senders together say.
    #[serde(default)]
    pub minute: LinkWindow,
    /// The last hour.
    #[serde(default)]
    pub hour: LinkWindow,
    /// The last day.
    #[serde(default)]
    pub day: LinkWindow,
}

/// What the link did with the datagrams of one sender.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SenderLink {
    /// The key that signs its beacons.
    pub key: KeyId,
    /// The operator's name for it.
    pub name: String,
    /// The last minute.
    pub minute: LinkWindow,
    /// The last hour.
    pub hour: LinkWindow,
    /// The last day.
    pub day: LinkWindow,
}

/// What the daemon itself adds to a [`DaemonStatus`].
#[derive(Debug, Clone)]
pub struct About {
    /// When the daemon was started, in Unix milliseconds.
    pub started_ms: u64,
    /// See [`LinkView::listen`].
    pub listen: String,
    /// See [`LinkView::lanes`].
    pub lanes: usize,
    /// See [`LinkView::sealed`].
    pub sealed: bool,
    /// The directory of trusted keys.
    pub trusted: std::path::PathBuf,
    /// Which of them may sign for channels that name their keys.
    pub signers: Arc<Mutex<Signers>>,
}

/// Keys by channel, for channels that name theirs.
pub type Signers = BTreeMap<ChannelName, BTreeSet<KeyId>>;

/// Answers a request; may wait for the disk. Errors: [`Refusal`], which the command prints and exits with.
pub fn answer(
    body: Value,
    delivery: &Delivery,
    about: &About,
    stats: impl FnOnce() -> LinkStats,
    lacking: LackingOf<'_>,
    now_ms: u64,
) -> Result<Value, Refusal> {
    let request = serde_json::from_value(body).map_err(|error| {
        Refusal::new(Exit::Protocol, format!("the daemon does not understand the command: {error}"))
    })?;
    match request {
        Request::DaemonStatus => json(&status(delivery, about, &stats(), lacking, now_ms)),
        Request::Ticket { bundles, max_lines } => {
            let senders = stats().senders;
            let loss = |key: Option<KeyTag>| key.and_then(|key| senders.get(&key)).map_or(Loss::UNKNOWN, loss);
            let tickets = delivery.tickets(&bundles, &loss, max_lines, lacking).map_err(|error| {
                let exit = match &error {
                    TicketError::Which(_, DecideError::Unknown) => Exit::NoInput,
                    TicketError::Which(..) => Exit::Usage,
                    TicketError::Complete(..) => Exit::DataErr,
                    TicketError::Disk(..) => Exit::IoErr,
                };
                Refusal::new(exit, error.to_string())
            })?;
            let rates = tickets.iter().map(|ticket| ticket.rate_bits).filter(|&rate| rate > 0);
            json(&Tickets {
                rate_bits: rates.min().unwrap_or(0),
                loss: tickets.first().map_or_else(|| Loss::UNKNOWN.to_string(), |ticket| ticket.loss.clone()),
                tickets,
                receiving: delivery.receiving(),
                silent: delivery.is_silent(now_ms),
            })
        }
        Request::Reject { bundle } => {
            let which: Which = bundle.parse().map_err(|error| refusal(&bundle, &error))?;
            delivery.reject(&which).map_err(|error| refusal(&bundle, &error))?;
            Ok(Value::Null)
        }
        Request::Approve { bundle } => {
            let which: Which = bundle.parse().map_err(|error| refusal(&bundle, &error))?;
            json(&delivery.approve(&which).map_err(|error| refusal(&bundle, &error))?)
        }
        Request::Retry { bundle } => {
            let which: Which = bundle.parse().map_err(|error| refusal(&bundle, &error))?;
            json(&delivery.retry(&which).map_err(|error| refusal(&bundle, &error))?)
        }
        Request::Trust => json(&reload_trust(delivery, about, None, now_ms)?),
    }
}

/// Reads the trusted keys again, and judges by them, and by `signers` from now on if there are any. Errors: a key cannot be read, and
/// nothing changed; or the state directory.
pub(crate) fn reload_trust(
    delivery: &Delivery,
    about: &About,
    signers: Option<Signers>,
    now_ms: u64,
) -> Result<Judged, Refusal> {
    // Held to the end: one change of trust after the other.
    let mut known = about.signers.lock().unwrap_or_else(PoisonError::into_inner);
    let keys = load_trusted(&about.trusted).map_err(|e| {
        delivery.trust_is_read(Some(&e.to_string()));
        Refusal::new(Exit::Config, e.to_string())
    })?;
    if let Some(signers) = signers {
        *known = signers;
    }
    let trust = Trust { keys, signers: known.clone() };
    let judged = delivery.set_trust(trust, now_ms).map_err(|e| Refusal::new(Exit::from_io(&e), e.to_string()))?;
    delivery.trust_is_read(None);
    Ok(judged)
}

/// What status says.
fn status(delivery: &Delivery, about: &About, stats: &LinkStats, lacking: LackingOf<'_>, now_ms: u64) -> DaemonStatus {
    let mut deliveries = delivery.status(now_ms);
    delivery.count_lacking(&mut deliveries, lacking);
    let link = link_view(about, stats, &deliveries);
    DaemonStatus {
        daemon: "receiver".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
        started_at: Stamp(about.started_ms),
        alarms: alarms::of(&deliveries, &link, delivery.noted(now_ms)),
        link,
        deliveries,
    }
}

/// What the link lost lately: the worse of the last minute and the last hour, each if enough was sent to tell.
fn loss(windows: &[LinkWindow; 3]) -> Loss {
    let enough = |window: &&LinkWindow| window.sent >= 1_000;
    let [minute, hour, day] = windows;
    let lately = [minute, hour].into_iter().filter(enough).map(|w| Loss::of(w.lost, w.sent)).max();
    lately.or_else(|| Some(day).filter(enough).map(|w| Loss::of(w.lost, w.sent))).unwrap_or(Loss::UNKNOWN)
}

fn link_view(about: &About, stats: &LinkStats, deliveries: &Deliveries) -> LinkView {
    let of_key = |trusted: &TrustedKey| {
        let &[minute, hour, day] = stats.senders.get(&trusted.key.tag())?;
        Some(SenderLink { key: trusted.key, name: trusted.name.clone(), minute, hour, day })
    };
    LinkView {
        senders: deliveries.trusted.iter().filter_map(of_key).collect(),
        listen: about.listen.clone(),
        lanes: about.lanes,
        sealed: about.sealed,
        datagrams: stats.datagrams,
        bytes: stats.bytes,
        dropped: by_name(&stats.drops),
        dropped_lately: by_name(&stats.drops_lately),
        kernel_drops: stats.kernel_drops,
        blocks_whole: stats.blocks_whole,
        blocks_decoded: stats.blocks_decoded,
        blocks_failed: stats.blocks_failed,
        blocks_parked: stats.blocks_parked,
        blocks_lost: stats.blocks_lost,
        memory: stats.usage.memory,
        minute: stats.windows[0],
        hour: stats.windows[1],
        day: stats.windows[2],
        last_heard_at: (stats.last_heard_ms > 0).then_some(Stamp(stats.last_heard_ms)),
        unsigned_memory: stats.usage.unsigned_memory,
        objects: stats.usage.objects,
        unsigned_objects: stats.usage.unsigned_objects,
        open_blocks: stats.usage.open_blocks,
    }
}

fn by_name(drops: &Drops) -> BTreeMap<String, u64> {
    drops.iter().map(|(reason, count)| (reason.name().to_owned(), count)).collect()
}

fn refusal(bundle: &str, error: &DecideError) -> Refusal {
    let exit = match error {
        DecideError::Unknown => Exit::NoInput,
        DecideError::Ambiguous | DecideError::Claimed(_) | DecideError::Malformed => Exit::Usage,
        DecideError::Over(_)
        | DecideError::NotHeld(_)
        | DecideError::Held(_)
        | DecideError::NothingToRetry(_)
        | DecideError::Older(_) => Exit::DataErr,
        DecideError::Trust(_) => Exit::NoPerm,
        DecideError::Running => Exit::TempFail,
        DecideError::Disk => Exit::IoErr,
    };
    Refusal::new(exit, format!("{bundle}: {error}"))
}

fn json<T: Serialize>(value: &T) -> Result<Value, Refusal> {
    serde_json::to_value(value).map_err(|error| Refusal::new(Exit::Software, error.to_string()))
}
