use super::*;

mod crash;
mod differential;
mod journal;

const EIO: i32 = 5;
const ENOSPC: i32 = 28;

fn p(path: &str) -> &Path {
    Path::new(path)
}

fn kind(result: io::Result<impl Sized>) -> io::ErrorKind {
    result.err().expect("an error").kind()
}

fn put(disk: &SimDisk, path: &str, bytes: &[u8]) {
    let file = disk.create_new(p(path), 0o644).unwrap();
    file.write_all_at(bytes, 0).unwrap();
}

fn get(disk: &SimDisk, path: &str) -> Option<Vec<u8>> {
    disk.tree(p("/")).into_iter().find(|found| found.path == p(path)).map(|found| found.bytes)
}

#[test]
fn fails_the_operation_that_it_is_told_to() {
    let disk = SimDisk::new(1);
    put(&disk, "/a", b"a");
    assert_eq!((disk.operations(), disk.count(Op::CreateNew), disk.count(Op::WriteAllAt)), (2, 1, 1));
    disk.fail_nth(1, ENOSPC);
    disk.lstat(p("/a")).unwrap();
    assert_eq!(kind(disk.lstat(p("/a"))), io::ErrorKind::StorageFull);
    disk.lstat(p("/a")).unwrap();

    disk.fail_op(Op::SyncDir, 1, EIO);
    disk.sync_dir(p("/")).unwrap();
    disk.lstat(p("/")).unwrap();
    assert_eq!(disk.sync_dir(p("/")).unwrap_err().raw_os_error(), Some(EIO));
    disk.sync_dir(p("/")).unwrap();

    disk.fail_every(Op::Rename, EIO);
    for _ in 0..3 {
        assert!(disk.rename(p("/a"), p("/b")).is_err());
    }
    disk.fail_from(1, EIO);
    disk.lstat(p("/a")).unwrap();
    for _ in 0..3 {
        assert!(disk.lstat(p("/a")).is_err());
    }
    disk.heal();
    disk.rename(p("/a"), p("/b")).unwrap();
    assert_eq!(disk.operations(), 1);
}

#[test]
fn a_write_that_fails_leaves_a_part() {
    let lengths = (0..50).map(|seed| {
        let disk = SimDisk::new(seed);
        let file = disk.create_new(p("/a"), 0o644).unwrap();
        disk.fail_op(Op::WriteAllAt, 0, EIO);
        assert!(file.write_all_at(&[7; 100], 0).is_err());
        get(&disk, "/a").unwrap().len()
    });
    let lengths: std::collections::BTreeSet<_> = lengths.collect();
    assert!(lengths.len() > 10 && *lengths.last().unwrap() <= 100, "{lengths:?}");
}

#[test]
fn fills_up_and_gets_room_again() {
    let disk = SimDisk::new(1);
    disk.set_capacity(p("/"), Some(40_000));
    let before = disk.free_space(p("/")).unwrap().bytes;
    put(&disk, "/kept", b"");
    let file = disk.create_new(p("/big"), 0o644).unwrap();
    assert_eq!(kind(file.write_all_at(&[1; 50_000], 0)), io::ErrorKind::StorageFull);
    let written = file.len().unwrap();
    assert!(written > 30_000 && written < 40_000 && written.is_multiple_of(4096), "{written}");
    assert_eq!(kind(file.append(b"x")), io::ErrorKind::StorageFull);
    file.write_all_at(b"over", 0).unwrap();
    assert!(disk.free_space(p("/")).unwrap().bytes < 4096);
    // A removed file still takes its space while it is open.
    disk.remove_file(p("/big")).unwrap();
    assert!(disk.free_space(p("/")).unwrap().bytes < 4096);
    drop(file);
    assert_eq!(disk.free_space(p("/")).unwrap().bytes, before - world::INODE_COST);
    put(&disk, "/sparse", b"");
    let sparse = disk.open_rw(p("/sparse")).unwrap();
    sparse.set_len(1 << 20).unwrap();
    sparse.write_all_at(b"x", 500_000).unwrap();
    assert_eq!(disk.used(p("/")), 3 * world::INODE_COST + world::PAGE);
    sparse.set_len(0).unwrap();
    assert_eq!(disk.used(p("/")), 3 * world::INODE_COST);

    for n in 0.. {
        match disk.create_dir(p(&format!("/d{n}")), 0o755) {
            Ok(()) => assert!(n < 200),
            Err(error) => {
                assert_eq!(error.kind(), io::ErrorKind::StorageFull);
                break;
            }
        }
    }
    disk.crash(0);
    assert!(disk.used(p("/")) <= 40_000);
    disk.set_capacity(p("/"), None);
    put(&disk, "/more", &[1; 100_000]);
}

#[test]
fn two_file_systems() {
    let disk = SimDisk::new(1);
    disk.create_dir_all(p("/srv/inbox"), 0o755).unwrap();
    disk.mount(p("/srv/inbox"));
    put(&disk, "/a", b"a");
    let (here, there) = (disk.lstat(p("/srv")).unwrap().dev, disk.lstat(p("/srv/inbox")).unwrap().dev);
    assert_ne!(here, there);
    assert_eq!(kind(disk.rename(p("/a"), p("/srv/inbox/a"))), io::ErrorKind::CrossesDevices);
    assert_eq!(kind(disk.rename_noreplace(p("/a"), p("/srv/inbox/a"))), io::ErrorKind::CrossesDevices);
    assert_eq!(kind(disk.remove_dir(p("/srv/inbox"))), io::ErrorKind::ResourceBusy);
    put(&disk, "/srv/inbox/b", b"b");
    assert_eq!(disk.lstat(p("/srv/inbox/../inbox/b")).unwrap().dev, there);
    disk.set_capacity(p("/srv/inbox"), Some(0));
    assert_eq!(kind(disk.create_dir(p("/srv/inbox/c"), 0o755)), io::ErrorKind::StorageFull);
    disk.create_dir(p("/c"), 0o755).unwrap();
    // Syncing one file system does not sync the other.
    disk.sync_fs(p("/")).unwrap();
    put(&disk, "/srv/b", b"b");
    (0..20).for_each(|seed| disk.crash(seed));
    assert_eq!(get(&disk, "/a").as_deref(), Some(&b"a"[..]));
    let lost = (0..20).any(|seed| {
        let disk = SimDisk::new(1);
        disk.create_dir(p("/m"), 0o755).unwrap();
        disk.mount(p("/m"));
        put(&disk, "/m/b", b"b");
        disk.sync_fs(p("/")).unwrap();
        disk.crash(seed);
        get(&disk, "/m/b").is_none()
    });
    assert!(lost);
}

#[test]
fn read_only_means_it() {
    let disk = SimDisk::new(1);
    put(&disk, "/a", b"a");
    let file = disk.open_rw(p("/a")).unwrap();
    disk.set_read_only(p("/"), true);
    let failed: Vec<io::Result<()>> = vec![
        disk.create_new(p("/b"), 0o600).map(drop),
        disk.open_rw(p("/a")).map(drop),
        disk.open_append_or_create(p("/a")).map(drop),
        disk.open_append_or_create(p("/b")).map(drop),
        disk.create_dir(p("/d"), 0o700),
        disk.create_dir_all(p("/d/e"), 0o700),
        disk.symlink(b"a", p("/l")),
        disk.rename(p("/a"), p("/b")),
        disk.rename_noreplace(p("/a"), p("/b")),
        disk.remove_file(p("/a")),
        disk.remove_tree(p("/a")),
        disk.set_mode(p("/a"), 0),
        disk.set_mtime(p("/a"), 0, 0),
        file.write_all_at(b"x", 0),
        file.append(b"x"),
        file.set_len(0),
    ];
    for (i, result) in failed.into_iter().enumerate() {
        assert_eq!(kind(result), io::ErrorKind::ReadOnlyFilesystem, "{i}");
    }
    assert_eq!(get(&disk, "/a").unwrap(), b"a");
    disk.create_dir_all(p("/"), 0o755).unwrap();
    disk.open_read(p("/a")).unwrap();
    disk.set_read_only(p("/"), false);
    file.append(b"x").unwrap();
}

#[test]
fn modes_bind_their_owner_but_not_root() {
    for root in [false, true] {
        let disk = SimDisk::new(1);
        let disk = if root { disk.as_root() } else { disk };
        disk.create_dir_all(p("/d/e"), 0o755).unwrap();
        put(&disk, "/d/f", b"f");
        let open = disk.open_rw(p("/d/f")).unwrap();
        disk.set_mode(p("/d/f"), 0o044).unwrap();
        assert_eq!(disk.open_read(p("/d/f")).is_ok(), root);
        disk.set_mode(p("/d/f"), 0o400).unwrap();
        disk.open_read(p("/d/f")).unwrap();
        assert_eq!(disk.open_rw(p("/d/f")).is_ok(), root);
        open.append(b"x").unwrap();
        disk.set_mode(p("/d"), 0o500).unwrap();
        assert_eq!(disk.create_dir(p("/d/g"), 0o755).is_ok(), root);
        assert!(disk.read_dir(p("/d")).is_ok());
        disk.set_mode(p("/d"), 0o300).unwrap();
        assert_eq!(disk.read_dir(p("/d")).is_ok(), root);
        disk.set_mode(p("/d"), 0o600).unwrap();
        assert_eq!(disk.lstat(p("/d/f")).is_ok(), root);
        disk.remove_tree(p("/d")).unwrap();
        assert_eq!(disk.tree(p("/")), []);
    }
}

#[test]
fn stamps_files_with_its_clock() {
    let disk = SimDisk::new(1);
    let at = |secs| FileTime { secs, nanos: 7 };
    disk.set_time(at(100));
    put(&disk, "/a", b"a");
    disk.set_time(at(200));
    disk.rename(p("/a"), p("/b")).unwrap();
    let meta = disk.lstat(p("/b")).unwrap();
    assert_eq!((meta.mtime, meta.ctime, disk.lstat(p("/")).unwrap().mtime), (at(100), at(200), at(200)));
    disk.set_time(at(50));
    disk.set_mtime(p("/b"), 1, 2).unwrap();
    let meta = disk.lstat(p("/b")).unwrap();
    assert_eq!((meta.mtime, meta.ctime), (FileTime { secs: 1, nanos: 2 }, at(50)));
    disk.open_rw(p("/b")).unwrap().append(b"x").unwrap();
    assert_eq!(disk.lstat(p("/b")).unwrap().mtime, at(50));
    assert_eq!(kind(disk.set_mtime(p("/b"), 0, 1_000_000_000)), io::ErrorKind::InvalidInput);
}

#[test]
fn links_on_the_way_are_followed_and_loops_are_found() {
    let disk = SimDisk::new(1);
    disk.create_dir_all(p("/a/b"), 0o755).unwrap();
    put(&disk, "/a/b/f", b"f");
    for (link, target) in [("/l", "a/b"), ("/a/up", "../l/f"), ("/a/b/abs", "/a/b/../../l"), ("/loop", "loop")] {
        disk.symlink(target.as_bytes(), p(link)).unwrap();
    }
    assert_eq!(disk.lstat(p("/l/f")).unwrap(), disk.lstat(p("/a/b/f")).unwrap());
    assert_eq!(disk.lstat(p("/l/abs/f")).unwrap(), disk.lstat(p("/a/b/f")).unwrap());
    assert_eq!(disk.lstat(p("/a/up")).unwrap().kind, Kind::Symlink);
    assert_eq!(disk.lstat(p("/loop/x")).unwrap_err().raw_os_error(), Some(errno::LOOP));
    disk.create_new(p("/l/through"), 0o644).unwrap();
    assert!(get(&disk, "/a/b/through").is_some(), "what a careless receiver would do");
    disk.plant(p("/fifo"), Kind::Fifo);
    assert_eq!(kind(disk.open_read(p("/fifo"))), io::ErrorKind::InvalidInput);
    assert_eq!(disk.lstat(p("/fifo")).unwrap().kind, Kind::Fifo);
    let long = format!("/{}", "n".repeat(256));
    assert_eq!(kind(disk.create_dir(p(&long), 0o755)), io::ErrorKind::InvalidFilename);
    assert_eq!(kind(disk.lstat(p(&"/a".repeat(3000)))), io::ErrorKind::InvalidFilename);
}

#[test]
fn the_same_seed_gives_the_same_disk() {
    let run = |seed| {
        let disk = SimDisk::new(seed);
        let mut rng = crate::rng::Rng::new(5);
        for n in 0..50 {
            put(&disk, &format!("/f{n}"), &rng.bytes(3000));
            if rng.chance(200) {
                disk.sync_fs(p("/")).unwrap();
            }
        }
        disk.crash(seed);
        disk.tree(p("/"))
    };
    assert_eq!(run(3), run(3));
    assert_ne!(run(3), run(4));
}

#[test]
fn what_was_open_is_gone_after_a_crash_or_a_kill() {
    let disk = SimDisk::new(1);
    put(&disk, "/a", b"a");
    let file = disk.open_rw(p("/a")).unwrap();
    disk.kill();
    assert_eq!(file.append(b"x").unwrap_err().raw_os_error(), Some(EIO));
    assert_eq!(get(&disk, "/a").unwrap(), b"a", "a kill loses nothing");
    let file = disk.open_rw(p("/a")).unwrap();
    disk.crash(1);
    assert_eq!(file.len().unwrap_err().raw_os_error(), Some(EIO));
}

#[test]
fn a_power_cut_unwinds_and_nothing_works_until_the_crash() {
    let disk = SimDisk::new(1);
    disk.cut_power_at(1);
    let seen = std::cell::Cell::new(0);
    let ran = SimDisk::until_power_cut(|| {
        for n in 0..5 {
            disk.create_dir(p(&format!("/{n}")), 0o755).unwrap();
            seen.set(n + 1);
        }
    });
    assert_eq!((ran, seen.get()), (None, 1));
    assert_eq!(disk.lstat(p("/0")).unwrap_err().raw_os_error(), Some(EIO));
    disk.crash(1);
    disk.lstat(p("/")).unwrap();
    assert_eq!(SimDisk::until_power_cut(|| 5), Some(5));
    assert!(std::panic::catch_unwind(|| SimDisk::until_power_cut(|| std::panic::resume_unwind(Box::new(3)))).is_err());
}

#[test]
fn rot_changes_a_byte_and_nothing_else() {
    let disk = SimDisk::new(1);
    put(&disk, "/a", b"abc");
    let before = disk.lstat(p("/a")).unwrap();
    disk.rot(p("/a"), 1, 1);
    assert_eq!((get(&disk, "/a").unwrap(), disk.lstat(p("/a")).unwrap()), (b"acc".to_vec(), before));
}
