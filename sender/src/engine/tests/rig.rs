//! What stands around the engine in its tests.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use checkvalve_host::disk::fault::FailNth;
use checkvalve_host::disk::{Disk, OsDisk};
use checkvalve_protocol::crypto::SigningKey;
use checkvalve_protocol::id::{BundleId, ChannelName, KeyId};
use checkvalve_protocol::manifest::Announce;
use checkvalve_protocol::transmit::{Link, Parameters, Selection};

use crate::bundle::Reader;
use crate::engine::{BundleState, BundleView, Engine, Now, Rules, Setup};
use crate::pipeline::{Finished, Job};
use crate::spool::Seen;

pub(super) fn channel(name: &str) -> ChannelName {
    ChannelName::new(name).unwrap()
}

/// A transmission that was made.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Sent {
    pub(super) bundle: BundleId,
    pub(super) channel: String,
    pub(super) sequence: u64,
    pub(super) name: String,
    pub(super) announce: [u8; 32],
    pub(super) pass: u32,
    pub(super) selection: Selection,
    pub(super) esis: std::ops::Range<u32>,
    pub(super) symbol_size: u16,
    /// None: withdrawn.
    pub(super) hashes: Option<Vec<[u8; 32]>>,
    pub(super) knew_hashes: bool,
}

pub(super) struct Rig {
    pub(super) dir: tempfile::TempDir,
    pub(super) disk: Arc<FailNth>,
    pub(super) rules: BTreeMap<ChannelName, Rules>,
    pub(super) now: Now,
    pub(super) retain_bytes: u64,
    pub(super) retain_ms: u64,
    pub(super) mtu: u16,
    pub(super) key: u8,
    /// All that was ever sent, over all runs.
    pub(super) sent: Vec<Sent>,
    /// What the other side was told will not come, over all runs.
    pub(super) withdrew: Vec<BundleId>,
    /// Whether jobs end by themselves.
    pub(super) running: bool,
    pub(super) jobs: Vec<Job>,
    pub(super) engine: Option<Engine>,
    /// The operation of the disk that failed.
    pub(super) operation: &'static str,
    ids: u64,
}

impl Rig {
    /// With the channels `a` and `b`, not opened yet.
    pub(super) fn closed() -> Self {
        // Thousands of syncs: in memory they cost nothing.
        let memory = Path::new("/dev/shm");
        let parent = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
        let dir = tempfile::tempdir_in(parent).unwrap();
        fs::create_dir(dir.path().join("spool")).unwrap();
        fs::create_dir(dir.path().join("state")).unwrap();
        fs::create_dir(dir.path().join("place")).unwrap();
        Self {
            dir,
            disk: Arc::new(FailNth::new(Arc::new(OsDisk))),
            rules: [(channel("a"), Rules::default()), (channel("b"), Rules::default())].into(),
            now: Now { wall_ms: 1_700_000_000_000, mono_ms: 1_000 },
            retain_bytes: u64::MAX,
            retain_ms: u64::MAX,
            mtu: 1_500,
            key: 1,
            sent: Vec::new(),
            withdrew: Vec::new(),
            running: true,
            jobs: Vec::new(),
            engine: None,
            operation: "",
            ids: 0,
        }
    }

    pub(super) fn new() -> Self {
        let mut rig = Self::closed();
        rig.open();
        rig
    }

    pub(super) fn open(&mut self) {
        assert!(self.try_open(), "the engine opens");
    }

    /// A new process.
    pub(super) fn try_open(&mut self) -> bool {
        self.engine = None;
        self.jobs.clear();
        self.now.mono_ms = 1_000;
        self.now.wall_ms += 5_000;
        // As random numbers would not be the same in each process.
        self.ids += 1_000_000;
        let mut id = self.ids;
        let setup = Setup {
            disk: Arc::clone(&self.disk) as Arc<dyn Disk>,
            spool: self.path("spool"),
            state: self.path("state"),
            channels: self.rules.clone(),
            settle_ms: 2_000,
            rescan_ms: 10_000,
            retain_bytes: self.retain_bytes,
            retain_ms: self.retain_ms,
            key: Arc::new(SigningKey::from_seed([self.key; 32])),
            parameters: self.parameters(),
            random: Box::new(move || {
                id += 1;
                id
            }),
        };
        self.engine = Engine::open(setup, self.now).ok();
        self.engine.is_some()
    }

    pub(super) fn parameters(&self) -> Parameters {
        let link = Link {
            mtu: self.mtu,
            rate: 900_000_000,
            repair: 0.05,
            burst: std::time::Duration::from_millis(10),
            memory: 128 << 20,
        };
        Parameters::derive(&link).unwrap()
    }

    pub(super) fn signer(&self) -> KeyId {
        SigningKey::from_seed([self.key; 32]).public().id()
    }

    pub(super) fn path(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    pub(super) fn engine(&mut self) -> &mut Engine {
        self.engine.as_mut().unwrap()
    }

    /// Renames a file with this content into a channel's folder.
    pub(super) fn drop_file(&mut self, channel_name: &str, name: &str, content: &[u8]) {
        fs::write(self.path("place/x"), content).unwrap();
        self.drop_in(channel_name, name, "x");
    }

    /// Renames what is called `from` in `place` into a channel's folder, and tells the engine.
    pub(super) fn drop_in(&mut self, channel_name: &str, name: &str, from: &str) {
        let to = self.path("spool").join(channel_name).join(name);
        fs::rename(self.path("place").join(from), to).unwrap();
        let now = self.now;
        if let Some(engine) = &mut self.engine {
            engine.seen((channel(channel_name), name.into()), Seen::Renamed, now);
        }
    }

    /// Lets the engine do all that it wants to for `ms` milliseconds.
    pub(super) fn run(&mut self, ms: u64) {
        let end = self.now.mono_ms + ms;
        for _ in 0..10_000 {
            let now = self.now;
            let actions = self.engine().step(now);
            self.engine().assert_consistent();
            for job in actions.jobs {
                job.order.progress.blocks_total.store(1, std::sync::atomic::Ordering::Relaxed);
                self.jobs.push(job);
            }
            let idle = actions.work.is_empty() && (self.jobs.is_empty() || !self.running);
            let disk = Arc::clone(&self.disk) as Arc<dyn Disk>;
            for work in actions.work {
                let done = work.run(&disk);
                self.engine().done(done, now);
            }
            while self.running && !self.jobs.is_empty() {
                self.finish_job(0);
            }
            if idle {
                if actions.wake_ms > end {
                    self.pass(end - self.now.mono_ms);
                    return;
                }
                self.pass(actions.wake_ms - self.now.mono_ms);
            }
        }
        panic!("the engine never rests");
    }

    pub(super) fn pass(&mut self, ms: u64) {
        self.now.mono_ms += ms;
        self.now.wall_ms += ms;
    }

    /// Does what the pipeline would.
    pub(super) fn finish_job(&mut self, index: usize) {
        let job = self.jobs.remove(index);
        let now = self.now;
        let announce = Announce::peek(&job.order.announce).unwrap();
        assert_eq!((announce.bundle, announce.sequence), (job.order.bundle, job.order.sequence));
        if job.order.withdrawn.is_none() {
            assert_eq!(
                (announce.symbol_size, announce.block_symbols),
                (job.order.symbol_size, job.order.block_symbols)
            );
        }
        if job.order.withdrawn.is_some() {
            self.withdrew.push(job.order.bundle);
            return self.engine().finished(job.order.bundle, Finished::Withdrawn, now);
        }
        let disk = Arc::clone(&self.disk) as Arc<dyn Disk>;
        let mut reader = Reader::new(disk, Arc::clone(&job.plan), job.root.clone());
        if let Some(hashes) = &job.known_hashes {
            reader = reader.expecting(Arc::clone(hashes));
        }
        let mut buf = vec![0; 4_096];
        let read = loop {
            match reader.read(&mut buf) {
                Ok(n) if n == buf.len() => {}
                Ok(_) => break reader.finish(),
                Err(error) => break Err(error),
            }
        };
        self.sent.push(Sent {
            bundle: job.order.bundle,
            channel: job.order.channel.to_string(),
            sequence: job.order.sequence,
            name: String::from_utf8_lossy(&job.plan.announce.name).into_owned(),
            announce: job.order.announce_digest,
            pass: job.order.pass,
            selection: job.order.selection,
            esis: job.order.first_esi..job.esi_limit,
            symbol_size: job.order.symbol_size,
            hashes: read.as_ref().ok().cloned(),
            knew_hashes: job.known_hashes.is_some(),
        });
        assert_eq!(blake3::hash(&job.order.announce), job.order.announce_digest);
        let finished = match read {
            Ok(hashes) => Finished::Transmitted { hashes },
            Err(reason) => Finished::Failed { reason },
        };
        self.engine().finished(job.order.bundle, finished, now);
    }

    pub(super) fn bundles(&mut self) -> Vec<BundleView> {
        self.engine().view().bundles
    }

    pub(super) fn states(&mut self) -> Vec<(String, Option<u64>, String, BundleState)> {
        let bundles = self.bundles();
        bundles.into_iter().map(|b| (b.channel.to_string(), b.sequence, b.name, b.state)).collect()
    }

    /// The names of what was sent, in order.
    pub(super) fn names(&self) -> Vec<&str> {
        self.sent.iter().map(|sent| sent.name.as_str()).collect()
    }

    pub(super) fn failed(&self, channel_name: &str) -> BTreeSet<String> {
        names(&self.path("spool").join(channel_name).join(".failed"))
    }
}

pub(super) fn names(dir: &Path) -> BTreeSet<String> {
    let Ok(entries) = fs::read_dir(dir) else { return BTreeSet::new() };
    entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect()
}
