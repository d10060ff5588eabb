//! The commands that an operator works with, over a running pair.

use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output};
use std::time::Duration;

use checkvalve_tests::pair::Pair;
use checkvalve_tests::{require_link, skip, tree};

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn good(output: &Output) -> String {
    assert!(output.status.success(), "{}: {}{}", output.status, text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

#[test]
fn send_wait_brings_a_bundle_to_the_wire() {
    require_link!();
    let pair = Pair::setup().start();
    tree::odd(&pair.place("release"), 100, 1);
    let before = checkvalve_tests::snapshot::Snapshot::of(&pair.place("release"));
    let path = pair.place("release");
    good(&pair.sender_command(&["send", path.to_str().unwrap(), "--wait"]));
    assert!(path.exists(), "send copies: what it was given stays");
    let found = pair.sender_status().unwrap().find("default", "release").expect("status lists it");
    assert_eq!(found.state, "transmitted");
    assert_eq!(found.bytes, before.bytes());
    pair.wait_for("the bundle to be installed", || (pair.hook_runs().len() == 1).then_some(()));
    let landed = pair.high.inbox.join("default/00000001/release");
    assert_eq!(before.differences(&checkvalve_tests::snapshot::Snapshot::of(&landed)), "");

    let missing = pair.sender_command(&["send", "/nowhere/at/all"]);
    assert_eq!(missing.status.code(), Some(66), "{}", text(&missing.stderr));
    let unknown = pair.sender_command(&["send", path.to_str().unwrap(), "--channel", "nope"]);
    assert!(!unknown.status.success() && text(&unknown.stderr).contains("nope"), "{}", text(&unknown.stderr));
}

#[test]
fn status_is_for_people_and_for_programs() {
    require_link!();
    let pair = Pair::setup().start();
    let bundle = pair.drop_file("notes.txt", b"some notes");
    let found = pair.wait_installed(&bundle);
    for (said, state) in
        [(pair.sender_command(&["status"]), "transmitted"), (pair.receiver_command(&["status"]), "installed")]
    {
        let said = good(&said);
        for word in ["default", "notes.txt", state] {
            assert!(said.contains(word), "{word} is not in:\n{said}");
        }
    }
    let of_sender = pair.sender_status().unwrap().find("default", "notes.txt").unwrap();
    assert_eq!(of_sender.id, found.id, "both sides call it the same");
}

#[test]
fn watching_ends_when_nobody_reads_it() {
    require_link!();
    let pair = Pair::setup().start();
    for program in ["checkvalve-sender", "checkvalve-receiver"] {
        let mut watching = pair.watch(program);
        let mut output = BufReader::new(watching.stdout.take().unwrap());
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        assert!(line.contains(program), "{line}");
        drop(output);
        let ended = (0..100).find_map(|_| {
            std::thread::sleep(Duration::from_millis(100));
            watching.try_wait().unwrap()
        });
        if ended.is_none() {
            watching.kill().unwrap();
        }
        assert_eq!(ended.and_then(|status| status.code()), Some(0), "{program}");
    }
}

#[test]
fn resend_of_what_is_not_there_says_so() {
    require_link!();
    let pair = Pair::setup().start();
    for bundle in ["default/99", "ffffffffffffffff", "nonsense"] {
        let said = pair.sender_command(&["resend", bundle]);
        assert!(!said.status.success());
        assert!(text(&said.stderr).contains(bundle), "{bundle}: {}", text(&said.stderr));
    }
}

#[test]
fn verify_proves_what_is_in_the_inbox() {
    require_link!();
    let pair = Pair::setup().start();
    let bundle = pair.drop_file("data", b"as it was dropped");
    pair.wait_installed(&bundle);
    let landed = pair.landed(&bundle, 1);
    let path = landed.to_str().unwrap();
    good(&pair.receiver_command(&["verify", path]));
    std::fs::write(&landed, b"as it was changed").unwrap();
    let said = pair.receiver_command(&["verify", path]);
    assert_eq!(said.status.code(), Some(65), "{}{}", text(&said.stdout), text(&said.stderr));
    let lines: Vec<String> = text(&said.stdout).lines().map(str::to_owned).collect();
    assert!(
        lines.len() == 1 && lines[0].starts_with(path) && lines[0].contains("differs from the manifest"),
        "{lines:?}"
    );
    assert_eq!(text(&said.stderr).lines().count(), 1, "{}", text(&said.stderr));
    let json = pair.receiver_command(&["verify", "default/1", "--json"]);
    assert_eq!(json.status.code(), Some(65));
    let json: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!((&json["as_signed"], &json["differences_total"]), (&false.into(), &1.into()), "{json}");
    assert_eq!(json["differences"][0]["path"], path);
}

#[test]
fn keys_are_made_with_care_and_trusted_by_hand() {
    require_link!();
    let pair = Pair::setup().start();
    let other = pair.dir.path().join("other.key");
    let said = good(&pair.sender_command_bare(&["keygen", "signing", "--out", other.to_str().unwrap()]));
    let id = said.split_whitespace().find(|word| word.len() == 16).expect("keygen says the key's id").to_owned();
    assert_eq!(other.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    let again = pair.sender_command_bare(&["keygen", "signing", "--out", other.to_str().unwrap()]);
    assert_eq!(again.status.code(), Some(73), "keygen overwrote a key");

    let listed = good(&pair.receiver_command(&["trust", "list"]));
    assert_eq!(listed.lines().count(), 1, "{listed}");
    assert!(!listed.contains(&id), "{listed}");
    good(&pair.receiver_command(&["trust", "add", &format!("{}.pub", other.display())]));
    let listed = good(&pair.receiver_command(&["trust", "list"]));
    assert_eq!(listed.lines().count(), 2, "{listed}");
    assert!(listed.contains(&id), "the low and the high side call the key the same: {listed}");
}

#[test]
fn a_sender_whose_key_is_not_trusted_changes_nothing_until_it_is() {
    require_link!();
    let mut pair = Pair::setup().lay();
    for entry in std::fs::read_dir(pair.high.keys.join("trusted.d")).unwrap() {
        std::fs::remove_file(entry.unwrap().path()).unwrap();
    }
    pair.start_receiver();
    pair.start_sender();
    let bundle = pair.drop_file("release", b"signed by a stranger");
    let key = pair.low.keys.join("signing.key.pub");
    let alarm = pair.wait_for("an alarm", || {
        let alarms = pair.receiver_status()?.alarms();
        // Its beacons may be heard before its announce, which says more.
        let says_more = |(code, text): &(String, String)| code == "unknown-key" && text.contains("default/1");
        alarms.into_iter().find(says_more).map(|(_, text)| text)
    });
    assert!(alarm.contains("default/1 (\"release\")") && alarm.contains("trust add"), "{alarm}");
    pair.wait_sender_state(&bundle, &["transmitted"]);
    let status = pair.receiver_status().unwrap();
    assert!(status.bundles().is_empty(), "{:#}", status.0);
    assert!(status.0["discarded"]["unknown-key"].as_u64() > Some(0), "{:#}", status.0);
    assert_eq!(pair.hook_runs().len(), 0);

    // As soon as the key is trusted, its announce is accepted. A ticket brings the rest.
    good(&pair.receiver_command(&["trust", "add", key.to_str().unwrap()]));
    pair.wait_state(&bundle, &["incomplete"]);
    assert!(!pair.receiver_status().unwrap().alarms().iter().any(|(code, _)| code == "unknown-key"));
    let ticket = good(&pair.receiver_command(&["ticket", "default/1"]));
    good(&pair.sender_command_with(&["resend", "--ticket", "-"], &ticket));
    pair.wait_installed(&bundle);
    pair.assert_identical(&bundle);
}

#[test]
fn help_is_good_enough_to_work_from() {
    let bin = skip::bin_dir();
    let cases = [
        ("checkvalve-sender", vec!["run", "send", "status", "resend", "keygen", "check-config"]),
        ("checkvalve-receiver", vec!["run", "status", "trust", "verify", "check-config"]),
    ];
    for (program, commands) in cases {
        let help = good(&Command::new(bin.join(program)).arg("--help").output().unwrap());
        for command in commands {
            assert!(help.contains(command), "{program} --help does not list {command}");
            let help = good(&Command::new(bin.join(program)).args([command, "--help"]).output().unwrap());
            assert!(help.lines().count() >= 5 && help.contains("Usage"), "{program} {command} --help:\n{help}");
        }
        let version = good(&Command::new(bin.join(program)).arg("--version").output().unwrap());
        assert!(version.contains(env!("CARGO_PKG_VERSION")), "{version}");
        let nonsense = Command::new(bin.join(program)).arg("--nonsense").output().unwrap();
        assert_eq!(nonsense.status.code(), Some(64), "{program} --nonsense: {}", text(&nonsense.stderr));
    }
}
