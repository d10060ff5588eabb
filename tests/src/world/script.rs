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
    /// Decides whatever the rest leaves open.
    pub seed: u64,
    /// What holds all the time.
    pub options: Options,
    /// What happens, in order of time. The number of each in the unshrunk script is its name.
    pub events: Vec<Event>,
}

/// Something that happens.
#[derive(Debug, Clone)]
pub struct Event {
    /// Its number in the script as it was made.
    pub number: usize,
    /// Simulated milliseconds since the start.
    pub at_ms: u64,
    /// What.
    pub what: What,
}

/// What happens.
#[derive(Debug, Clone)]
pub enum What {
    /// An operator drops a bundle: a file (`files` 0) or a tree of so many files, of about `size` bytes in all.
    Drop {
        /// Which channel.
        channel: usize,
        /// About how many bytes.
        size: u64,
        /// How many files; 0 is a bundle that is one file.
        files: u64,
        /// Renamed in, or written in place.
        renamed: bool,
        /// Whether inotify tells.
        told: bool,
    },
    /// A process dies and comes back.
    Crash {
        /// Which.
        side: Side,
        /// How.
        cut: Cut,
        /// Disk operations from now; None: between two steps, at once.
        after_ops: Option<u64>,
        /// How long it is away, in milliseconds.
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
    /// Nothing arrives for so long.
    Outage {
        /// In milliseconds.
        for_ms: u64,
    },
    /// Somebody sets a clock.
    Jump {
        /// Whose.
        side: Side,
        /// By how much, in milliseconds.
        by_ms: i64,
    },
    /// A disk takes its time: nothing that waits for it goes on.
    Slow {
        /// Which.
        side: Side,
        /// How long, in milliseconds.
        for_ms: u64,
    },
    /// Some operations of a disk take long, each by itself, while others go on.
    Late {
        /// Which.
        side: Side,
        /// How many, of 1,000.
        often: u32,
        /// How long, in milliseconds.
        for_ms: u64,
    },
    /// A fibre is dark.
    Lane {
        /// Which of those that there are.
        lane: usize,
        /// Nothing can be handed to it, and it is sent later; otherwise it is sent, and vanishes.
        stuck: bool,
        /// How long, in milliseconds.
        for_ms: u64,
    },
    /// A person carries tickets for all that is lacking.
    Tickets,
    /// A person has something sent again for no reason.
    Resend {
        /// Which of all that are there.
        pick: u64,
    },
    /// Somebody who holds the link key sends beside the sender.
    Forge {
        /// What.
        what: Forgery,
        /// How often.
        times: u64,
        /// In how long, in milliseconds.
        for_ms: u64,
    },
}

/// What somebody sends who holds the link key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Forgery {
    /// Symbols of bundles that there are none of.
    Junk,
    /// Whole announces and hashes that are none, of the sender's bundles and of none.
    Garbage,
    /// Symbols of the sender's bundles under an OTI that is not theirs.
    Otis,
    /// Beacons that nobody, or another key signed, and the sender's own in another session.
    Beacons,
    /// Withdrawals by a key that may not withdraw.
    Withdrawals,
    /// Announces that its own key signed, of its own channel and of others.
    Announces,
    /// Wrong symbols of the sender's bundles in the right place: these have to be asked for again.
    Spoil,
    /// What the sender sent, again: stretches of a session or all of it, in any order.
    Replay,
    /// What the sender sent, shortened, lengthened, and sealed again as something else.
    Mangle,
    /// Fields of symbols and beacons at their least and most.
    Extremes,
    /// One symbol of everything.
    Scatter,
    /// Many symbols at once, each of another bundle.
    Flood,
    /// Bundles of its own about which it says one thing and another.
    Contradict,
}

/// How a process dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// It is told to stop.
    Stop,
    /// SIGKILL.
    Kill,
    /// The power goes.
    Power,
}

/// How a disk misbehaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The operation after so many fails so.
    Nth(u64, i32),
    /// The operation of this kind after so many others fails so.
    Op(Op, u64, i32),
    /// All of this kind fail so.
    Every(Op, i32),
    /// All operations fail so, after so many.
    From(u64, i32),
    /// There is no room.
    Full,
    /// It is read-only.
    ReadOnly,
}

/// What holds all the time. The default is a perfect line and nothing special.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Datagrams lost at random, of 1,000.
    pub loss: u32,
    /// Gilbert–Elliott: of 10,000 datagrams so many begin a burst, and of 1,000 in a burst so many end it.
    pub burst: Option<(u32, u32)>,
    /// Datagrams that come twice, of 1,000.
    pub duplicate: u32,
    /// Datagrams that are late, of 1,000, by up to [`Options::late_ms`].
    pub reorder: u32,
    /// In milliseconds.
    pub late_ms: u64,
    /// Datagrams with a wrong bit, of 1,000.
    pub corrupt: u32,
    /// Datagrams that are cut short, of 1,000.
    pub truncate: u32,
    /// How often an old datagram comes again, of 1,000.
    pub replay: u32,
    /// Repair symbols in per cent.
    pub repair: u32,
    /// Passes of each bundle.
    pub passes: u32,
    /// Whether one channel is a carousel.
    pub carousel: bool,
    /// Whether the sender's spool is a file system of its own.
    pub spool_mounted: bool,
    /// Whether the inbox is one.
    pub inbox_mounted: bool,
    /// Whether bundles have an install hook, and how often it is started again at most (0: for ever).
    pub hook: Option<u32>,
    /// Hook runs that do not end well, of 1,000.
    pub bad_hooks: u32,
    /// How long a missing bundle is waited for, in milliseconds.
    pub wait_for_missing_ms: Option<u64>,
    /// Whether the receiver has little memory for blocks.
    pub little_memory: bool,
    /// Whether the sender holds little of what it has sent.
    pub little_retained: bool,
    /// Whether every file is synced by itself.
    pub fsync_each: bool,
    /// Whether the receiver trusts the key of who forges, for channels other than the sender's.
    pub neighbour: bool,
    /// How many lanes there are, 1 or more.
    pub lanes: usize,
    /// How many threads encode; with none, the one that reads does it.
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
