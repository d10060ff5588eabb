//! Bad configs: exit 78 and one line that names the key and says what to write instead.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use checkvalve_tests::pair::Pair;
use checkvalve_tests::pair::setup::{Site, set};
use toml::{Table, Value};

#[derive(Clone, Copy, Debug, PartialEq)]
enum Side {
    Sender,
    Receiver,
}
use Side::{Receiver, Sender};

impl Side {
    fn program(self) -> &'static str {
        if self == Sender { "checkvalve-sender" } else { "checkvalve-receiver" }
    }

    fn config(self, site: &Site) -> &Path {
        if self == Sender { &site.low.config } else { &site.high.config }
    }
}

fn edit(path: &Path, change: impl FnOnce(&mut Table)) {
    let mut config: Table = toml::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    change(&mut config);
    std::fs::write(path, config.to_string()).unwrap();
}

/// Runs a command without root's right to override file modes. Returns its exit code and its standard error.
fn run(site: &Site, side: Side, command: &str) -> (Option<i32>, String) {
    let program = site.bin.join(side.program());
    let mut run = if rustix::process::geteuid().is_root() {
        let mut run = Command::new("setpriv");
        run.arg("--bounding-set=-dac_override,-dac_read_search").arg(program);
        run
    } else {
        Command::new(program)
    };
    let out = run.arg(command).arg("--config").arg(side.config(site)).output().unwrap();
    (out.status.code(), String::from_utf8_lossy(&out.stderr).into_owned())
}

#[test]
fn a_good_config_is_good() {
    let site = Pair::setup().files();
    for side in [Sender, Receiver] {
        let (code, said) = run(&site, side, "check-config");
        assert_eq!((code, said.as_str()), (Some(0), ""), "{side:?}");
    }
}

#[test]
fn each_mistake_is_named_in_one_line() {
    type Change = fn(&mut Table);
    // (side, mistake, words that the line must have: the key, and what to write instead)
    let cases: Vec<(Side, Change, &[&str])> = vec![
        (Sender, |c| set(c, "spol", Value::from("/x")), &["spol"]),
        (Sender, |c| set(c, "link.rat", Value::from("1 Gbit/s")), &["rat", "link"]),
        (Sender, |c| set(c, "channel.default.hook", Value::from("x")), &["hook"]),
        (Receiver, |c| set(c, "link.rate", Value::from("1 Gbit/s")), &["rate"]),
        (Receiver, |c| set(c, "inbx", Value::from("/x")), &["inbx"]),
        (Sender, |c| set(c, "link.rate", Value::from("900")), &["link.rate", "900 Mbit/s"]),
        (Sender, |c| set(c, "link.rate", Value::from(900)), &["link.rate", "Mbit/s"]),
        (Sender, |c| set(c, "link.rate", Value::from("900 parsecs")), &["link.rate", "Mbit/s"]),
        (Sender, |c| set(c, "link.rate", Value::from("0 Mbit/s")), &["link.rate"]),
        (Sender, |c| set(c, "fec.repair", Value::from("5")), &["fec.repair", "5 %"]),
        (Sender, |c| set(c, "fec.repair", Value::from("5000 %")), &["fec.repair"]),
        (Sender, |c| set(c, "fec.burst", Value::from("ten")), &["fec.burst", "10 ms"]),
        (Sender, |c| set(c, "fec.passes", Value::from(0)), &["fec.passes", "1"]),
        (Sender, |c| set(c, "link.mtu", Value::from(100)), &["link.mtu", "576"]),
        (Sender, |c| set(c, "link.mtu", Value::from(70_000)), &["link.mtu"]),
        (Receiver, |c| set(c, "link.mtu", Value::from(100)), &["link.mtu", "576"]),
        (Sender, |c| set(c, "link.destination", Value::from("10.0.0.2")), &["link.destination", ":7700"]),
        (Receiver, |c| set(c, "link.listen", Value::from("everywhere")), &["link.listen", ":7700"]),
        (Sender, |c| set(c, "spool", Value::from("/nowhere/spool")), &["spool", "/nowhere/spool"]),
        (Sender, |c| set(c, "state", Value::from("/nowhere/state")), &["state", "/nowhere/state"]),
        (Receiver, |c| set(c, "inbox", Value::from("/nowhere/inbox")), &["inbox", "/nowhere/inbox"]),
        (Receiver, |c| set(c, "quarantine", Value::from("/nowhere/q")), &["quarantine", "/nowhere/q"]),
        (Receiver, |c| set(c, "state", Value::from("/etc/hostname")), &["state", "/etc/hostname", "directory"]),
        (Sender, |c| set(c, "keys.link", Value::from("/nowhere/link.key")), &["keys.link", "/nowhere/link.key"]),
        (Sender, |c| set(c, "keys.signing", Value::from("/nowhere/s.key")), &["keys.signing", "/nowhere/s.key"]),
        (Receiver, |c| set(c, "keys.trusted", Value::from("/nowhere/t")), &["keys.trusted", "/nowhere/t"]),
        (Sender, |c| set(c, "keys.link", Value::from("/etc")), &["keys.link", "/etc"]),
        (Sender, |c| drop(c.remove("spool")), &["spool"]),
        (Sender, |c| drop(c.remove("keys")), &["keys"]),
        (Sender, |c| drop(c["link"].as_table_mut().unwrap().remove("rate")), &["rate"]),
        (Receiver, |c| drop(c.remove("inbox")), &["inbox"]),
        (
            Receiver,
            |c| set(c, "channel.default.hook.install", Value::from("/nowhere/hook")),
            &["install", "/nowhere/hook"],
        ),
        (Receiver, |c| set(c, "channel.Bad Name.hook.install", Value::from("/bin/true")), &["channel"]),
    ];
    let wrong = cases.into_iter().flat_map(|(side, change, words)| {
        let site = Pair::setup().files();
        edit(side.config(&site), change);
        refused(&site, side, words)
    });
    none(wrong.collect());
}

#[test]
fn key_files_are_read_with_care() {
    let modes: [(Side, &str, u32, &str); 4] = [
        (Sender, "link.key", 0o644, "chmod"),
        (Sender, "signing.key", 0o640, "chmod"),
        (Receiver, "link.key", 0o604, "chmod"),
        (Sender, "signing.key", 0o000, "signing.key"),
    ];
    for (side, name, mode, hint) in modes {
        let site = Pair::setup().files();
        let keys = if side == Sender { &site.low.keys } else { &site.high.keys };
        std::fs::set_permissions(keys.join(name), Permissions::from_mode(mode)).unwrap();
        let key = if name == "link.key" { "keys.link" } else { "keys.signing" };
        none(refused(&site, side, &[key, hint]));
    }
    for content in ["", "nonsense\n", "checkvalve-link-1 00\n", "checkvalve-signing-1 \n"] {
        let site = Pair::setup().files();
        std::fs::write(site.low.keys.join("link.key"), content).unwrap();
        none(refused(&site, Sender, &["keys.link"]));
    }
}

#[test]
fn a_config_that_is_none() {
    let site = Pair::setup().files();
    std::fs::write(&site.low.config, "this is = = not toml\n").unwrap();
    none(refused(&site, Sender, &["sender.toml"]));
    std::fs::remove_file(&site.low.config).unwrap();
    none(refused(&site, Sender, &["sender.toml"]));
}

fn none(wrong: Vec<String>) {
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

/// Checks that `check-config` and `run` both exit with 78 and print one line with these words. Returns what is wrong.
fn refused(site: &Site, side: Side, words: &[&str]) -> Vec<String> {
    let mut wrong = Vec::new();
    for command in ["check-config", "run"] {
        let (code, said) = run(site, side, command);
        let mut complain = |what: &str| wrong.push(format!("{side:?} {command} {words:?}: {what}: {said}"));
        if code != Some(78) {
            complain(&format!("exit {code:?}"));
        }
        if said.trim_end().lines().count() != 1 {
            complain("not one line");
        }
        for word in words.iter().filter(|word| !said.contains(**word)) {
            complain(&format!("no {word:?}"));
        }
    }
    wrong
}
