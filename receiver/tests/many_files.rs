//! A bundle of very many empty files, from its announce to the end of its hook: the memory that it takes, alone in this process so
//! that it can be measured.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use checkvalve_host::disk::{Disk, OsDisk};
use checkvalve_protocol::admit::Trust;
use checkvalve_protocol::crypto::{SigningKey, TrustStore};
use checkvalve_protocol::id::{BundleId, ChannelName};
use checkvalve_protocol::limits::MAX_ENTRIES;
use checkvalve_protocol::manifest::{Announce, Entries, Entry, EntryKind, Hashes, Outcome, Timestamp};
use checkvalve_protocol::partition::Oti;
use checkvalve_protocol::path::SafePath;
use checkvalve_protocol::wire::ObjectKind;
use checkvalve_receiver::delivery::HookRun;
use checkvalve_receiver::hook::input::Manifest;
use checkvalve_receiver::hook::{self, HookPolicy};
use checkvalve_receiver::inbox::{Address, Durability, Inbox, check};
use checkvalve_receiver::store::space::{Limits, Share, Space};
use checkvalve_receiver::store::{CROWD, Store};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Tells [`make_a_bundle`] how many entries, and where.
const MAKE: &str = "CHECKVALVE_MAKE_BUNDLE";
/// Tells a half of the test what it is to do.
const MEASURE: &str = "CHECKVALVE_MEASURE_BUNDLE";

fn resident(field: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

/// Says what a step took at its peak, beyond `before` the first.
fn peak(step: &str, before: u64, since: Instant) -> u64 {
    let peak = resident("VmHWM:").saturating_sub(before);
    println!("{step}: peak {} MiB, {:.1} s", peak >> 20, since.elapsed().as_secs_f64());
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
    peak
}

fn key() -> SigningKey {
    SigningKey::from_seed([1; 32])
}

/// Puts the signed announce and hashes of a bundle of `count` entries into `dir`. By another process, so that what making them
/// takes is not in the memory of this one.
fn made_elsewhere(dir: &Path, count: usize) {
    let made = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "make_a_bundle"])
        .env(MAKE, format!("{count} {}", dir.display()))
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
}

#[test]
fn make_a_bundle() {
    // A part of the others, which run it alone.
    let Ok(what) = std::env::var(MAKE) else { return };
    let (count, dir) = what.split_once(' ').unwrap();
    make(Path::new(dir), count.parse().unwrap(), &key());
}

fn make(dir: &Path, count: usize, key: &SigningKey) {
    let entry = |path: String, kind| Entry {
        path: SafePath::new(path).unwrap(),
        mtime: Timestamp { secs: 1_700_000_000, nanos: 123_456_789 },
        kind,
    };
    let mut entries = Entries::new();
    entries.push(entry("release-2024.11".into(), EntryKind::Directory { mode: 0o755 }));
    for n in 0..count - 1 {
        let (dir, file) = (n / 1_000, n % 1_000);
        entries.push(match file {
            0 => entry(format!("release-2024.11/p-{dir:04}"), EntryKind::Directory { mode: 0o755 }),
            _ => {
                let kind = EntryKind::File { size: 0, mode: 0o644 };
                entry(format!("release-2024.11/p-{dir:04}/{file:06}"), kind)
            }
        });
    }
    let announce = Announce {
        bundle: BundleId::new(1, key.public().id()),
        channel: ChannelName::new("default").unwrap(),
        sequence: 1,
        name: b"release-2024.11".to_vec(),
        created_ms: 0,
        symbol_size: 1_408,
        block_symbols: 128,
        entries,
    };
    let files = vec![*blake3::hash(&[]).as_bytes(); announce.files().count()];
    let signed = announce.sign(key).unwrap();
    let outcome = Outcome::Complete { files };
    let hashes = Hashes { bundle: announce.bundle, announce: blake3::hash(&signed).into(), outcome };
    std::fs::write(dir.join("announce"), signed).unwrap();
    std::fs::write(dir.join("hashes"), hashes.sign(key).unwrap()).unwrap();
}

/// Hands an object over block by block; gives it once it is whole.
fn receive(store: &Store, id: BundleId, kind: ObjectKind, from: &Path) -> Vec<u8> {
    let (file, len) = (OsDisk.open_read(from).unwrap(), std::fs::metadata(from).unwrap().len());
    let oti = Oti::new(len, 1_408, 128).unwrap();
    let staged = store.get(id).unwrap();
    for sbn in 0..oti.blocks() {
        let mut block = vec![0; oti.block_len(sbn).unwrap()];
        file.read_at(&mut block, oti.block_offset(sbn).unwrap()).unwrap();
        if let Some(whole) = store.assemble(&staged, kind, &oti, sbn, &block).unwrap() {
            return whole;
        }
    }
    panic!("it never got whole")
}

/// One measures at a time: a sync of one's file system would wait for the other's files.
static ALONE: Mutex<()> = Mutex::new(());

/// Each of the two halves in a process of its own: memory is measured by the process, and what the allocator keeps of the first
/// half is not a part of the second.
fn takes_less(count: usize, budget: u64) {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let dir = tempfile::tempdir().unwrap();
    made_elsewhere(dir.path(), count);
    for half in ["receive_and_publish", "check_and_install"] {
        let measured = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", half, "--nocapture"])
            .env(MEASURE, format!("{count} {budget} {}", dir.path().display()))
            .output()
            .unwrap();
        let printed = String::from_utf8_lossy(&measured.stdout);
        println!("{printed}");
        assert!(measured.status.success(), "{}", String::from_utf8_lossy(&measured.stderr));
        assert!(printed.contains("peak") && printed.contains("1 passed"), "{half} measured nothing");
    }
}

/// What [`takes_less`] asks this process to do: how many entries, how many bytes they may take, and where they are. None: it is run
/// with all the others, and has nothing to do.
fn asked() -> Option<(usize, u64, PathBuf)> {
    let what = std::env::var(MEASURE).ok()?;
    let mut what = what.splitn(3, ' ');
    let mut next = || what.next().unwrap();
    Some((next().parse().unwrap(), next().parse().unwrap(), next().into()))
}

/// Measures steps.
struct Steps {
    before: u64,
    since: Instant,
    peaks: Vec<u64>,
}

impl Steps {
    fn begin() -> Self {
        std::thread::sleep(Duration::from_millis(200)); // the allocator gives back what is free
        std::fs::write("/proc/self/clear_refs", "5").unwrap();
        Self { before: resident("VmRSS:"), since: Instant::now(), peaks: Vec::new() }
    }

    fn end(&mut self, name: &str) {
        self.peaks.push(peak(name, self.before, self.since));
        self.since = Instant::now();
    }
}

impl Drop for Steps {
    fn drop(&mut self) {
        println!("{:?}", self.peaks);
    }
}

fn trusted() -> TrustStore {
    let mut trust = TrustStore::new();
    trust.insert(key().public(), "k");
    trust
}

fn place() -> Address {
    Address {
        id: BundleId::new(1, key().public().id()),
        channel: Some(ChannelName::new("default").unwrap()),
        sequence: 1,
    }
}

fn inbox(disk: Arc<dyn Disk>, dir: &Path) -> Inbox {
    let at = |name: &str| dir.join(name);
    Inbox::new(disk, at("inbox"), at("quarantine"), at("manifests"), at("staging"), Durability::Syncfs)
}

#[test]
fn receive_and_publish() {
    let Some((_, budget, dir)) = asked() else { return };
    let (place, trust, at) = (place(), trusted(), |name: &str| dir.join(name));
    let (id, channel) = (place.id, place.channel.clone().unwrap());
    for name in ["inbox", "quarantine", "manifests"] {
        std::fs::create_dir(at(name)).unwrap();
    }
    let disk: Arc<dyn Disk> = Arc::new(OsDisk);
    let space = Space::new(Limits::new(0, u64::MAX));
    let store = Store::open(Arc::clone(&disk), &at("staging"), [1; 16], space, CROWD).unwrap();
    let inbox = inbox(disk, &dir);

    let mut steps = Steps::begin();
    let staged = store.begin_signed(id, &channel, Share::ALL);
    let bytes = receive(&store, id, ObjectKind::Announce, &at("announce"));
    let opened = Announce::open(&bytes, &trust).unwrap();
    store.adopt(&staged, Arc::new(opened.value), &bytes).unwrap();
    drop(bytes);
    steps.end("announced");
    let bytes = receive(&store, id, ObjectKind::Hashes, &at("hashes"));
    assert!(Hashes::open(&bytes, &trust).is_ok());
    store.keep_object(&staged, ObjectKind::Hashes, &bytes).unwrap();
    drop(bytes);
    steps.end("hashes");
    assert!(store.catch_up(&staged, u64::MAX).unwrap());
    let tree = store.tree(&staged).unwrap().unwrap();
    {
        let bytes = store.object(&staged, ObjectKind::Hashes, 64 << 20).unwrap().unwrap();
        let signed = Hashes::open(&bytes, &trust).unwrap().value;
        drop(bytes);
        let Outcome::Complete { files } = signed.outcome else { panic!() };
        assert_eq!(store.differing(&staged, &tree, &files).unwrap(), [0; 0]);
    }
    steps.end("proven");
    inbox.finish(&tree, &|sync| sync()).unwrap();
    steps.end("made");
    inbox.record(&place, &staged.object(ObjectKind::Announce), &staged.object(ObjectKind::Hashes)).unwrap();
    inbox.settle(&tree).unwrap();
    inbox.publish(tree.root(), &channel, 1).unwrap();
    steps.end("published");
    store.remove(id).unwrap();
    drop((tree, staged));
    assert_eq!(store.space().used(), Default::default());
    assert!(steps.peaks.iter().all(|&peak| peak < budget));
}

#[test]
fn check_and_install() {
    let Some((count, budget, dir)) = asked() else { return };
    let (place, at) = (place(), |name: &str| dir.join(name));
    let (id, channel) = (place.id, place.channel.clone().unwrap());
    let inbox = inbox(Arc::new(OsDisk), &dir);
    let mut steps = Steps::begin();
    let (announce, digests) = inbox.manifest(&place, &Trust::new(trusted())).unwrap();
    steps.end("manifest");
    check::check(&OsDisk, &inbox.path(&channel, 1), &announce, &digests).unwrap();
    steps.end("checked");

    let install = at("hook");
    std::fs::write(&install, "#!/bin/sh\nsleep 0.5; cat >\"$0.json\"\n").unwrap();
    std::fs::set_permissions(&install, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let second = Duration::from_secs(1);
    let policy = HookPolicy { install, timeout: 300 * second, backoff: second, backoff_max: second, retries: None };
    let run = HookRun {
        policy: Arc::new(policy),
        id,
        channel: channel.clone(),
        sequence: 1,
        name: announce.name.clone(),
        directory: inbox.path(&channel, 1),
        previous: None,
        signer: None,
        attempt: 1,
    };
    let manifest = Manifest { announce, digests };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let ended = runtime.block_on(hook::process::run(&run, manifest, &at("logs"), std::future::pending()));
    assert_eq!(ended, hook::Outcome::Done);
    steps.end("installed");
    let written = std::fs::metadata(at("hook.json")).unwrap().len();
    println!("{written} bytes of input");
    assert!(written > count as u64 * 100);
    assert!(steps.peaks.iter().all(|&peak| peak < budget));
}

#[test]
fn it_takes_little_memory() {
    takes_less(1 << 15, 24 << 20);
}

#[test]
fn the_largest_takes_less_than_200_mib() {
    takes_less(MAX_ENTRIES, 180 << 20);
}
