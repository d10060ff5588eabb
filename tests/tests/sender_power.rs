//! Runs the sender's engine on a disk that loses power at every single operation. Whatever a cut leaves, the same bundles go out
//! under the same sequences, and nothing that was dropped is lost.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use checkvalve_host::disk::Disk;
use checkvalve_protocol::crypto::SigningKey;
use checkvalve_protocol::id::ChannelName;
use checkvalve_protocol::transmit::{Link, Parameters};
use checkvalve_sender::bundle::Reader;
use checkvalve_sender::engine::{BundleState, Engine, Now, Rules, Setup};
use checkvalve_sender::pipeline::{Finished, Job};
use checkvalve_sender::spool::Seen;
use checkvalve_tests::simdisk::SimDisk;

const GOOD: [(&str, &[u8]); 3] = [("one", b"1"), ("two", &[2; 5_000]), ("three", b"")];

fn channel() -> ChannelName {
    ChannelName::new("a").unwrap()
}

/// A transmission: the bundle's name, sequence and announce, and the ESIs that it may have used.
type Sent = (String, u64, [u8; 32], std::ops::Range<u32>);

struct Low {
    disk: SimDisk,
    now: Now,
    sent: Vec<Sent>,
    runs: u64,
}

impl Low {
    fn new(seed: u64) -> Self {
        let disk = SimDisk::new(seed);
        for dir in ["/spool", "/spool/a", "/state", "/place"] {
            disk.create_dir(Path::new(dir), 0o755).unwrap();
        }
        disk.sync_fs(Path::new("/")).unwrap();
        Self { disk, now: Now { wall_ms: 1_700_000_000_000, mono_ms: 0 }, sent: Vec::new(), runs: 0 }
    }

    fn disk(&self) -> Arc<dyn Disk> {
        Arc::new(self.disk.clone())
    }

    fn open(&mut self) -> Engine {
        self.runs += 1;
        self.now.mono_ms = 0;
        let mut id = self.runs << 32;
        let link =
            Link { mtu: 1_500, rate: 900_000_000, repair: 0.05, burst: Duration::from_millis(10), memory: 96 << 20 };
        let setup = Setup {
            disk: self.disk(),
            spool: "/spool".into(),
            state: "/state".into(),
            channels: [(channel(), Rules { passes: 2, ..Rules::default() })].into(),
            settle_ms: 2_000,
            rescan_ms: 10_000,
            retain_bytes: u64::MAX,
            retain_ms: u64::MAX,
            key: Arc::new(SigningKey::from_seed([1; 32])),
            parameters: Parameters::derive(&link).unwrap(),
            random: Box::new(move || {
                id += 1;
                id
            }),
        };
        Engine::open(setup, self.now).unwrap()
    }

    /// Drops all bundles like a careful program: makes them durable under another name, then renames them.
    fn drop_all(&mut self, engine: &mut Engine) {
        let place = |name: &str| Path::new("/place").join(name);
        for (name, content) in GOOD {
            self.disk.create_new(&place(name), 0o644).unwrap().write_all_at(content, 0).unwrap();
        }
        self.disk.create_dir(&place("bad"), 0o755).unwrap();
        self.disk.symlink(b"/etc", &place("bad/link")).unwrap();
        self.disk.sync_fs(Path::new("/")).unwrap();
        for name in ["one", "bad", "two", "three"] {
            self.disk.rename(&place(name), &Path::new("/spool/a").join(name)).unwrap();
            engine.seen((channel(), name.into()), Seen::Renamed, self.now);
        }
        self.disk.sync_dir(Path::new("/spool/a")).unwrap();
        self.disk.sync_dir(Path::new("/place")).unwrap();
    }

    /// Runs until nothing is left to do for `ms` milliseconds.
    fn run(&mut self, engine: &mut Engine, ms: u64) {
        let end = self.now.mono_ms + ms;
        while self.now.mono_ms <= end {
            let actions = engine.step(self.now);
            let busy = !actions.jobs.is_empty() || !actions.work.is_empty();
            for work in actions.work {
                let done = work.run(&self.disk());
                engine.done(done, self.now);
            }
            for job in actions.jobs {
                let id = job.order.bundle;
                let finished = self.send(job);
                engine.finished(id, finished, self.now);
            }
            if !busy {
                let step = actions.wake_ms.max(self.now.mono_ms + 1) - self.now.mono_ms;
                self.now = Now { wall_ms: self.now.wall_ms + step, mono_ms: self.now.mono_ms + step };
            }
        }
    }

    fn send(&mut self, job: Job) -> Finished {
        let name = String::from_utf8(job.plan.announce.name.clone()).unwrap();
        // From now on it may be on the wire, even if reading it fails.
        self.sent.push((name, job.order.sequence, job.order.announce_digest, job.order.first_esi..job.esi_limit));
        let mut reader = Reader::new(self.disk(), Arc::clone(&job.plan), job.root.clone());
        let mut buf = [0; 1_000];
        loop {
            match reader.read(&mut buf) {
                Ok(n) if n == buf.len() => {}
                Ok(_) => break,
                Err(reason) => return Finished::Failed { reason },
            }
        }
        match reader.finish() {
            Ok(hashes) => Finished::Transmitted { hashes },
            Err(reason) => Finished::Failed { reason },
        }
    }

    fn check(&self, engine: &Engine, context: &str) {
        let mut announces: BTreeMap<u64, BTreeSet<[u8; 32]>> = BTreeMap::new();
        let mut sequences: BTreeMap<&str, BTreeSet<u64>> = BTreeMap::new();
        let mut esis: BTreeMap<u64, Vec<std::ops::Range<u32>>> = BTreeMap::new();
        for (name, sequence, announce, used) in &self.sent {
            announces.entry(*sequence).or_default().insert(*announce);
            sequences.entry(name).or_default().insert(*sequence);
            esis.entry(*sequence).or_default().push(used.clone());
        }
        assert_eq!(announces.keys().copied().collect::<Vec<_>>(), [1, 2, 3], "{context}: no gaps");
        assert!(announces.values().all(|set| set.len() == 1), "{context}: a sequence for two contents");
        assert!(sequences.len() == 3 && sequences.values().all(|set| set.len() == 1), "{context}: {sequences:?}");
        for (sequence, mut used) in esis {
            used.sort_by_key(|range| range.start);
            assert!(used.windows(2).all(|w| w[0].end <= w[1].start), "{context}: ESIs of {sequence} twice: {used:?}");
        }
        let view = engine.view();
        assert!(view.troubles.is_empty(), "{context}: {:?}", view.troubles);
        let transmitted: Vec<_> = view.bundles.iter().filter(|b| b.state == BundleState::Transmitted).collect();
        assert_eq!(transmitted.len(), 3, "{context}: {:?}", view.bundles);
        for (name, content) in GOOD {
            let id = transmitted.iter().find(|b| b.name == name).map(|b| b.id.to_string()).unwrap();
            let path = Path::new("/state/bundles/a").join(id).join("content").join(name);
            let held = self.disk.tree(Path::new("/state")).into_iter().find(|found| found.path == path);
            assert_eq!(held.map(|found| found.bytes).as_deref(), Some(content), "{context}: {name}");
        }
        let tree = self.disk.tree(Path::new("/spool/a"));
        let failed: Vec<_> = tree.iter().map(|found| found.path.to_str().unwrap()).collect();
        let expected =
            ["/spool/a/.failed", "/spool/a/.failed/bad", "/spool/a/.failed/bad/link", "/spool/a/.failed/bad.reason"];
        assert_eq!(failed, expected, "{context}");
        assert!(self.disk.tree(Path::new("/place")).is_empty(), "{context}");
    }
}

/// Plays the scene with a power cut at operation `nth` and, with `again`, another one that many operations into the next start.
/// Returns whether the power was cut at all.
fn scene(seed: u64, nth: u64, again: Option<u64>) -> bool {
    let mut low = Low::new(seed);
    let mut engine = low.open();
    low.drop_all(&mut engine);
    low.disk.heal();
    low.disk.cut_power_at(nth);
    let disk = low.disk.clone();
    let whole = SimDisk::until_power_cut(|| low.run(&mut engine, 60_000)).is_some();
    drop(engine);
    disk.crash(seed ^ nth);
    if let Some(again) = again {
        disk.cut_power_at(again);
        let run = SimDisk::until_power_cut(|| {
            let mut engine = low.open();
            low.run(&mut engine, 60_000);
        });
        if run.is_none() {
            disk.crash(seed ^ nth ^ (again << 20));
        }
        disk.heal();
    }
    let mut engine = low.open();
    low.run(&mut engine, 60_000);
    low.check(&engine, &format!("seed {seed}, cut at {nth}, then at {again:?}"));
    !whole
}

#[test]
fn the_power_may_go_at_any_operation() {
    for seed in 0..8 {
        let mut nth = 0;
        while scene(seed, nth, None) {
            nth += 1;
        }
        assert!(nth > 50, "{nth} operations");
    }
}

#[test]
fn and_again_while_the_daemon_mends_what_it_finds() {
    for seed in 0..120 {
        let (nth, again) = (seed * 7 % 130, seed * 31 % 97);
        scene(seed + 1_000, nth, Some(again));
    }
}
