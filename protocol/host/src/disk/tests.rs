use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::sync::Arc;

use super::fault::FailNth;
use super::*;

const EIO: i32 = 5;

fn kind(result: io::Result<impl Sized>) -> io::ErrorKind {
    result.err().expect("an error").kind()
}

#[test]
fn write_atomic_leaves_old_or_new_whatever_fails() {
    let new = vec![7; 10_000];
    for old in [None, Some(b"old".to_vec())] {
        for all_after in [false, true] {
            for step in 0.. {
                let dir = tempfile::tempdir().unwrap();
                let path = dir.path().join("file");
                if let Some(old) = &old {
                    std::fs::write(&path, old).unwrap();
                }
                let disk = FailNth::new(Arc::new(OsDisk));
                if all_after {
                    disk.fail_from(step, EIO)
                } else {
                    disk.fail_once(step, EIO)
                };
                let result = write_atomic(&disk, &path, &new, 0o640);
                let steps = disk.operations();
                let there = std::fs::read(&path).ok();
                if steps.len() <= step {
                    result.unwrap();
                    assert_eq!(steps, ["create_new", "write_all_at", "sync_all", "rename", "sync_dir"]);
                    assert_eq!(there, Some(new.clone()));
                    break;
                }
                assert_eq!(result.unwrap_err().raw_os_error(), Some(EIO), "the first error is told: {steps:?}");
                let renamed = steps.contains(&"sync_dir");
                assert_eq!(there.as_ref(), if renamed { Some(&new) } else { old.as_ref() }, "{steps:?}");
                if !all_after {
                    assert!(!dir.path().join(".file.tmp").exists(), "{steps:?}");
                }
                write_atomic(&OsDisk, &path, b"next", 0o600).unwrap();
                assert_eq!(std::fs::read(&path).unwrap(), b"next");
                assert_eq!(OsDisk.read_dir(dir.path()).unwrap(), ["file"]);
                assert_eq!(OsDisk.lstat(&path).unwrap().mode, 0o600);
            }
        }
    }
}

#[test]
fn write_atomic_has_room_for_the_longest_name_and_replaces_no_directory() {
    let dir = tempfile::tempdir().unwrap();
    for len in [250, 251, 255] {
        let path = dir.path().join("n".repeat(len));
        write_atomic(&OsDisk, &path, b"x", 0o600).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"x");
    }
    std::fs::create_dir(dir.path().join("d")).unwrap();
    write_atomic(&OsDisk, &dir.path().join("d"), b"x", 0o600).unwrap_err();
    assert!(!dir.path().join(".d.tmp").exists());
    assert_eq!(kind(write_atomic(&OsDisk, Path::new("/"), b"x", 0o600)), io::ErrorKind::InvalidInput);
}

#[test]
fn opens_nothing_but_regular_files_and_never_blocks() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    std::fs::write(at("file"), b"hello").unwrap();
    std::os::unix::fs::symlink("file", at("link")).unwrap();
    std::os::unix::fs::symlink("nowhere", at("dangling")).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, at("fifo"), rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU, 0).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
    for name in ["link", "fifo", "dangling", ".", "socket"] {
        for result in [OsDisk.open_read(&at(name)), OsDisk.open_rw(&at(name)), OsDisk.open_append_or_create(&at(name))]
        {
            assert_eq!(kind(result), io::ErrorKind::InvalidInput, "{name}");
        }
    }
    for name in ["fifo", "socket", "."] {
        OsDisk.set_mode(&at(name), 0o711).unwrap();
        assert_eq!(OsDisk.lstat(&at(name)).unwrap().mode, 0o711);
    }
    assert!(OsDisk.open_read(Path::new("/dev/null")).is_err());
    assert!(!at("nowhere").exists());
    let kinds = ["file", "link", "fifo", "socket", "."].map(|name| OsDisk.lstat(&at(name)).unwrap().kind);
    assert_eq!(kinds, [Kind::File, Kind::Symlink, Kind::Fifo, Kind::Socket, Kind::Directory]);
    assert_eq!(OsDisk.lstat(Path::new("/dev/null")).unwrap().kind, Kind::CharDevice);
    assert!(std::fs::symlink_metadata(at("socket")).unwrap().file_type().is_socket());
    assert_eq!(OsDisk.read_link(&at("dangling")).unwrap(), Path::new("nowhere"));
    assert_eq!(kind(OsDisk.create_new(&at("dangling"), 0o600)), io::ErrorKind::AlreadyExists);
}

#[test]
fn files_read_write_and_stat() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    let file = OsDisk.create_new(&path, 0o666).unwrap();
    assert_eq!(file.meta().unwrap().mode, 0o666, "whatever the umask");
    file.write_all_at(b"world", 6).unwrap();
    file.write_all_at(b"hello", 0).unwrap();
    file.append(b"!").unwrap();
    file.start_writeback(0, 4).unwrap();
    file.start_writeback(0, 0).unwrap();
    file.sync_data().unwrap();
    file.sync_all().unwrap();
    let mut buf = [9; 20];
    assert_eq!(file.read_at(&mut buf, 3).unwrap(), 9);
    assert_eq!(&buf[..9], b"lo\0world!");
    assert_eq!(file.read_at(&mut buf, 12).unwrap(), 0);
    file.set_len(5).unwrap();
    assert!(!file.is_empty().unwrap());
    file.set_mode(0o4711).unwrap();
    file.set_mtime(-5, 123_456_789).unwrap();
    let meta = OsDisk.lstat(&path).unwrap();
    assert_eq!(meta, file.meta().unwrap());
    assert_eq!((meta.size, meta.mode, meta.nlink), (5, 0o4711, 1));
    assert_eq!(meta.mtime, FileTime { secs: -5, nanos: 123_456_789 });
    let std_meta = std::fs::metadata(&path).unwrap();
    assert_eq!((meta.dev, meta.ino, meta.uid), (std_meta.dev(), std_meta.ino(), std_meta.uid()));
    assert_eq!(read_all(&OsDisk, &path, 5).unwrap(), b"hello");
    assert_eq!(kind(read_all(&OsDisk, &path, 4)), io::ErrorKind::FileTooLarge);

    let log = dir.path().join("log");
    for part in [b"one ", b"two "] {
        OsDisk.open_append_or_create(&log).unwrap().append(part).unwrap();
    }
    OsDisk.open_append_or_create(&log).unwrap().write_all_at(b"end", 0).unwrap();
    assert_eq!(std::fs::read(&log).unwrap(), b"one two end");
    assert_eq!(kind(OsDisk.open_rw(&dir.path().join("none"))), io::ErrorKind::NotFound);
}

#[test]
fn directories_names_and_renames() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    OsDisk.create_dir_all(&at("a/b/c"), 0o777).unwrap();
    OsDisk.create_dir_all(&at("a/b/c"), 0o700).unwrap();
    assert_eq!(OsDisk.lstat(&at("a/b")).unwrap().mode, 0o777);
    assert_eq!(kind(OsDisk.create_dir(&at("a"), 0o700)), io::ErrorKind::AlreadyExists);
    std::fs::write(at("file"), b"x").unwrap();
    assert_eq!(kind(OsDisk.create_dir_all(&at("file"), 0o700)), io::ErrorKind::AlreadyExists);
    assert_eq!(kind(OsDisk.create_dir_all(&at("file/x"), 0o700)), io::ErrorKind::NotADirectory);

    for name in ["é", "b", "B", "a b", "\n"] {
        std::fs::write(at("a/b/c").join(name), b"").unwrap();
    }
    assert_eq!(OsDisk.read_dir(&at("a/b/c")).unwrap(), ["\n", "B", "a b", "b", "é"]);
    std::os::unix::fs::symlink("a", at("link")).unwrap();
    assert!(OsDisk.read_dir(&at("link")).is_err(), "not through a link");

    std::fs::write(at("other"), b"y").unwrap();
    assert_eq!(kind(OsDisk.rename_noreplace(&at("file"), &at("other"))), io::ErrorKind::AlreadyExists);
    assert_eq!(kind(OsDisk.rename_noreplace(&at("a"), &at("link"))), io::ErrorKind::AlreadyExists);
    assert_eq!(kind(OsDisk.rename_noreplace(&at("none"), &at("new"))), io::ErrorKind::NotFound);
    OsDisk.rename_noreplace(&at("file"), &at("new")).unwrap();
    OsDisk.rename(&at("new"), &at("other")).unwrap();
    assert_eq!(std::fs::read(at("other")).unwrap(), b"x");

    assert_eq!(kind(OsDisk.remove_dir(&at("a"))), io::ErrorKind::DirectoryNotEmpty);
    OsDisk.remove_dir(&at("a/b")).unwrap_err();
    OsDisk.remove_file(&at("link")).unwrap();
    OsDisk.sync_dir(dir.path()).unwrap();
    OsDisk.sync_fs(dir.path()).unwrap();
    OsDisk.sync_fs(&at("other")).unwrap();
    let free = OsDisk.free_space(dir.path()).unwrap();
    assert!(free.bytes > 0 && free.files > 0);
    assert_eq!(kind(OsDisk.sync_dir(&at("other"))), io::ErrorKind::NotADirectory);
}

#[test]
fn links_are_never_followed_when_modes_and_times_are_set() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    std::fs::write(at("file"), b"x").unwrap();
    std::fs::set_permissions(at("file"), std::fs::Permissions::from_mode(0o600)).unwrap();
    OsDisk.set_mtime(&at("file"), 1, 0).unwrap();
    OsDisk.symlink(b"file", &at("link")).unwrap();
    OsDisk.set_mtime(&at("link"), 2, 5).unwrap();
    assert_eq!(kind(OsDisk.set_mode(&at("link"), 0o777)), io::ErrorKind::InvalidInput);
    assert_eq!(OsDisk.lstat(&at("file")).unwrap().mtime, FileTime { secs: 1, nanos: 0 });
    assert_eq!(OsDisk.lstat(&at("link")).unwrap().mtime, FileTime { secs: 2, nanos: 5 });
    assert_eq!(OsDisk.lstat(&at("file")).unwrap().mode, 0o600);
    OsDisk.set_mode(&at("file"), 0).unwrap();
    OsDisk.set_mode(&at("file"), 0o1755).unwrap();
    assert_eq!(OsDisk.lstat(&at("file")).unwrap().mode, 0o1755);
    OsDisk.set_mode(dir.path(), 0o711).unwrap();
    assert_eq!(kind(OsDisk.symlink(b"x", &at("link"))), io::ErrorKind::AlreadyExists);
}

#[test]
fn remove_tree_takes_everything_but_what_links_point_to() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    std::fs::create_dir_all(at("kept")).unwrap();
    std::fs::write(at("kept/file"), b"x").unwrap();
    std::fs::create_dir_all(at("tree/a/b")).unwrap();
    std::fs::write(at("tree/a/b/file"), b"x").unwrap();
    OsDisk.symlink(at("kept").as_os_str().as_encoded_bytes(), &at("tree/link")).unwrap();
    for name in ["tree/a/b", "tree/a", "tree"] {
        std::fs::set_permissions(at(name), std::fs::Permissions::from_mode(0o0)).unwrap();
    }
    OsDisk.remove_tree(&at("tree")).unwrap();
    assert!(!at("tree").exists() && at("kept/file").exists());
    OsDisk.symlink(b"kept", &at("link")).unwrap();
    OsDisk.remove_tree(&at("link")).unwrap();
    OsDisk.remove_tree(&at("kept/file")).unwrap();
    assert_eq!(kind(OsDisk.remove_tree(&at("link"))), io::ErrorKind::NotFound);
}

#[test]
fn what_cannot_be_opened_to_be_synced_lost_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let gone = dir.path().join("gone");
    for error in [OsDisk.sync_fs(&gone).unwrap_err(), OsDisk.sync_dir(&gone.join("below")).unwrap_err()] {
        assert!(!is_loss(&error), "{error}");
    }
    std::fs::write(&gone, "a file").unwrap();
    let error = OsDisk.sync_dir(&gone).unwrap_err();
    assert!(!is_loss(&error), "{error}");
    assert_eq!(error.kind(), io::ErrorKind::NotADirectory);
    // What the sync itself says is one, whatever it says: over a network it may be that nobody is allowed to write any more.
    for code in [EIO, 13, 28] {
        assert!(is_loss(&io::Error::from_raw_os_error(code)));
    }
    let disk = FailNth::new(Arc::new(OsDisk));
    disk.fail_once(0, EIO);
    assert!(is_loss(&disk.sync_fs(dir.path()).unwrap_err()));
}
