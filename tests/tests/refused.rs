//! A bundle that the sender refuses goes to `.failed` with its reason, and later bundles are still sent.

use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use checkvalve_tests::pair::Pair;
use checkvalve_tests::shell::sh;
use checkvalve_tests::snapshot::Snapshot;
use checkvalve_tests::{require_link, tree};

/// Waits for the reason why a bundle was refused.
fn reason(pair: &Pair, name: &str) -> String {
    let failed = pair.low.spool.join("default/.failed");
    // The reason is written first.
    pair.wait_for(&format!("{name} in .failed"), || failed.join(name).symlink_metadata().ok());
    std::fs::read_to_string(failed.join(format!("{name}.reason")))
        .unwrap_or_else(|error| panic!("{name}.reason: {error}"))
}

fn directory(pair: &Pair, name: &str) -> PathBuf {
    let path = pair.place(name);
    std::fs::create_dir(&path).unwrap();
    tree::file(&path.join("plain"), b"plain", 0o644);
    path
}

#[test]
fn what_no_bundle_may_hold() {
    require_link!();
    let pair = Pair::setup().sender_obeys_modes().start();
    // (name of the bundle, what makes it refusable, words of which one must be in the reason)
    type Spoil = fn(&Path);
    let cases: [(&str, Spoil, &[&str]); 10] = [
        ("fifo", |dir| drop(sh(&format!("mkfifo {}/bad", dir.display()))), &["fifo", "pipe"]),
        ("socket", |dir| drop(UnixListener::bind(dir.join("bad")).unwrap()), &["socket"]),
        ("device", |dir| drop(sh(&format!("mknod {}/bad c 1 3", dir.display()))), &["device"]),
        ("unreadable", |dir| tree::file(&dir.join("bad"), b"secret", 0o000), &["read", "permission", "Permission"]),
        ("setuid", |dir| tree::file(&dir.join("bad"), b"#!", 0o4755), &["setuid", "mode"]),
        ("setgid", |dir| tree::file(&dir.join("bad"), b"#!", 0o2755), &["setgid", "mode"]),
        ("absolute", |dir| symlink("/etc/passwd", dir.join("bad")).unwrap(), &["symlink", "target"]),
        ("outside", |dir| symlink("../../x", dir.join("bad")).unwrap(), &["symlink", "target"]),
        ("sideways", |dir| symlink("plain/../..", dir.join("bad")).unwrap(), &["symlink", "target"]),
        (
            "deep",
            |dir| std::fs::create_dir_all(dir.join("bad").join("d/".repeat(200))).unwrap(),
            &["deep", "component"],
        ),
    ];
    for (name, spoil, words) in cases {
        let path = directory(&pair, name);
        spoil(&path);
        let before = Snapshot::of(&path).0.keys().cloned().collect::<Vec<_>>();
        std::fs::rename(&path, pair.low.spool.join("default").join(name)).unwrap();
        let reason = reason(&pair, name);
        assert!(words.iter().any(|word| reason.contains(word)), "{name}: the reason does not say why: {reason}");
        assert!(reason.contains("bad"), "{name}: the reason does not name the entry: {reason}");
        assert_eq!(reason.trim_end().lines().count(), 1, "{name}: more than a line: {reason}");
        let after =
            Snapshot::of(&pair.low.spool.join("default/.failed").join(name)).0.keys().cloned().collect::<Vec<_>>();
        assert_eq!(after, before, "{name}: something of it is gone");
        let next = pair.drop_file(&format!("after-{name}"), name.as_bytes());
        pair.wait_installed(&next);
    }
    let sequences: Vec<u64> = pair.hook_runs().iter().map(|run| run.sequence()).collect();
    assert_eq!(sequences, (1..=10).collect::<Vec<u64>>(), "what was refused took no sequence number");
}

#[test]
fn a_symlink_or_fifo_dropped_by_itself() {
    require_link!();
    let pair = Pair::setup().start();
    symlink("/etc/passwd", pair.low.spool.join("default/link")).unwrap();
    sh(&format!("mkfifo {}", pair.low.spool.join("default/pipe").display()));
    for name in ["link", "pipe"] {
        assert!(!reason(&pair, name).is_empty());
    }
    let next = pair.drop_file("next", b"goes");
    pair.wait_installed(&next);
}

#[test]
fn a_file_that_changes_or_vanishes_while_it_is_read() {
    require_link!();
    let pair = Pair::setup().rate("100 Mbit/s").start();
    type Spoil = fn(&Path);
    let cases: [(&str, Spoil); 3] = [
        ("vanishes", |file| std::fs::remove_file(file).unwrap()),
        ("grows", |file| std::fs::write(file, vec![1; 2000]).unwrap()),
        ("changes", |file| std::fs::write(file, vec![2; 1000]).unwrap()),
    ];
    for (name, spoil) in cases {
        let path = pair.place(name);
        std::fs::create_dir(&path).unwrap();
        tree::large(&path.join("a-large"), 30 << 20, 1);
        let victim = format!("z-{name}");
        tree::file(&path.join(&victim), &[0; 1000], 0o644);
        let bundle = pair.drop(name);
        pair.wait_sender_state(&bundle, &["transmitting"]);
        spoil(&find(pair.dir.path(), &victim).expect("the claimed bundle is somewhere"));
        pair.wait_sender_state(&bundle, &["failed"]);
        let reason = reason(&pair, name);
        assert!(reason.contains(&victim), "{name}: the reason does not name the file: {reason}");
        let known = pair.wait_state(&bundle, &["withdrawn"]);
        assert!(!pair.landed(&bundle, known.sequence).exists(), "half a bundle was published");
        let next = pair.drop_file(&format!("after-{name}"), b"goes");
        pair.wait_installed(&next);
    }
}

#[test]
fn what_is_not_a_bundle_yet_is_left_alone() {
    require_link!();
    let pair = Pair::setup().start();
    let spool = pair.low.spool.join("default");
    for name in [".hidden", "upload.part", "upload.tmp"] {
        std::fs::write(spool.join(name), b"not yet").unwrap();
    }
    // A file that is written slowly in place is claimed as a whole, and only after the last write has settled.
    let mut slow = std::fs::File::create(spool.join("slow")).unwrap();
    for _ in 0..8 {
        std::io::Write::write_all(&mut slow, &[b's'; 1000]).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(500));
    }
    drop(slow);
    pair.wait_for("the slowly written file", || {
        (pair.receiver_status()?.find("default", "slow")?.state == "installed").then_some(())
    });
    assert_eq!(std::fs::read(pair.high.inbox.join("default/00000001/slow")).unwrap(), vec![b's'; 8000]);
    std::fs::rename(spool.join("upload.part"), spool.join("upload")).unwrap();
    pair.wait_for("the finished upload", || {
        (pair.receiver_status()?.find("default", "upload")?.state == "installed").then_some(())
    });
    for name in [".hidden", "upload.tmp"] {
        assert!(spool.join(name).exists(), "{name} was taken");
    }
}

/// Finds a file by its name while other files come and go.
fn find(root: &Path, name: &str) -> Option<PathBuf> {
    root.read_dir().ok()?.flatten().find_map(|entry| {
        let path = entry.path();
        if entry.file_name() == name { Some(path) } else { find(&path, name) }
    })
}
