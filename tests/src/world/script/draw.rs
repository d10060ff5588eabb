//! Derives a script from a seed.
//!
//! Kinds of events that were added later have their own random generator and come last in the numbering, so that the meaning of
//! old seeds does not change.

use super::{Cut, Event, Fault, Forgery, Options, Script, Side, What};
use crate::rng::Rng;
use crate::simdisk::Op;

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
const ATTACKS: [Forgery; 6] =
    [Forgery::Replay, Forgery::Mangle, Forgery::Extremes, Forgery::Scatter, Forgery::Flood, Forgery::Contradict];
const DAY_MS: u64 = 86_400_000;
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
    /// The script for a seed.
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
        // These are numbered after all others and have their own generators: without them, the script is what it was before they
        // were added.
        let forged = forgeries(seed, span);
        options.neighbour = forged.neighbour;
        let lanes = Lanes::of(seed, span);
        (options.lanes, options.encoders) = (lanes.lanes, lanes.encoders);
        let wild = attacks(seed, span, &mut options);
        let events = events
            .into_iter()
            .chain(forged.events)
            .chain(lanes.events)
            .chain(trials(seed, span))
            .chain(wild)
            .enumerate();
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
            ..Self::default()
        }
    }
}

struct Forged {
    neighbour: bool,
    events: Vec<(u64, What)>,
}

/// The numbers of lanes and encoders, and dark fibres.
struct Lanes {
    lanes: usize,
    encoders: usize,
    events: Vec<(u64, What)>,
}

impl Lanes {
    /// In a quarter of the seeds, other numbers than one.
    fn of(seed: u64, span: u64) -> Self {
        let mut rng = Rng::new(seed ^ 0x1a_4e55);
        if !rng.chance(250) {
            return Self { lanes: 1, encoders: 1, events: Vec::new() };
        }
        let lanes = pick(&mut rng, &[1, 2, 3, 4]);
        let encoders = pick(&mut rng, &[0, 1, 2, 3, 4]);
        let mut events = Vec::new();
        if rng.chance(600) {
            for _ in 0..1 + rng.below(3) {
                let lane = usize::try_from(rng.below(lanes as u64)).expect("small");
                let what = What::Lane { lane, stuck: rng.chance(300), for_ms: 50 + rng.below(8_000) };
                events.push((rng.below(span), what));
            }
        }
        Self { lanes, encoders, events }
    }
}

/// In some seeds, disks with slow single operations; in some, clocks that jump far.
fn trials(seed: u64, span: u64) -> Vec<(u64, What)> {
    let mut rng = Rng::new(seed ^ 0x0721_4a15);
    let mut events = Vec::new();
    if rng.chance(120) {
        for _ in 0..1 + rng.below(2) {
            let side = if rng.chance(700) { Side::High } else { Side::Low };
            let often = pick(&mut rng, &[5, 50, 400]);
            events.push((rng.below(span), What::Late { side, often, for_ms: 500 + rng.below(12_000) }));
        }
    }
    if rng.chance(100) {
        for _ in 0..1 + rng.below(4) {
            let most = pick(&mut rng, &[DAY_MS, 30 * DAY_MS, 365 * DAY_MS, 20 * 365 * DAY_MS]);
            let by = i64::try_from(rng.below(most)).expect("some years");
            let by_ms = if rng.chance(500) { -by } else { by };
            events.push((rng.below(span), What::Jump { side: side(&mut rng), by_ms }));
        }
    }
    events
}

/// In some seeds, further attacks by the peer.
fn attacks(seed: u64, span: u64, options: &mut Options) -> Vec<(u64, What)> {
    let mut rng = Rng::new(seed ^ 0xa77_ac45);
    if !rng.chance(150) {
        return Vec::new();
    }
    options.neighbour |= rng.chance(500);
    let attack = |rng: &mut Rng| {
        let what = if rng.chance(700) { pick(rng, &ATTACKS) } else { pick(rng, &FORGERIES) };
        let for_ms = 1 + rng.below(8_000);
        (rng.below(span), What::Forge { what, times: 1 + rng.below(20), for_ms })
    };
    (0..1 + rng.below(6)).map(|_| attack(&mut rng)).collect()
}

fn pick<T: Copy>(rng: &mut Rng, of: &[T]) -> T {
    of[usize::try_from(rng.below(of.len() as u64)).expect("few")]
}

/// In three of ten seeds, forgeries by the peer.
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
