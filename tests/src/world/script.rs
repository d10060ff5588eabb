//! What happens in a run, and when.

use crate::rng::Rng;
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
        }
    }
}

/// EIO, ENOSPC, EROFS, EMFILE, EDQUOT.
const ERRNOS: [i32; 5] = [5, 28, 30, 24, 122];
const FORGERIES: [Forgery; 7] = [
    Forgery::Junk,
    Forgery::Garbage,
    Forgery::Otis,
    Forgery::Beacons,
    Forgery::Withdrawals,
    Forgery::Announces,
    Forgery::Spoil,
];
const OPS: [Op; 14] = [
    Op::OpenRead,
    Op::CreateNew,
    Op::OpenRw,
    Op::Rename,
    Op::RenameNoreplace,
    Op::ReadAt,
    Op::WriteAllAt,
    Op::Append,
    Op::SyncData,
    Op::SyncAll,
    Op::SyncDir,
    Op::SyncFs,
    Op::Lstat,
    Op::RemoveTree,
];

impl Script {
    /// The script of a seed.
    pub fn of(seed: u64) -> Self {
        let mut rng = Rng::new(seed ^ 0x5c21_b7e5);
        let mut options = Options::of(&mut rng);
        let mut events = Vec::new();
        let span = 4_000 + rng.below(16_000);
        for _ in 0..2 + rng.below(5) {
            let at = rng.below(span);
            events.push((at, drop_of(&mut rng)));
        }
        let (crashes, faults, line) = (rng.chance(600), rng.chance(400), rng.chance(500));
        if crashes {
            for _ in 0..1 + rng.below(4) {
                events.push((rng.below(span), crash_of(&mut rng)));
            }
        }
        if faults {
            for _ in 0..1 + rng.below(3) {
                events.push((rng.below(span), fault_of(&mut rng)));
            }
        }
        if line {
            for _ in 0..1 + rng.below(2) {
                events.push((rng.below(span), What::Outage { for_ms: 100 + rng.below(6_000) }));
            }
        }
        for (often, make) in [
            (200, (|rng| What::Jump { side: side(rng), by_ms: jump(rng) }) as fn(&mut Rng) -> What),
            (200, |rng| What::Slow { side: side(rng), for_ms: 200 + rng.below(4_000) }),
            (300, |_| What::Tickets),
            (200, |rng| What::Resend { pick: rng.next_u64() }),
        ] {
            if rng.chance(often) {
                let what = make(&mut rng);
                events.push((rng.below(span * 2), what));
            }
        }
        events.sort_by_key(|(at, _)| *at);
        // Numbered after all others, from numbers of their own: without them a script is what it was before there were any.
        let forged = forgeries(seed, span);
        options.neighbour = forged.neighbour;
        let events = events.into_iter().chain(forged.events).enumerate();
        let events = events.map(|(number, (at_ms, what))| Event { number, at_ms, what });
        let mut events: Vec<Event> = events.collect();
        events.sort_by_key(|event| event.at_ms);
        Self { seed, options, events }
    }
}

impl Options {
    fn of(rng: &mut Rng) -> Self {
        let mut up_to = |often: u32, most: u64| {
            let (yes, n) = (rng.chance(often), rng.below(most + 1));
            if yes { u32::try_from(n).expect("small") } else { 0 }
        };
        Self {
            loss: up_to(500, 200),
            duplicate: up_to(300, 300),
            reorder: up_to(300, 500),
            corrupt: up_to(200, 50),
            truncate: up_to(200, 50),
            replay: up_to(200, 200),
            burst: (up_to(400, 2) > 0).then(|| (1 + up_to(1_000, 200), 20 + up_to(1_000, 500))),
            late_ms: u64::from(1 + up_to(1_000, 300)),
            repair: 5 + up_to(700, 45),
            passes: 1 + up_to(300, 2),
            carousel: up_to(100, 9) > 0,
            spool_mounted: up_to(250, 9) > 0,
            inbox_mounted: up_to(250, 9) > 0,
            hook: (up_to(800, 9) > 0).then(|| up_to(300, 3)),
            bad_hooks: up_to(400, 500),
            wait_for_missing_ms: (up_to(150, 9) > 0).then_some(15_000),
            little_memory: up_to(300, 9) > 0,
            little_retained: up_to(100, 9) > 0,
            fsync_each: up_to(400, 9) > 0,
            neighbour: false,
        }
    }
}

struct Forged {
    neighbour: bool,
    events: Vec<(u64, What)>,
}

/// What somebody forges in the run of a seed, in three of ten seeds.
fn forgeries(seed: u64, span: u64) -> Forged {
    let mut rng = Rng::new(seed ^ 0xf0_46e5);
    if !rng.chance(300) {
        return Forged { neighbour: false, events: Vec::new() };
    }
    let neighbour = rng.chance(600);
    let mut events = Vec::new();
    for _ in 0..1 + rng.below(5) {
        let what = FORGERIES[usize::try_from(rng.below(FORGERIES.len() as u64)).expect("small")];
        let for_ms = 100 + rng.below(8_000);
        events.push((rng.below(span), What::Forge { what, times: 1 + rng.below(40), for_ms }));
    }
    Forged { neighbour, events }
}

fn side(rng: &mut Rng) -> Side {
    if rng.chance(500) { Side::Low } else { Side::High }
}

fn drop_of(rng: &mut Rng) -> What {
    let most = [200, 3_000, 12_000, 40_000][usize::try_from(rng.below(4)).expect("small")];
    What::Drop {
        channel: usize::from(rng.chance(300)),
        size: rng.below(most),
        files: if rng.chance(500) { 1 + rng.below(8) } else { 0 },
        renamed: rng.chance(800),
        told: rng.chance(850),
    }
}

fn crash_of(rng: &mut Rng) -> What {
    let cut = [Cut::Stop, Cut::Kill, Cut::Kill, Cut::Power, Cut::Power][usize::try_from(rng.below(5)).expect("small")];
    let most = [5, 40, 300][usize::try_from(rng.below(3)).expect("small")];
    let after_ops = (cut != Cut::Stop && rng.chance(850)).then(|| rng.below(most));
    What::Crash {
        side: side(rng),
        cut,
        after_ops,
        down_ms: [0, 300, 5_000][usize::try_from(rng.below(3)).expect("small")],
    }
}

fn fault_of(rng: &mut Rng) -> What {
    let errno = ERRNOS[usize::try_from(rng.below(5)).expect("small")];
    let op = OPS[usize::try_from(rng.below(OPS.len() as u64)).expect("small")];
    let fault = match rng.below(8) {
        0 | 1 => Fault::Nth(rng.below(200), errno),
        2 | 3 => Fault::Op(op, rng.below(10), errno),
        4 => Fault::Every(op, errno),
        5 => Fault::From(rng.below(50), errno),
        6 => Fault::Full,
        _ => Fault::ReadOnly,
    };
    What::Disk { side: side(rng), fault, for_ms: 500 + rng.below(8_000) }
}

fn jump(rng: &mut Rng) -> i64 {
    let size = [2_000, 60_000, 3_600_000, 86_400_000][usize::try_from(rng.below(4)).expect("small")];
    let by = i64::try_from(rng.below(size)).expect("a day");
    if rng.chance(500) { -by } else { by }
}
