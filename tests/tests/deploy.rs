//! What is in `deploy/`: units that systemd accepts, examples that the daemons accept, a demonstration that runs.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use checkvalve_tests::pair::Pair;
use checkvalve_tests::{function_name, require_link, skip, tree};
use rustix::process::{Pid, Signal, kill_process_group};

fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("deploy")
}

#[test]
fn systemd_accepts_the_units() {
    if Command::new("systemd-analyze").arg("--version").output().is_err() {
        skip::note(function_name!(), "systemd-analyze is not installed");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let bin = skip::bin_dir().canonicalize().unwrap();
    for unit in ["checkvalve-sender.service", "checkvalve-receiver.service"] {
        let text = std::fs::read_to_string(deploy().join("systemd").join(unit)).unwrap();
        assert!(text.contains("ExecStart=/usr/local/bin/checkvalve-"), "{unit} starts the daemon");
        let here = dir.path().join(unit);
        std::fs::write(&here, text.replace("/usr/local/bin", bin.to_str().unwrap())).unwrap();
        let out = Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(&here).output().unwrap();
        let said = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.success() && said.is_empty(), "{unit}: {said}");
    }
}

#[test]
fn the_daemons_accept_the_example_configs() {
    let site = Pair::setup().files();
    let (low, high) = (&site.low, &site.high);
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    for (program, example, places) in [
        (
            "checkvalve-sender",
            "config/sender.toml",
            vec![
                ("/var/spool/checkvalve", text(&low.spool)),
                ("/var/lib/checkvalve-sender", text(&low.state)),
                ("/run/checkvalve-sender", text(site.dir.path())),
                ("/etc/checkvalve", text(&low.keys)),
            ],
        ),
        (
            "checkvalve-receiver",
            "config/receiver.toml",
            vec![
                ("/etc/checkvalve/hooks/install", text(&high.hook)),
                ("/srv/checkvalve", text(&high.data)),
                ("/var/lib/checkvalve-receiver", text(&high.state)),
                ("/run/checkvalve-receiver", text(site.dir.path())),
                ("/etc/checkvalve", text(&high.keys)),
            ],
        ),
    ] {
        let mut config = std::fs::read_to_string(deploy().join(example)).unwrap();
        for (place, here) in places {
            config = config.replace(place, &here);
        }
        let path = site.dir.path().join("example.toml");
        std::fs::write(&path, config).unwrap();
        let out = Command::new(site.bin.join(program)).args(["check-config", "--config"]).arg(&path).output().unwrap();
        assert!(out.status.success(), "{example}: {}", String::from_utf8_lossy(&out.stderr));
    }
}

/// An administrator drops root's files, with modes that do not let the daemon's user read them.
#[test]
fn the_units_rights_are_enough() {
    require_link!();
    let unit = std::fs::read_to_string(deploy().join("systemd/checkvalve-sender.service")).unwrap();
    assert!(unit.contains("AmbientCapabilities=CAP_DAC_OVERRIDE\n"), "the harness gives the sender what the unit does");
    let unit = std::fs::read_to_string(deploy().join("systemd/checkvalve-receiver.service")).unwrap();
    assert!(unit.contains("AmbientCapabilities=\n"), "and the receiver");
    let pair = Pair::setup().as_the_units_do().start();
    tree::odd(&pair.place("release"), 200, 5);
    tree::file(&pair.place("secret"), b"of root's", 0o600);
    for name in ["release", "secret"] {
        let bundle = pair.drop(name);
        pair.wait_installed(&bundle);
        pair.assert_identical(&bundle);
    }
    let sent = pair.sender_command(&["send", deploy().to_str().unwrap(), "--name", "by-root", "--wait"]);
    assert!(sent.status.success(), "{}", String::from_utf8_lossy(&sent.stderr));
}

#[test]
fn the_demonstration_runs_over_namespaces() {
    require_link!();
    demo("root");
}

#[test]
fn the_demonstration_runs_in_a_user_namespace() {
    require_link!();
    let unshare = Command::new("unshare").args(["--user", "--map-root-user", "--net", "--mount", "true"]).output();
    if !unshare.is_ok_and(|out| out.status.success()) {
        skip::note(function_name!(), "no user namespaces here");
        return;
    }
    demo("user");
}

#[test]
fn the_demonstration_runs_over_the_relay() {
    demo("relay");
}

#[test]
fn ctrl_c_ends_the_demonstration_and_leaves_nothing() {
    require_link!();
    let work = tempfile::tempdir().unwrap();
    // Long enough to be interrupted in the middle.
    let demo = start_demo(work.path(), "root", "900");
    let started = Instant::now();
    while daemons(work.path()).len() < 2 {
        assert!(started.elapsed() < Duration::from_secs(300), "the daemons did not start");
        std::thread::sleep(Duration::from_millis(50));
    }
    std::thread::sleep(Duration::from_secs(1));
    // Like a terminal, signal the whole process group.
    kill_process_group(Pid::from_child(&demo), Signal::INT).unwrap();
    let pid = demo.id();
    let out = demo.wait_with_output().unwrap();
    let said = [out.stdout, out.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
    assert_eq!(out.status.code(), Some(130), "{}{}", said[0], said[1]);
    nothing_is_left(work.path(), pid);
}

fn demo(kind: &str) {
    let work = tempfile::tempdir().unwrap();
    let demo = start_demo(work.path(), kind, "20");
    let pid = demo.id();
    let out = demo.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(out.status.success(), "{}\n{said}\n{}", out.status, String::from_utf8_lossy(&out.stderr));
    for word in ["installed release", "as signed", "Done."] {
        assert!(said.contains(word), "{word} is not in:\n{said}");
    }
    assert_eq!(said.contains("transmitted 0 frames"), kind != "relay", "{said}");
    nothing_is_left(work.path(), pid);
}

fn start_demo(work: &Path, kind: &str, megabytes: &str) -> Child {
    // A shell cannot trap a signal that it was started to ignore, and background processes ignore Ctrl-C.
    let mut command = Command::new("env");
    command.arg("--default-signal=INT").arg(deploy().join("demo.sh"));
    command.args(["--link", kind, "--megabytes", megabytes]).env("TMPDIR", work);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    command.spawn().unwrap()
}

fn nothing_is_left(work: &Path, demo: u32) {
    assert_eq!(daemons(work), [] as [u32; 0], "daemons still run");
    let files: Vec<PathBuf> = std::fs::read_dir(work).unwrap().flatten().map(|entry| entry.path()).collect();
    assert_eq!(files, [] as [PathBuf; 0]);
    let namespaces = std::fs::read_dir("/run/netns").into_iter().flatten().flatten();
    let own = format!("cv-{demo}-");
    let left: Vec<_> = namespaces.filter(|entry| entry.file_name().to_string_lossy().starts_with(&own)).collect();
    assert!(left.is_empty(), "{left:?}");
}

/// Daemons whose config is below `work`.
fn daemons(work: &Path) -> Vec<u32> {
    let config = work.to_str().unwrap();
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let found = processes.filter_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let line = String::from_utf8_lossy(&std::fs::read(entry.path().join("cmdline")).ok()?).into_owned();
        (line.contains(config) && line.contains("\0run\0")).then_some(pid)
    });
    found.collect()
}

/// For every attack, the page names the test that shows it, as `crate: path::name` or `attacks.py name`.
#[test]
fn the_tests_that_security_names_are_there() {
    let root = deploy().parent().unwrap().to_owned();
    let sources = |folder: &str, end: &str| -> String {
        let files = walk(&root.join(folder)).into_iter().filter(|path| path.extension().is_some_and(|e| e == end));
        files.map(|path| std::fs::read_to_string(path).unwrap()).collect()
    };
    let attacks = sources("tests/peer/hostile", "py");
    let folder = |of: &str| match of {
        "protocol" => "protocol/src",
        "host" => "protocol/host/src",
        "receiver" => "receiver/src",
        "sender" => "sender/src",
        "tests" => "tests/tests",
        other => panic!("{other} is no crate"),
    };
    // The function is in the file that its path names or, like tests inside a file, in a parent module.
    let is_there = |of: &str, test: &str| {
        let (path, name) = test.rsplit_once("::").unwrap_or(("", test));
        let parts: Vec<&str> = path.split("::").filter(|part| !part.is_empty()).collect();
        let above = (0..=parts.len()).rev().map(|len| root.join(folder(of)).join(parts[..len].join("/")));
        let files = above.flat_map(|path| [path.with_extension("rs"), path.join("main.rs"), path.join("lib.rs")]);
        let mut texts = files.filter_map(|file| std::fs::read_to_string(file).ok());
        texts.any(|text| text.contains(&format!("fn {name}(")))
    };
    let page = std::fs::read_to_string(deploy().join("SECURITY.md")).unwrap();
    let attacks_of = page.split("\n## ").find(|part| part.starts_with("Attacks, and the tests")).unwrap();
    let mut rows = 0;
    for line in attacks_of.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| attempt")) {
        let Some(shown) = line.trim_end_matches([' ', '|']).rsplit(" | ").next() else { continue };
        if shown.starts_with("---") {
            continue;
        }
        let tests: Vec<&str> = shown.split('`').skip(1).step_by(2).collect();
        assert!(!tests.is_empty(), "no test for: {line}");
        for test in tests {
            match (test.strip_prefix("attacks.py "), test.split_once(": ")) {
                (Some(name), _) => assert!(attacks.contains(&format!("def {name}(")), "{test} is no attack"),
                (None, Some((of, path))) => assert!(is_there(of, path), "{test} is no test"),
                (None, None) => panic!("{test}: of which crate?"),
            }
        }
        rows += 1;
    }
    assert!(rows >= 40, "{rows} attacks");
}

fn walk(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { walk(&path) } else { vec![path] }).collect()
}
