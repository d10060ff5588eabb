//! The daemon and its commands as processes, sending into a socket that nobody answers from.

mod adopting;
mod names;
mod site;

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;

use site::{Site, failed, good, run, text};

#[test]
fn send_waits_for_transmitted_and_never_says_more() {
    let site = Site::started("");
    let tree = site.path("place/tree");
    fs::create_dir_all(tree.join("a/b")).unwrap();
    fs::write(tree.join("a/f"), vec![1; 300_000]).unwrap();
    let said = site.run(&["send", tree.to_str().unwrap(), "--wait"]);
    good(&said);
    let said = text(&said.stdout) + &text(&said.stderr);
    assert!(said.contains("transmitted default/1 tree (293 KiB in"), "{said}");
    assert!(!said.contains("deliver"), "{said}");
    let view: Value =
        serde_json::from_str(&good(&site.run(&["send", tree.to_str().unwrap(), "--wait", "--json"]))).unwrap();
    assert_eq!((&view["sequence"], &view["state"]), (&2.into(), &"transmitted".into()));
    let several =
        site.run(&["send", "--channel", "other", "--link", tree.join("a/f").to_str().unwrap(), "/etc/hostname"]);
    assert!(text(&several.stderr).contains("/etc/hostname") || several.status.success(), "hard links stay on one disk");
    site.wait_state("f", "transmitted");
    std::os::unix::fs::symlink("/etc", tree.join("out")).unwrap();
    let said = failed(&site.run(&["send", tree.to_str().unwrap(), "--wait"]), 65);
    assert!(said.contains("\"tree/out\" is a symlink whose target \"/etc\" is absolute"), "{said}");
    assert!(site.path("spool/default/.failed/tree.reason").exists());
    assert!(failed(&site.run(&["send", "/nowhere"]), 66).contains("/nowhere"));
    assert!(failed(&site.run(&["send", "--channel", "none", "/etc/hostname"]), 64).contains("no channel none"));
    assert!(failed(&site.run(&["send", "--name", "x.part", "/etc/hostname"]), 64).contains("leaves \"x.part\" alone"));
    good(&site.run(&["send", "--name", "named", "/etc/hostname"]));
    site.wait_state("named", "transmitted");
    let left: Vec<_> = fs::read_dir(site.path("spool/default")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, [".failed"]);
}

#[test]
fn a_killed_daemon_goes_on_and_numbers_on() {
    let mut site = Site::started("");
    site.drop_in("one", &vec![7; 8 << 20]);
    site.drop_in("two", b"2");
    let before = site.wait_state("one", "transmitting");
    site.kill();
    site.drop_in("three", b"3");
    site.start();
    let one = site.wait_state("one", "transmitted");
    assert_eq!((&one["id"], &one["sequence"]), (&before["id"], &before["sequence"]));
    assert_eq!(site.wait_state("two", "transmitted")["sequence"], 2);
    assert_eq!(site.wait_state("three", "transmitted")["sequence"], 3);
    let number = site.status()["session"]["number"].as_u64().unwrap();
    site.stop();
    site.start();
    assert!(site.status()["session"]["number"].as_u64().unwrap() > number);
    good(&site.run(&["resend", "default/1", "--blocks", "0-1", "--wait"]));
    assert_eq!(site.bundle("one").unwrap()["sent"], 2);
    let id = one["id"].as_str().unwrap();
    let resent: Value = serde_json::from_str(&good(&site.run(&["resend", &id[..10], "--json"]))).unwrap();
    assert_eq!((&resent["blocks"], &resent["of_blocks"]), (&one["blocks"], &one["blocks"]));
    assert!(failed(&site.run(&["resend", "default/77"]), 66).contains("default/77"));
    assert!(failed(&site.run(&["resend", "default/2", "--blocks", "1"]), 64).contains("1 source blocks"));
}

#[test]
fn only_one_daemon_has_a_state_directory() {
    let mut site = Site::started("");
    assert!(failed(&site.run(&["run"]), 75).contains("another daemon is running"));
    assert!(site.run(&["status"]).status.success(), "the first one did not notice");
    site.stop();
    assert!(failed(&site.run(&["status"]), 69).contains("not running"));
    site.start();
    site.kill();
    // Its lock and its socket are still there.
    site.start();
}

#[test]
fn the_service_manager_hears_of_the_start_and_the_end() {
    let mut site = Site::new("");
    let manager = UnixDatagram::bind(site.path("notify")).unwrap();
    manager.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let mut command = site.command(&["run"]);
    command.env("NOTIFY_SOCKET", site.path("notify")).env("WATCHDOG_USEC", "2000000").stderr(Stdio::null());
    site.daemon = Some(command.spawn().unwrap());
    let heard = |word: &str| {
        let mut buf = [0; 1_024];
        loop {
            let n = match manager.recv(&mut buf) {
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                other => other.unwrap(),
            };
            if text(&buf[..n]).starts_with(word) {
                return;
            }
        }
    };
    heard("READY=1");
    heard("STATUS=0 bundles to send");
    heard("WATCHDOG=1");
    heard("WATCHDOG=1");
    site.stop();
    heard("STOPPING=1");
}

#[test]
fn what_is_wrong_is_said_in_one_line_before_anything_is_touched() {
    let site = Site::new("[fec]\nrepair = \"5\"\n");
    for command in ["run", "check-config", "status"] {
        let said = failed(&site.run(&[command]), 78);
        assert_eq!(said.lines().count(), 1, "{said}");
        assert!(said.contains("key `fec.repair`") && said.contains("write"), "{said}");
    }
    assert_eq!(fs::read_dir(site.path("state")).unwrap().count(), 0);
    assert_eq!(fs::read_dir(site.path("spool")).unwrap().count(), 0);
    failed(&run(&["--nonsense"]), 64);
    failed(&run(&["status", "--config", "/nowhere.toml"]), 78);
    let said = good(&run(&["--help"]));
    assert!(said.contains("transmitted") && said.contains("Usage"), "{said}");
}

#[test]
fn check_config_says_what_follows_and_creates_nothing() {
    let site = Site::new("");
    let said = good(&site.run(&["check-config"]));
    for word in ["source block", "interleaved", "survives", "200 Mbit/s", "channel other"] {
        assert!(said.contains(word), "{word}: {said}");
    }
    let json: Value = serde_json::from_str(&good(&site.run(&["check-config", "--json"]))).unwrap();
    assert_eq!((&json["symbol_bytes"], &json["schema"]), (&1_408.into(), &1.into()));
    assert!(Path::read_dir(&site.path("spool")).unwrap().next().is_none());
}
