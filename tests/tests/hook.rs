//! The install hook's contract: environment, input, exit codes, time limit, order.

use std::time::{Duration, Instant};

use checkvalve_tests::pair::{Dropped, Pair};
use checkvalve_tests::{require_link, tree};

fn orders(pair: &Pair) -> Vec<u64> {
    pair.hook_runs().iter().map(|run| run.sequence()).collect()
}

/// The text of the `reason.json` of a quarantined bundle.
fn quarantine_reason(pair: &Pair, bundle: &Dropped) -> String {
    let folder = pair.high.quarantine.join(&bundle.channel);
    let names = folder.read_dir().unwrap_or_else(|error| panic!("{folder:?}: {error}\n{}", pair.describe()));
    let mut reasons = names.map(|entry| std::fs::read_to_string(entry.unwrap().path().join("reason.json")).unwrap());
    reasons.find(|text| text.contains(&bundle.name)).expect("a reason.json that names the bundle")
}

#[test]
fn environment_and_input_are_those_of_the_contract() {
    require_link!();
    let pair = Pair::setup().start();
    std::fs::create_dir(pair.place("release")).unwrap();
    tree::file(&pair.place("release/app"), b"binary", 0o755);
    tree::file(&pair.place("release/notes"), b"", 0o644);
    std::os::unix::fs::symlink("app", pair.place("release/current")).unwrap();
    let bundle = pair.drop("release");
    let arrived = pair.wait_installed(&bundle);

    let runs = pair.hook_runs();
    assert_eq!(runs.len(), 1, "the hook ran once");
    let run = &runs[0];
    let landed = pair.landed(&bundle, 1);
    assert_eq!(run.argument, landed);
    assert_eq!(run.cwd, landed.parent().unwrap(), "the working directory is the sequence's");
    assert_eq!(run.var("BUNDLE_ID"), arrived.id);
    assert_eq!(run.var("CHANNEL"), "default");
    assert_eq!(run.var("SEQUENCE"), "1");
    assert_eq!(run.var("NAME"), "release");
    assert_eq!(run.var("PATH"), landed.to_str().unwrap());
    assert_eq!(run.var("STAGE"), "install");
    assert_eq!(run.var("ATTEMPT"), "1");
    assert!(!run.var("SIGNER").is_empty());
    assert_eq!(run.var("PREVIOUS_PATH"), "", "there is no earlier bundle");

    let manifest = &run.manifest;
    assert_eq!(manifest["bundle"], arrived.id.as_str(), "{manifest:#}");
    assert_eq!(manifest["channel"], "default");
    assert_eq!(manifest["sequence"], 1);
    assert_eq!(manifest["name"], "release");
    let entries = manifest["entries"].as_array().unwrap_or_else(|| panic!("no entries in {manifest:#}"));
    let paths: Vec<&str> = entries.iter().filter_map(|entry| entry["path"].as_str()).collect();
    assert_eq!(paths, ["release", "release/app", "release/current", "release/notes"]);
    let app = &entries[1];
    assert_eq!(app["size"], 6, "{app:#}");
    assert_eq!(app["blake3"], blake3::hash(b"binary").to_hex().as_str(), "{app:#}");

    let second = pair.drop_file("second", b"2");
    pair.wait_installed(&second);
    let runs = pair.hook_runs();
    assert_eq!(runs[1].var("PREVIOUS_PATH"), landed.to_str().unwrap());
    assert_ne!(runs[1].var("BUNDLE_ID"), arrived.id);
}

#[test]
fn exit_75_is_tried_again_with_backoff() {
    require_link!();
    let pair = Pair::setup().hook("[ \"$CHECKVALVE_ATTEMPT\" -ge 3 ] || exit 75; exit 0").start();
    let started = Instant::now();
    let bundle = pair.drop_file("stubborn", b"third time lucky");
    let next = pair.drop_file("next", b"waits for it");
    pair.wait_installed(&bundle);
    let took = started.elapsed();
    pair.wait_installed(&next);
    let attempts: Vec<(u64, String)> =
        pair.hook_runs().iter().map(|run| (run.sequence(), run.var("ATTEMPT").to_owned())).collect();
    let expected = [(1, "1"), (1, "2"), (1, "3"), (2, "1"), (2, "2"), (2, "3")];
    assert_eq!(attempts, expected.map(|(sequence, attempt)| (sequence, attempt.to_owned())));
    assert!(took > Duration::from_secs(1), "three attempts in {took:?}: there was no pause between them");
    let ids: std::collections::BTreeSet<String> =
        pair.hook_runs().iter().take(3).map(|run| run.var("BUNDLE_ID").to_owned()).collect();
    assert_eq!(ids.len(), 1, "the id is the same at every attempt");
}

#[test]
fn exits_65_and_77_quarantine_and_the_next_goes_on() {
    require_link!();
    let pair =
        Pair::setup().hook("case $CHECKVALVE_NAME in bad) exit 65 ;; forbidden) exit 77 ;; esac; exit 0").start();
    let bundles = ["bad", "forbidden", "good"].map(|name| pair.drop_file(name, name.as_bytes()));
    pair.wait_installed(&bundles[2]);
    for bundle in &bundles[..2] {
        let refused = pair.wait_state(bundle, &["quarantined"]);
        assert!(!pair.landed(bundle, refused.sequence).exists(), "{} is still in the inbox", bundle.name);
        let reason = quarantine_reason(&pair, bundle);
        assert!(reason.contains("hook"), "the reason names the hook: {reason}");
    }
    assert_eq!(orders(&pair), [1, 2, 3]);
}

#[test]
fn any_other_exit_fails_and_the_next_goes_on() {
    require_link!();
    let pair = Pair::setup().hook("echo out; echo err >&2; [ $CHECKVALVE_NAME != bad ] || exit 3; exit 0").start();
    let (bad, good) = (pair.drop_file("bad", b"1"), pair.drop_file("good", b"2"));
    pair.wait_installed(&good);
    let failed = pair.wait_state(&bad, &["failed"]);
    assert!(format!("{:#}", failed.all).contains('3'), "status tells the exit code: {:#}", failed.all);
    assert_eq!(orders(&pair), [1, 2], "neither was tried again");
}

#[test]
fn a_hook_that_hangs_is_ended_with_its_children() {
    require_link!();
    let hang = "[ $CHECKVALVE_NAME != hangs ] || { trap '' TERM; sleep 987654 & sleep 987655; }; exit 0";
    let pair = Pair::setup().receiver("channel.default.hook.timeout", "2 s").hook(hang).start();
    let (hangs, next) = (pair.drop_file("hangs", b"1"), pair.drop_file("next", b"2"));
    pair.wait_installed(&next);
    let failed = pair.wait_state(&hangs, &["failed"]);
    assert!(
        format!("{:#}", failed.all).contains("ended after 2.0 s"),
        "status tells of the time limit: {:#}",
        failed.all
    );
    let left: Vec<u32> =
        processes().into_iter().filter(|(_, line)| line.contains("sleep 98765")).map(|(pid, _)| pid).collect();
    assert_eq!(left, [] as [u32; 0], "children of the hook still run");
}

#[test]
fn bundles_of_a_channel_are_installed_one_at_a_time_in_order() {
    require_link!();
    let hook = "mkdir \"$PWD/../lock\" || exit 1; sleep 0.2; rmdir \"$PWD/../lock\"; exit 0";
    let pair = Pair::setup().hook(hook).start();
    let bundles: Vec<Dropped> =
        (1..=8).map(|n| pair.drop_file(&format!("b{n}"), &vec![n; 1000 * usize::from(n)])).collect();
    for bundle in &bundles {
        pair.wait_installed(bundle);
    }
    assert_eq!(orders(&pair), [1, 2, 3, 4, 5, 6, 7, 8]);
}

#[test]
fn channels_do_not_wait_for_each_other() {
    require_link!();
    let hook = "[ $CHECKVALVE_CHANNEL != slow ] || sleep 3; exit 0";
    let setup =
        Pair::setup().hook(hook).sender("channel.slow.priority", 0).receiver("channel.slow.hook.install", "HOOK");
    let mut pair = setup.lay();
    // The hook's path is known only now.
    let config = std::fs::read_to_string(&pair.high.config).unwrap();
    std::fs::write(&pair.high.config, config.replace("HOOK", pair.high.hook.to_str().unwrap())).unwrap();
    std::fs::create_dir_all(pair.low.spool.join("slow")).unwrap();
    pair.start_receiver();
    pair.start_sender();

    tree::file(&pair.place("waits"), b"1", 0o644);
    let slow = pair.drop_into("slow", "waits");
    pair.wait_state(&slow, &["installing"]);
    let started = Instant::now();
    let quick = pair.drop_file("quick", b"2");
    pair.wait_installed(&quick);
    assert!(started.elapsed() < Duration::from_millis(2500), "it waited for the other channel's hook");
    pair.wait_installed(&slow);
}

#[test]
fn a_hook_interrupted_by_a_crash_runs_again_with_the_same_id() {
    require_link!();
    let mut pair = Pair::setup().hook("[ -e /nonexistent ] || sleep 1; exit 0").start();
    let bundle = pair.drop_file("twice", b"at least once");
    pair.wait_for("the hook to start", || (!pair.hook_runs().is_empty()).then_some(()));
    pair.kill_receiver();
    pair.start_receiver();
    pair.wait_installed(&bundle);
    let ids: Vec<String> = pair.hook_runs().iter().map(|run| run.var("BUNDLE_ID").to_owned()).collect();
    assert_eq!(ids.len(), 2, "{ids:?}");
    assert_eq!(ids[0], ids[1]);
}

fn processes() -> Vec<(u32, String)> {
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter_map(|pid: u32| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        Some((pid, String::from_utf8_lossy(&line).replace('\0', " ")))
    })
    .collect()
}
