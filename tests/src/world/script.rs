//! What happens in a run, and when.

mod draw;

use crate::simdisk::Op;

/// One of the two machines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The sender's.
    Low,
    /// The receiver's.
    High,
}

/// A whole run.
#[derive(Debug, Clone)]
pub struct Script {
    /// Decides everything that the options and events leave open.
    pub seed: u64,
    /// What holds during the whole run.
    pub options: Options,
    /// What happens, in order of time. Each event is identified by its number in the unshrunk script.
    pub events: Vec<Event>,
}

impl Script {
    /// Whether somebody sends forged datagrams beside the sender.
    pub fn is_hostile(&self) -> bool {
        self.events.iter().any(|event| matches!(event.what, What::Forge { .. }))
    }
}

/// Something that happens.
#[derive(Debug, Clone)]
pub struct Event {
    /// Its number in the unshrunk script.
    pub number: usize,
    /// Simulated milliseconds since the start.
    pub at_ms: u64,
    /// What.
    pub what: What,
}

/// What happens.
#[derive(Debug, Clone)]
pub enum What {
    /// An operator drops a bundle of about `size` bytes: a file if `files` is 0, else a tree with that many entries.
    Drop {
        /// Which channel.
        channel: usize,
        /// About how many bytes.
        size: u64,
        /// How many entries of a tree; 0 means that the bundle is a single file.
        files: u64,
        /// Whether it is renamed in, or written in place.
        renamed: bool,
        /// Whether inotify reports it.
        told: bool,
    },
    /// A process dies and comes back.
    Crash {
        /// Which.
        side: Side,
        /// How.
        cut: Cut,
        /// After how many disk operations. None: at once, between two steps.
        after_ops: Option<u64>,
        /// How long it is down, in milliseconds.
        down_ms: u64,
    },
    /// A disk misbehaves.
    Disk {
        /// Which.
        side: Side,
        /// How.
        fault: Fault,
        /// How long at most, in milliseconds.
        for_ms: u64,
    },
    /// Nothing arrives for some time.
    Outage {
        /// How long, in milliseconds.
        for_ms: u64,
    },
    /// Somebody sets a clock.
    Jump {
        /// Whose.
        side: Side,
        /// By how much, in milliseconds.
        by_ms: i64,
    },
    /// A disk stalls: nothing that waits for it makes progress.
    Slow {
        /// Which.
        side: Side,
        /// How long, in milliseconds.
        for_ms: u64,
    },
    /// Some operations of a disk take long while others continue.
    Late {
        /// Which.
        side: Side,
        /// How many operations of 1,000.
        often: u32,
        /// How long, in milliseconds.
        for_ms: u64,
    },
    /// A fibre is dark.
    Lane {
        /// Which lane.
        lane: usize,
        /// If true, nothing can be handed to the lane, and datagrams are sent later. If false, they are sent and lost.
        stuck: bool,
        /// How long, in milliseconds.
        for_ms: u64,
    },
    /// An operator carries tickets for everything that is missing.
    Tickets,
    /// An operator has something sent again for no reason.
    Resend {
        /// Picks one of the transmitted bundles.
        pick: u64,
    },
    /// The peer, who holds the link key, sends beside the sender.
    Forge {
        /// What.
        what: Forgery,
        /// How often.
        times: u64,
        /// Over how many milliseconds.
        for_ms: u64,
    },
}

/// What the peer sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Forgery {
    /// Symbols of invented bundles.
    Junk,
    /// Complete but invalid announces and hashes, of the sender's bundles and of invented ones.
    Garbage,
    /// Symbols of the sender's bundles under a wrong OTI.
    Otis,
    /// Beacons that nobody or another key signed, and the sender's own beacons in another session.
    Beacons,
    /// Withdrawals by a key that may not withdraw.
    Withdrawals,
    /// Announces that the peer's own key signed, for its own channel and for others.
    Announces,
    /// Wrong symbols in the right places of the sender's bundles, whose data then has to be asked for again.
    Spoil,
    /// Recorded datagrams of the sender: parts of a session or all of it, in any order.
    Replay,
    /// Recorded datagrams of the sender, shortened, lengthened, or sealed again as something else.
    Mangle,
    /// Symbols and beacons whose fields have their smallest or largest values.
    Extremes,
    /// One symbol of each block of everything.
    Scatter,
    /// Many symbols at once, each of another bundle.
    Flood,
    /// Bundles of its own about which it contradicts itself.
    Contradict,
}

/// How a process dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// SIGTERM.
    Stop,
    /// SIGKILL.
    Kill,
    /// The power fails.
    Power,
}

/// How a disk misbehaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The operation after this many others fails with this errno.
    Nth(u64, i32),
    /// The operation of this kind after this many others of it fails with this errno.
    Op(Op, u64, i32),
    /// All operations of this kind fail with this errno.
    Every(Op, i32),
    /// After this many operations, all further ones fail with this errno.
    From(u64, i32),
    /// The disk is full.
    Full,
    /// The disk is read-only.
    ReadOnly,
}

/// What holds during a whole run. The default is a perfect line and nothing special.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// How many of 1,000 datagrams are lost at random.
    pub loss: u32,
    /// Gilbert–Elliott model: how many of 10,000 datagrams begin a burst, and how many of 1,000 in a burst end it.
    pub burst: Option<(u32, u32)>,
    /// How many of 1,000 datagrams arrive twice.
    pub duplicate: u32,
    /// How many of 1,000 datagrams are late, by up to [`Options::late_ms`].
    pub reorder: u32,
    /// The longest delay of a datagram, in milliseconds.
    pub late_ms: u64,
    /// How many of 1,000 datagrams have a wrong bit.
    pub corrupt: u32,
    /// How many of 1,000 datagrams are cut short.
    pub truncate: u32,
    /// How often, of 1,000 datagrams, an old one arrives again.
    pub replay: u32,
    /// Repair symbols in per cent.
    pub repair: u32,
    /// Passes of each bundle.
    pub passes: u32,
    /// Whether one channel is a carousel.
    pub carousel: bool,
    /// Whether the sender's spool is a file system of its own.
    pub spool_mounted: bool,
    /// Whether the receiver's inbox is a file system of its own.
    pub inbox_mounted: bool,
    /// How often the install hook is retried at most (0: without limit). None: there is no hook.
    pub hook: Option<u32>,
    /// How many of 1,000 hook runs do not succeed.
    pub bad_hooks: u32,
    /// How long the hook waits for a missing bundle, in milliseconds.
    pub wait_for_missing_ms: Option<u64>,
    /// Whether the receiver has little memory for blocks.
    pub little_memory: bool,
    /// Whether the sender retains little of what it has sent.
    pub little_retained: bool,
    /// Whether the receiver syncs each file separately.
    pub fsync_each: bool,
    /// Whether the receiver trusts the peer's key, for channels other than the sender's.
    pub neighbour: bool,
    /// How many lanes there are, 1 or more.
    pub lanes: usize,
    /// How many threads encode. If there are none, the reading thread does it.
    pub encoders: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            loss: 0,
            burst: None,
            duplicate: 0,
            reorder: 0,
            late_ms: 5,
            corrupt: 0,
            truncate: 0,
            replay: 0,
            repair: 10,
            passes: 1,
            carousel: false,
            spool_mounted: false,
            inbox_mounted: false,
            hook: None,
            bad_hooks: 0,
            wait_for_missing_ms: None,
            little_memory: false,
            little_retained: false,
            fsync_each: false,
            neighbour: false,
            lanes: 1,
            encoders: 1,
        }
    }
}
