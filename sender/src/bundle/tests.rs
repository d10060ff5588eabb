use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use checkvalve_host::disk::fault::FailNth;
use checkvalve_host::disk::{Disk, OsDisk};
use checkvalve_protocol::crypto::SigningKey;
use checkvalve_protocol::manifest::EntryKind;

use super::*;

fn identity(name: &str) -> Identity {
    Identity {
        bundle: BundleId(7),
        channel: ChannelName::new("default").unwrap(),
        sequence: 1,
        name: name.into(),
        created_ms: 5,
        symbol_size: 1_408,
        block_symbols: 256,
    }
}

fn planned(root: &Path, name: &str) -> Result<Plan, RefuseReason> {
    plan(&OsDisk, root, identity(name))
}

/// Contents of some megabytes that are the same nowhere.
fn content(len: usize) -> Vec<u8> {
    (0..len as u64).map(|i| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect()
}

/// A tree with everything that may be in one.
fn tree(root: &Path) {
    use std::os::unix::ffi::OsStrExt;
    let top = root.join("t");
    for dir in ["a", "a.b", "a/deep/er", "empty"] {
        fs::create_dir_all(top.join(dir)).unwrap();
    }
    let odd = std::ffi::OsStr::from_bytes(b"a\xff\n\"");
    let files = [
        (PathBuf::from("a/deep/er/x"), content(3_000_000)),
        ("a/z".into(), Vec::new()),
        (Path::new("a").join(odd), b"odd".to_vec()),
        ("a.b/y".into(), content(10)),
        ("q".into(), Vec::new()),
        ("z".into(), content(70_000)),
    ];
    for (path, bytes) in &files {
        fs::write(top.join(path), bytes).unwrap();
    }
    fs::set_permissions(top.join("z"), PermissionsExt::from_mode(0o751)).unwrap();
    symlink("../q", top.join("a/good")).unwrap();
}

fn reader(root: &Path, plan: Plan) -> Reader {
    Reader::new(Arc::new(OsDisk), Arc::new(plan), root.to_owned())
}

fn read_all(mut reader: Reader, size: usize) -> Result<(Vec<u8>, Vec<[u8; 32]>), ReadError> {
    let (mut all, mut buf) = (Vec::new(), vec![0; size]);
    loop {
        let n = reader.read(&mut buf)?;
        all.extend_from_slice(&buf[..n]);
        if n < size {
            return Ok((all, reader.finish()?));
        }
    }
}

#[test]
fn a_tree_is_planned_in_order_and_can_be_signed() {
    let dir = tempfile::tempdir().unwrap();
    tree(dir.path());
    let plan = planned(dir.path(), "t").unwrap();
    let paths: Vec<_> = plan.announce.entries.iter().map(|e| e.path.as_bytes().escape_ascii().to_string()).collect();
    assert_eq!(
        paths,
        [
            "t",
            "t/a",
            "t/a/a\\xff\\n\\\"",
            "t/a/deep",
            "t/a/deep/er",
            "t/a/deep/er/x",
            "t/a/good",
            "t/a/z",
            "t/a.b",
            "t/a.b/y",
            "t/empty",
            "t/q",
            "t/z"
        ]
    );
    assert_eq!(plan.data_len(), 3_000_000 + 3 + 10 + 70_000);
    let last = plan.announce.entries.last().unwrap();
    assert_eq!(last.kind, EntryKind::File { size: 70_000, mode: 0o751 });
    assert!(plan.announce.sign(&SigningKey::from_seed([1; 32])).is_ok());
}

#[test]
fn reading_gives_all_contents_and_hashes_whatever_the_buffer() {
    let dir = tempfile::tempdir().unwrap();
    tree(dir.path());
    let plan = planned(dir.path(), "t").unwrap();
    let contents: Vec<Vec<u8>> = plan
        .announce
        .files()
        .map(|span| fs::read(dir.path().join(plan.announce.entries.at(span.entry).path.as_path())).unwrap())
        .collect();
    let hashes: Vec<[u8; 32]> = contents.iter().map(|c| blake3::hash(c).into()).collect();
    for size in [1_000, 4096, 65_537, 1 << 20, 8 << 20] {
        let (all, got) = read_all(reader(dir.path(), plan.clone()), size).unwrap();
        assert!(all == contents.concat() && got == hashes, "buffer of {size}");
    }
    let all = contents.concat();
    let mut spot = SpotReader::new(Arc::new(OsDisk), Arc::new(plan.clone()), dir.path().into());
    for (offset, len) in [(0, 10), (0, 4 << 20), (3, 3), (2_999_990, 100), (3_000_003, 70_011), (3_069_000, 1 << 20)] {
        let mut buf = vec![0; len];
        let n = spot.read_at(&mut buf, offset as u64).unwrap();
        let end = (offset + len).min(all.len());
        assert!(buf[..n] == all[offset..end], "{offset} {len}");
    }
    assert_eq!(spot.read_at(&mut [0; 4], all.len() as u64).unwrap(), 0);
    let expected = Arc::new(hashes.clone());
    assert!(read_all(reader(dir.path(), plan.clone()).expecting(expected), 9_999).is_ok());
    let mut wrong = hashes;
    wrong[2][0] ^= 1;
    let error = read_all(reader(dir.path(), plan).expecting(Arc::new(wrong)), 9_999).unwrap_err();
    assert!(matches!(error, ReadError::Different { .. }), "{error}");
}

#[test]
fn empty_bundles_are_bundles() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("f"), "").unwrap();
    fs::create_dir(dir.path().join("d")).unwrap();
    let file = planned(dir.path(), "f").unwrap();
    assert_eq!(read_all(reader(dir.path(), file.clone()), 10).unwrap().1.len(), 1);
    assert_eq!(reader(dir.path(), file).finish().unwrap(), [<[u8; 32]>::from(blake3::hash(b""))], "without a read");
    assert_eq!(read_all(reader(dir.path(), planned(dir.path(), "d").unwrap()), 10).unwrap(), (vec![], vec![]));
}

#[test]
fn what_cannot_be_sent_is_refused_by_its_path() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let refused = |name: &str| planned(dir.path(), name).unwrap_err().to_string();
    fs::create_dir_all(at("fifo/in")).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, at("fifo/in/pipe"), rustix::fs::FileType::Fifo, 0o644.into(), 0).unwrap();
    assert_eq!(refused("fifo"), "\"fifo/in/pipe\" is a named pipe, which cannot be sent");
    let _socket = std::os::unix::net::UnixListener::bind(at("sock")).unwrap();
    assert_eq!(refused("sock"), "\"sock\" is a socket, which cannot be sent");
    symlink("f", at("link")).unwrap();
    assert!(refused("link").starts_with("\"link\" is a symlink; drop what it points to"));
    assert_eq!(refused("none"), "\"none\" vanished");
    for (target, why) in
        [("/etc/passwd", "is absolute"), ("../../f", "points outside"), ("x/../../..", "points outside")]
    {
        let name = format!("out{}", target.len());
        fs::create_dir(at(&name)).unwrap();
        symlink(target, at(&name).join("l")).unwrap();
        let text = refused(&name);
        assert!(
            text.contains(&format!("{name}/l\" is a symlink whose target \"{target}\"")) && text.contains(why),
            "{text}"
        );
    }
    fs::write(at("suid"), "").unwrap();
    fs::set_permissions(at("suid"), PermissionsExt::from_mode(0o4755)).unwrap();
    assert!(refused("suid").contains("has mode 4755: setuid and setgid are not sent"), "{}", refused("suid"));
    for name in ["..", ".", "/", ""] {
        assert!(matches!(planned(dir.path(), name), Err(RefuseReason::Path { .. })), "{name}");
    }
    let deep = (0..130).fold(at("deep"), |path, _| path.join("d"));
    fs::create_dir_all(&deep).unwrap();
    assert!(refused("deep").contains("deeper than 128 components"), "{}", refused("deep"));
}

#[test]
fn inherited_bits_of_directories_are_dropped() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("d")).unwrap();
    fs::set_permissions(dir.path().join("d"), PermissionsExt::from_mode(0o3775)).unwrap();
    let plan = planned(dir.path(), "d").unwrap();
    assert_eq!(plan.announce.entries.at(0).kind, EntryKind::Directory { mode: 0o775 });
}

#[test]
fn every_error_of_the_disk_while_planning_is_a_reason_and_none_is_a_plan() {
    let dir = tempfile::tempdir().unwrap();
    tree(dir.path());
    let disk = FailNth::new(Arc::new(OsDisk));
    let whole = plan(&disk, dir.path(), identity("t")).unwrap();
    let operations = disk.operations().len();
    assert!(operations > 15);
    for errno in [5, 2, 13, 24] {
        for nth in 0..operations {
            disk.heal();
            disk.fail_once(nth, errno);
            let error = plan(&disk, dir.path(), identity("t")).unwrap_err();
            assert_eq!(error.is_temporary(), errno == 24, "{nth}: {error}");
        }
    }
    disk.heal();
    assert_eq!(plan(&disk, dir.path(), identity("t")).unwrap(), whole);
}

#[test]
fn every_error_of_the_disk_while_reading_fails_the_bundle() {
    let dir = tempfile::tempdir().unwrap();
    tree(dir.path());
    let whole = Arc::new(planned(dir.path(), "t").unwrap());
    let disk = Arc::new(FailNth::new(Arc::new(OsDisk)));
    let read = || {
        let reader = Reader::new(Arc::clone(&disk) as Arc<dyn Disk>, Arc::clone(&whole), dir.path().into());
        read_all(reader, 1 << 20)
    };
    read().unwrap();
    let operations = disk.operations().len();
    for nth in 0..operations {
        disk.heal();
        disk.fail_once(nth, 5);
        let error = read().unwrap_err();
        assert!(matches!(error, ReadError::Io { .. }), "{nth}: {error}");
    }
}

/// What happens to a file between planning and the end of reading.
/// Gives how many bytes were read.
fn changed(change: impl Fn(&Path), when: usize) -> Result<usize, ReadError> {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("t")).unwrap();
    let path = dir.path().join("t/f");
    fs::write(&path, content(100_000)).unwrap();
    fs::write(dir.path().join("t/g"), "after").unwrap();
    let plan = planned(dir.path(), "t").unwrap();
    // Timestamps are as coarse as the kernel's tick.
    std::thread::sleep(std::time::Duration::from_millis(20));
    let mut reader = reader(dir.path(), plan);
    let (mut all, mut buf) = (0, vec![0; 40_000]);
    for step in 0.. {
        if step == when {
            change(&path);
        }
        let n = reader.read(&mut buf)?;
        all += n;
        if n < buf.len() {
            break;
        }
    }
    reader.finish().map(|_| all)
}

#[test]
fn a_file_that_changes_fails_the_bundle_whenever_it_does() {
    let grows = |path: &Path| drop(fs::write(path, content(100_001)));
    let shrinks = |path: &Path| drop(fs::write(path, content(99_999)));
    let differs = |path: &Path| drop(fs::write(path, vec![1; 100_000]));
    let vanishes = |path: &Path| drop(fs::remove_file(path));
    let becomes_a_fifo = |path: &Path| {
        fs::remove_file(path).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, path, rustix::fs::FileType::Fifo, 0o644.into(), 0).unwrap();
    };
    let becomes_a_link = |path: &Path| {
        fs::rename(path, path.with_extension("old")).unwrap();
        symlink("f.old", path).unwrap();
    };
    let is_replaced = |path: &Path| {
        fs::write(path.with_extension("new"), content(100_000)).unwrap();
        fs::rename(path.with_extension("new"), path).unwrap();
    };
    let is_chmodded = |path: &Path| drop(fs::set_permissions(path, PermissionsExt::from_mode(0o600)));
    for when in 0..3 {
        for (name, change) in [("grows", &grows as &dyn Fn(&Path)), ("shrinks", &shrinks), ("differs", &differs)] {
            let error = changed(change, when).unwrap_err();
            assert!(matches!(error, ReadError::Changed { .. }), "{name} {when}: {error}");
        }
        assert!(matches!(changed(is_chmodded, when), Err(ReadError::Changed { .. })), "{when}");
    }
    assert!(matches!(changed(vanishes, 0), Err(ReadError::Vanished { .. })));
    for change in [&becomes_a_fifo as &dyn Fn(&Path), &becomes_a_link, &is_replaced] {
        assert!(matches!(changed(change, 0), Err(ReadError::Changed { .. })));
    }
    // What is open already stays what it was.
    assert_eq!((changed(vanishes, 1), changed(vanishes, 2)), (Ok(100_005), Ok(100_005)));
    assert_eq!(changed(|_| (), 1), Ok(100_005));
}

#[test]
fn hard_links_come_and_go_without_a_change() {
    let links = |path: &Path| drop(fs::hard_link(path, path.with_extension("link")));
    for when in 0..3 {
        assert!(changed(links, when).is_ok(), "{when}");
    }
}

#[test]
fn reading_is_not_over_before_its_end() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("f"), content(1_000)).unwrap();
    let plan = planned(dir.path(), "f").unwrap();
    let mut reader = reader(dir.path(), plan.clone());
    reader.read(&mut [0; 999]).unwrap();
    assert_eq!(reader.finish(), Err(ReadError::Unfinished));
    let broken = Plan::broken(plan.announce, "gone");
    let mut reader = self::reader(dir.path(), broken);
    assert_eq!(reader.read(&mut [0; 10]), Err(ReadError::Broken("gone".into())));
}

#[test]
fn fingerprints_tell_whether_anyone_touched_a_file() {
    let dir = tempfile::tempdir().unwrap();
    tree(dir.path());
    let before = planned(dir.path(), "t").unwrap().fingerprint();
    assert_eq!(planned(dir.path(), "t").unwrap().fingerprint(), before);
    std::thread::sleep(std::time::Duration::from_millis(20));
    let z = dir.path().join("t/z");
    let mtime = fs::metadata(&z).unwrap().modified().unwrap();
    fs::write(&z, vec![0; 70_000]).unwrap();
    fs::File::options().write(true).open(&z).unwrap().set_modified(mtime).unwrap();
    assert_ne!(planned(dir.path(), "t").unwrap().fingerprint(), before, "the times were set back, but for ctime");
}
