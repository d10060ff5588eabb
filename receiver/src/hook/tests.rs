use std::future::pending;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use checkvalve_protocol::id::{BundleId, KeyId};
use checkvalve_protocol::manifest::{Entry, EntryKind};

use super::*;
use crate::ledger::Signer;
use crate::testing::{Sample, default_channel, dir, entry};

struct Bench {
    dir: tempfile::TempDir,
    run: HookRun,
}

impl Bench {
    fn new(script: &str) -> Self {
        let dir = dir();
        let at = |name: &str| dir.path().join(name);
        std::fs::create_dir_all(at("inbox/default/00000003/tree")).unwrap();
        let install = at("hook");
        std::fs::write(&install, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&install, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let policy = HookPolicy {
            install,
            timeout: Duration::from_secs(20),
            backoff: Duration::from_secs(1),
            backoff_max: Duration::from_secs(300),
            retries: None,
        };
        let run = HookRun {
            policy: Arc::new(policy),
            id: BundleId(0xab),
            channel: default_channel(),
            sequence: 3,
            name: b"tree".to_vec(),
            directory: at("inbox/default/00000003"),
            previous: Some("/before".into()),
            signer: Some(Signer { key: KeyId([1; 8]), name: "ci".into() }),
            attempt: 1,
        };
        Self { dir, run }
    }

    fn timeout(mut self, timeout: Duration) -> Self {
        Arc::make_mut(&mut self.run.policy).timeout = timeout;
        self
    }

    async fn run(&self, stop: impl Future<Output = ()>) -> Outcome {
        let sample = Sample::tree(0xab, 3, &[10, 0]);
        let digests = sample.digests();
        self.run_with(input::Manifest { announce: sample.announce, digests }, stop).await
    }

    async fn run_with(&self, manifest: input::Manifest, stop: impl Future<Output = ()>) -> Outcome {
        process::run(&self.run, manifest, &self.dir.path().join("logs"), stop).await
    }

    /// The same with an input that is much longer than a pipe holds.
    fn outcome_of_many(&self) -> Outcome {
        block_on(self.run_with(many(50_000), pending()))
    }

    fn outcome(&self) -> Outcome {
        block_on(self.run(pending()))
    }

    fn log(&self) -> String {
        let (logs, run) = (self.dir.path().join("logs"), &self.run);
        let path = log::log_path(&logs, &run.channel, run.sequence, run.id, run.attempt);
        std::fs::read_to_string(path).unwrap()
    }

    fn read(&self, name: &str) -> Option<String> {
        std::fs::read_to_string(self.dir.path().join(name)).ok()
    }
}

/// Of a bundle of so many empty files.
fn many(count: usize) -> input::Manifest {
    let mut announce = Sample::tree(0xab, 3, &[]).announce;
    let file = |n| entry(&format!("tree/{n:08}/a name of some length"), EntryKind::File { size: 0, mode: 0o644 });
    announce.entries = (0..count).map(file).collect();
    input::Manifest { announce, digests: vec![[7; 32]; count] }
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

fn is_running(pid: &str) -> bool {
    let stat = std::fs::read_to_string(Path::new("/proc").join(pid.trim()).join("stat"));
    stat.is_ok_and(|stat| !stat.contains(") Z "))
}

#[test]
fn it_gets_what_the_contract_says() {
    let bench = Bench::new(
        "cd \"$(dirname \"$0\")\"; env >env; cat >stdin.json; echo \"$1\" >argument; echo out; echo err >&2",
    );
    assert_eq!(bench.outcome(), Outcome::Done);
    let env = bench.read("env").unwrap();
    for line in [
        "CHECKVALVE_BUNDLE_ID=00000000000000ab",
        "CHECKVALVE_CHANNEL=default",
        "CHECKVALVE_SEQUENCE=3",
        "CHECKVALVE_NAME=tree",
        "CHECKVALVE_STAGE=install",
        "CHECKVALVE_ATTEMPT=1",
        "CHECKVALVE_SIGNER=0101010101010101",
        "CHECKVALVE_PREVIOUS_PATH=/before",
    ] {
        assert!(env.lines().any(|l| l == line), "{line} is not in {env}");
    }
    let path = bench.dir.path().join("inbox/default/00000003/tree");
    assert_eq!(bench.read("argument").unwrap().trim(), path.to_str().unwrap());
    let input: serde_json::Value = serde_json::from_str(&bench.read("stdin.json").unwrap()).unwrap();
    assert_eq!((&input["sequence"], &input["name"], &input["bytes"]), (&3.into(), &"tree".into(), &10.into()));
    let entries = input["entries"].as_array().unwrap();
    let file = entries.iter().find(|e| e["kind"] == "file").unwrap();
    assert_eq!((&file["size"], &file["mode"]), (&10.into(), &"0644".into()));
    assert_eq!(file["blake3"].as_str().unwrap().len(), 64);
    assert_eq!(entries.iter().filter(|e| e["kind"] == "symlink" && e["target"] == "empty").count(), 1);
    let log = bench.log();
    assert!(log.starts_with("out\nerr\n[checkvalve] exit 0, after "), "{log}");
}

#[test]
fn times_are_text_and_names_any_bytes() {
    let mut bench = Bench::new("");
    bench.run.name = b"caf\xe9".to_vec();
    let mut manifest = many(1);
    let path = checkvalve_protocol::path::SafePath::new(*b"t/\xff\n\"").unwrap();
    manifest.announce.entries.push(Entry { path, ..entry("x", EntryKind::Directory { mode: 0o7 }) });
    let mut text = Vec::new();
    input::write(&mut text, &bench.run, &manifest).unwrap();
    assert!(text.starts_with(b"{\"schema\":1,") && text.ends_with(b"]}\n"));
    let input: serde_json::Value = serde_json::from_slice(&text).unwrap();
    assert_eq!(input["created_at"], "1970-01-01T00:00:00.001Z");
    assert_eq!((&input["name"], &input["name_hex"]), (&"caf\u{fffd}".into(), &"636166e9".into()));
    let last = &input["entries"][1];
    assert_eq!((&last["path"], &last["path_hex"]), (&"t/\u{fffd}\n\"".into(), &"742fff0a22".into()));
    assert_eq!((&last["mode"], &last["mtime"]), (&"0007".into(), &1_600_000_000.into()));
}

#[test]
fn all_of_a_long_input_arrives() {
    let bench = Bench::new("cat >\"$(dirname \"$0\")/stdin.json\"");
    assert_eq!(bench.outcome_of_many(), Outcome::Done);
    let input: serde_json::Value = serde_json::from_str(&bench.read("stdin.json").unwrap()).unwrap();
    assert_eq!(input["entries"].as_array().unwrap().len(), 50_000);
}

#[test]
fn a_hook_need_not_read_its_input() {
    for script in ["exit 0", "exec <&-; sleep 0.2", "head -c 100 >/dev/null; exec <&-; sleep 0.2", "sleep 0.3"] {
        let started = Instant::now();
        assert_eq!(Bench::new(script).outcome_of_many(), Outcome::Done, "{script}");
        assert!(started.elapsed() < Duration::from_secs(3), "{script} {:?}", started.elapsed());
    }
    assert_eq!(Bench::new("exit 75").outcome_of_many(), Outcome::Again);
}

#[test]
fn a_hook_may_read_slowly() {
    let script = "sleep 0.2; head -c 200000 >/dev/null; sleep 0.3; wc -c >\"$(dirname \"$0\")/rest\"";
    let bench = Bench::new(script);
    assert_eq!(bench.outcome_of_many(), Outcome::Done);
    let mut all = Vec::new();
    input::write(&mut all, &bench.run, &many(50_000)).unwrap();
    let rest: usize = bench.read("rest").unwrap().trim().parse().unwrap();
    // What head(1) took beyond what it was asked for is gone.
    assert!(rest <= all.len() - 200_000 && rest > all.len() - 300_000, "{rest} of {}", all.len());
}

#[test]
fn the_writer_ends_with_the_hook() {
    // It waits for room in the pipe when the hook's time is up, and when it leaves a child behind that has the pipe.
    let bench = Bench::new("sleep 60").timeout(Duration::from_millis(200));
    let started = Instant::now();
    assert!(matches!(bench.outcome_of_many(), Outcome::TimedOut(_)));
    let bench = Bench::new("sleep 5 <&0 & exit 0");
    assert_eq!(bench.outcome_of_many(), Outcome::Done);
    assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());

    let (reader, writer) = std::io::pipe().unwrap();
    let feed = input::Feed::start(writer, &bench.run, many(50_000)).unwrap();
    std::thread::sleep(Duration::from_millis(100));
    assert!(!feed.is_over(), "nobody reads");
    let stopping = Instant::now();
    drop(feed);
    assert!(stopping.elapsed() < Duration::from_secs(1));
    drop(reader);
    let (reader, writer) = std::io::pipe().unwrap();
    let feed = input::Feed::start(writer, &bench.run, many(50_000)).unwrap();
    drop(reader);
    let until = Instant::now() + Duration::from_secs(5);
    while !feed.is_over() && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(feed.is_over(), "nobody can read any more");
}

#[test]
fn its_exit_code_says_what_becomes_of_the_bundle() {
    for (code, expected) in
        [(0, Outcome::Done), (75, Outcome::Again), (65, Outcome::Quarantine(65)), (77, Outcome::Quarantine(77))]
    {
        assert_eq!(Bench::new(&format!("exit {code}")).outcome(), expected);
    }
    assert_eq!(Bench::new("exit 3").outcome(), Outcome::Failed("exit 3".into()));
    assert_eq!(Bench::new("kill -9 $$").outcome(), Outcome::Failed("signal 9".into()));
    let mut bench = Bench::new("");
    Arc::make_mut(&mut bench.run.policy).install = "/nowhere/hook".into();
    assert!(matches!(bench.outcome(), Outcome::NotStarted(_)));
    let bench = Bench::new("");
    std::fs::remove_dir_all(&bench.run.directory).unwrap();
    assert!(matches!(bench.outcome(), Outcome::Failed(_)));
}

#[test]
fn its_time_is_up_for_all_of_its_children() {
    let script = "cd \"$(dirname \"$0\")\"; trap '' TERM; (trap '' TERM; sh -c 'trap \"\" TERM; echo $$ >child; sleep 60') & \
                  echo $$ >parent; wait; sleep 60";
    let bench = Bench::new(script).timeout(Duration::from_millis(500));
    let started = Instant::now();
    assert_eq!(bench.outcome(), Outcome::TimedOut(Duration::from_millis(500)));
    assert!(started.elapsed() < process::GRACE + Duration::from_secs(4));
    for name in ["child", "parent"] {
        let pid = bench.read(name).unwrap();
        assert!(!is_running(&pid), "{name} {pid}");
    }
}

#[test]
fn a_hook_that_obeys_sigterm_takes_no_grace() {
    let bench = Bench::new("sleep 60").timeout(Duration::from_millis(100));
    let started = Instant::now();
    assert!(matches!(bench.outcome(), Outcome::TimedOut(_)));
    assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());
}

#[test]
fn a_stop_of_the_daemon_interrupts_it() {
    let bench = Bench::new("sleep 60");
    let outcome = block_on(async { bench.run(tokio::time::sleep(Duration::from_millis(100))).await });
    assert_eq!(outcome, Outcome::Interrupted);
}

#[test]
fn a_child_left_behind_holds_up_nobody() {
    let bench = Bench::new("(sleep 5) & exit 0");
    let started = Instant::now();
    assert_eq!(bench.outcome(), Outcome::Done);
    assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());
}

#[test]
fn its_output_is_bounded() {
    let bench = Bench::new("head -c 3000000 /dev/zero; echo end");
    assert_eq!(bench.outcome(), Outcome::Done);
    let log = bench.log();
    assert!((log.len() as u64) < log::MAX_LOG + 200, "{}", log.len());
    assert!(log.contains("not kept") && log.contains("exit 0"));
}

/// A log on a disk that stands still: nobody reads the pipe that it is.
#[test]
fn a_disk_that_stands_still_under_its_log_holds_nobody_else_up() {
    let bench = Bench::new("head -c 310000 /dev/zero; echo end");
    let path = log::log_path(&bench.dir.path().join("logs"), &bench.run.channel, 3, bench.run.id, 1);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    let ticks = Arc::new(AtomicUsize::new(0));
    let ticked = |ticks: &AtomicUsize, more: usize| {
        let (before, until) = (ticks.load(Ordering::Relaxed), Instant::now() + Duration::from_secs(10));
        while ticks.load(Ordering::Relaxed) < before + more && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(5));
        }
        ticks.load(Ordering::Relaxed) >= before + more
    };
    let disk = std::thread::spawn({
        let (path, ticks) = (path.clone(), Arc::clone(&ticks));
        move || {
            let while_it_is_made = ticked(&ticks, 5);
            let mut file = std::fs::File::open(&path).unwrap();
            // Longer than output is waited for once the hook has ended.
            let while_it_is_written = ticked(&ticks, 100);
            let mut bytes = Vec::new();
            std::io::Read::read_to_end(&mut file, &mut bytes).unwrap();
            (while_it_is_made, while_it_is_written, bytes.len())
        }
    });
    let outcome = block_on(async {
        let mut every = tokio::time::interval(Duration::from_millis(10));
        let run = bench.run(pending());
        tokio::pin!(run);
        loop {
            tokio::select! {
                outcome = &mut run => break outcome,
                _ = every.tick() => drop(ticks.fetch_add(1, Ordering::Relaxed)),
            }
        }
    });
    assert_eq!(outcome, Outcome::Done);
    let (while_it_is_made, while_it_is_written, len) = disk.join().unwrap();
    assert!(while_it_is_made && while_it_is_written && len > 310_000, "{len}");
}

#[test]
fn logs_of_old_attempts_go() {
    let mut bench = Bench::new("exit 75");
    for attempt in 1..=log::KEPT_LOGS + 3 {
        bench.run.attempt = attempt;
        assert_eq!(bench.outcome(), Outcome::Again);
    }
    let logs = std::fs::read_dir(bench.dir.path().join("logs/default")).unwrap().count();
    assert_eq!(logs, log::KEPT_LOGS as usize);
}

#[test]
fn pauses_double_up_to_their_limit() {
    let bench = Bench::new("");
    let pauses: Vec<u64> = [1, 2, 3, 9, 10, 40, u32::MAX].map(|n| bench.run.policy.backoff_ms(n)).to_vec();
    assert_eq!(pauses, [1_000, 2_000, 4_000, 256_000, 300_000, 300_000, 300_000]);
}
