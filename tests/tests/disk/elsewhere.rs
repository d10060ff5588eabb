//! Directories on other file systems, or behind other mounts of the same one.

use std::path::{Path, PathBuf};

use checkvalve_tests::mount::Mount;
use checkvalve_tests::pair::Pair;
use checkvalve_tests::shell::sh;
use checkvalve_tests::{require_link, tree};

/// A directory mounted onto itself, as systemd does with each path that a unit may write to.
struct Bound(PathBuf);

impl Bound {
    fn new(path: &Path) -> Self {
        sh(&format!("mount --bind {0} {0}", path.display()));
        Self(path.to_owned())
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("--lazy").arg(&self.0).output();
    }
}

fn staged_in(pair: &Pair) -> PathBuf {
    let out = pair.receiver_command(&["--json", "check-config"]);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let said: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    said["staging"].as_str().unwrap().into()
}

/// A tree goes through, one that the hook refuses goes to quarantine, and one goes on after a restart.
fn all_goes_through(pair: &mut Pair) {
    assert_eq!(staged_in(pair), pair.high.inbox.join(".staging"), "detected");
    pair.start_receiver();
    pair.start_sender();
    tree::odd(&pair.place("odd"), 300, 7);
    let odd = pair.drop("odd");
    pair.wait_installed(&odd);
    pair.assert_identical(&odd);
    let refused = pair.drop_file("refused", b"refused");
    let found = pair.wait_state(&refused, &["quarantined"]);
    let content = pair.high.quarantine.join(format!("default/00000002-{}/content/refused", found.id));
    assert_eq!(std::fs::read(content).unwrap(), b"refused");
    pair.stop_receiver();
    pair.start_receiver();
    let last = pair.drop_file("last", b"last");
    pair.wait_installed(&last);
    pair.assert_identical(&last);
    pair.stop_receiver();
}

const HOOK: &str = "case $1 in *refused) exit 65;; esac";

#[test]
fn inbox_quarantine_and_state_on_three_file_systems() {
    require_link!();
    let mut pair = Pair::setup().hook(HOOK).lay();
    let _mounts = [&pair.high.inbox, &pair.high.quarantine, &pair.high.state].map(|at| Mount::tmpfs(at, "64m"));
    all_goes_through(&mut pair);
}

/// One file system, and still nothing can be renamed from one to the other.
#[test]
fn inbox_quarantine_and_state_behind_mounts_of_one_file_system() {
    require_link!();
    let mut pair = Pair::setup().hook(HOOK).lay();
    let _mounts = [&pair.high.inbox, &pair.high.quarantine, &pair.high.state].map(|at| Bound::new(at));
    all_goes_through(&mut pair);
}

/// The sender claims by renaming within the spool where its state is elsewhere.
#[test]
fn spool_and_state_behind_mounts_of_one_file_system() {
    require_link!();
    let mut pair = Pair::setup().lay();
    let _mounts = [&pair.low.spool, &pair.low.state].map(|at| Bound::new(at));
    pair.low.place = pair.low.spool.join(".place");
    std::fs::create_dir(&pair.low.place).unwrap();
    pair.start_receiver();
    pair.start_sender();
    tree::odd(&pair.place("odd"), 300, 8);
    let odd = pair.drop("odd");
    pair.wait_installed(&odd);
    pair.assert_identical(&odd);
    assert!(pair.low.spool.join(".checkvalve/default").is_dir());
    pair.stop_sender();
}
