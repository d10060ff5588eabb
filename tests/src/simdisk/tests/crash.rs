//! The states that a power cut leaves, and whether the daemons' helpers survive them.

use std::collections::BTreeSet;

use checkvalve_host::disk::write_atomic;

use super::*;
use crate::rng::Rng;

/// Runs `build` on a fresh disk, crashes it, and returns what `look` sees, for many seeds.
fn seen<T: Ord>(build: impl Fn(&SimDisk), look: impl Fn(&SimDisk) -> T) -> BTreeSet<T> {
    let one = |seed| {
        let disk = SimDisk::new(seed);
        build(&disk);
        disk.crash(seed);
        look(&disk)
    };
    (0..300).map(one).collect()
}

fn names(disk: &SimDisk, path: &str) -> String {
    disk.tree(p(path))
        .iter()
        .map(|found| found.path.file_name().unwrap().to_str().unwrap())
        .collect::<Vec<_>>()
        .join(" ")
}

#[test]
fn bytes_that_were_not_synced_are_kept_lost_or_torn() {
    let left = seen(
        |disk| {
            put(disk, "/f", &[1; 2048]);
            disk.sync_fs(p("/")).unwrap();
            disk.open_rw(p("/f")).unwrap().write_all_at(&[2; 2048], 1024).unwrap();
        },
        |disk| get(disk, "/f").unwrap(),
    );
    assert!(left.contains(&vec![1; 2048]), "lost");
    assert!(left.contains(&[vec![1; 1024], vec![2; 2048]].concat()), "kept");
    assert!(left.contains(&[vec![1; 2048], vec![0; 1024]].concat()), "the length without the bytes");
    let torn = [vec![1; 1024], vec![2; 512], vec![1; 512], vec![2; 1024]].concat();
    assert!(left.contains(&torn), "a sector was lost");
    let sectors = left.iter().flat_map(|bytes| bytes.chunks(512));
    assert!(sectors.clone().all(|sector| sector.iter().all(|byte| byte == &sector[0])), "sectors are whole");
    assert!(left.iter().all(|bytes| bytes[..1024] == [1; 1024]), "synced bytes that were not overwritten stay");
}

#[test]
fn synced_bytes_stay() {
    for times in [false, true] {
        let left = seen(
            |disk| {
                put(disk, "/f", &[1; 5000]);
                disk.sync_dir(p("/")).unwrap();
                let file = disk.open_rw(p("/f")).unwrap();
                if times {
                    file.sync_all().unwrap()
                } else {
                    file.sync_data().unwrap()
                }
                file.set_mtime(5, 5).unwrap();
            },
            |disk| (get(disk, "/f").unwrap(), disk.lstat(p("/f")).unwrap().mtime.secs),
        );
        let times: BTreeSet<_> = left.iter().map(|(_, secs)| *secs).collect();
        assert!(left.iter().all(|(bytes, _)| bytes == &[1; 5000]));
        assert_eq!(
            times.into_iter().collect::<Vec<_>>(),
            [5, 1_700_000_000],
            "times that were not synced go both ways"
        );
    }
}

#[test]
fn names_are_cut_off_at_one_point_in_time() {
    let create = |disk: &SimDisk| ["/1", "/2", "/3"].iter().for_each(|path| put(disk, path, b""));
    let left = seen(create, |disk| names(disk, "/"));
    assert_eq!(left.into_iter().collect::<Vec<_>>(), ["", "1", "1 2", "1 2 3"]);
    let left = seen(
        |disk| {
            create(disk);
            disk.sync_dir(p("/")).unwrap();
            put(disk, "/4", b"");
        },
        |disk| names(disk, "/"),
    );
    assert_eq!(left.into_iter().collect::<Vec<_>>(), ["1 2 3", "1 2 3 4"]);
}

#[test]
fn a_rename_is_whole_or_not_at_all() {
    let tree = |disk: &SimDisk| {
        disk.create_dir(p("/a"), 0o755).unwrap();
        disk.create_dir(p("/b"), 0o755).unwrap();
        put(disk, "/a/x", b"new");
        put(disk, "/b/x", b"old");
        disk.sync_fs(p("/")).unwrap();
        disk.rename(p("/a/x"), p("/b/x")).unwrap();
    };
    let both = |disk: &SimDisk| (names(disk, "/a"), get(disk, "/b/x").unwrap());
    let (old, new) = (("x".to_owned(), b"old".to_vec()), (String::new(), b"new".to_vec()));
    assert_eq!(seen(tree, both), BTreeSet::from([old, new.clone()]));
    for dir in ["/a", "/b"] {
        let synced = |disk: &SimDisk| {
            tree(disk);
            disk.sync_dir(p(dir)).unwrap();
        };
        assert_eq!(seen(synced, both), BTreeSet::from([new.clone()]));
    }
}

#[test]
fn a_directory_whose_name_is_lost_takes_its_contents_along() {
    let build = |disk: &SimDisk| {
        disk.create_dir(p("/new"), 0o755).unwrap();
        let file = disk.create_new(p("/new/f"), 0o644).unwrap();
        file.append(b"f").unwrap();
        file.sync_all().unwrap();
        disk.sync_dir(p("/new")).unwrap();
    };
    let left = seen(build, |disk| get(disk, "/new/f"));
    assert_eq!(left, BTreeSet::from([None, Some(b"f".to_vec())]), "a missing sync of the parent shows");
    let synced = |disk: &SimDisk| {
        build(disk);
        disk.sync_dir(p("/")).unwrap();
    };
    assert_eq!(seen(synced, |disk| get(disk, "/new/f")), BTreeSet::from([Some(b"f".to_vec())]));
}

#[test]
fn a_sync_that_fails_is_not_mended_by_the_next() {
    let build = |disk: &SimDisk| {
        put(disk, "/f", b"old");
        disk.sync_fs(p("/")).unwrap();
        let file = disk.open_rw(p("/f")).unwrap();
        file.write_all_at(b"new", 0).unwrap();
        disk.fail_op(Op::SyncData, 0, EIO);
        assert!(file.sync_data().is_err());
        file.sync_data().unwrap();
        assert_eq!(get(disk, "/f").unwrap(), b"new", "the cache has it");
    };
    let left = seen(build, |disk| get(disk, "/f").unwrap());
    assert_eq!(left, BTreeSet::from([b"new".to_vec(), b"old".to_vec()]));
    let again = |disk: &SimDisk| {
        build(disk);
        let file = disk.open_rw(p("/f")).unwrap();
        file.write_all_at(b"new", 0).unwrap();
        file.sync_data().unwrap();
    };
    assert_eq!(seen(again, |disk| get(disk, "/f").unwrap()), BTreeSet::from([b"new".to_vec()]));
}

#[test]
fn whatever_is_moved_about_a_durable_file_is_in_one_place() {
    for seed in 0..400 {
        let mut rng = Rng::new(seed);
        let disk = SimDisk::new(seed);
        for dir in 0..3 {
            disk.create_dir(p(&format!("/{dir}")), 0o755).unwrap();
        }
        for file in 0..4 {
            put(&disk, &format!("/0/{file}"), &[file; 10]);
        }
        disk.sync_fs(p("/")).unwrap();
        for _ in 0..rng.below(40) {
            let mut place = || format!("/{}/{}", rng.below(3), rng.below(5));
            let (from, to) = (place(), place());
            drop(disk.rename_noreplace(p(&from), p(&to)));
            if rng.chance(300) {
                // Directory 1 may be inside directory 2 at this point.
                drop(disk.sync_dir(p(&format!("/{}", rng.below(3)))));
            }
            if rng.chance(100) {
                drop(disk.rename_noreplace(p("/1"), p("/2/dir")));
            }
            if rng.chance(100) {
                drop(disk.rename_noreplace(p("/2/dir"), p("/1")));
            }
        }
        disk.crash(rng.next_u64());
        let mut found: Vec<_> =
            disk.tree(p("/")).into_iter().filter(|found| found.kind == Kind::File).map(|found| found.bytes).collect();
        found.sort();
        assert_eq!(found, [[0; 10], [1; 10], [2; 10], [3; 10]], "seed {seed}");
    }
}

/// A way to replace `/d/f` by these bytes.
type Replace = fn(&SimDisk, &[u8]) -> io::Result<()>;

/// Cuts the power in each operation of `replace`, with many outcomes. Returns the first state that must not be possible.
fn attack(replace: Replace) -> Option<String> {
    let (old, new) = (vec![1; 3000], vec![2; 5000]);
    for existed in [false, true] {
        for step in 0..20 {
            for seed in 0..40 {
                let disk = SimDisk::new(seed);
                disk.create_dir(p("/d"), 0o755).unwrap();
                if existed {
                    put(&disk, "/d/f", &old);
                }
                disk.sync_fs(p("/")).unwrap();
                disk.heal();
                disk.cut_power_at(step);
                let done = SimDisk::until_power_cut(|| replace(&disk, &new).unwrap());
                disk.crash(seed);
                let left = get(&disk, "/d/f");
                let good = match &left {
                    Some(bytes) if *bytes == new => true,
                    Some(bytes) => done.is_none() && existed && *bytes == old,
                    None => done.is_none() && !existed,
                };
                if !good {
                    return Some(format!(
                        "step {step}, seed {seed}, done {done:?}: {:?}",
                        left.map(|bytes| bytes.len())
                    ));
                }
                // Whatever the crash left, the next write must work.
                if write_atomic(&disk, p("/d/f"), &new, 0o644).is_err() || names(&disk, "/d") != "f" {
                    return Some(format!("step {step}, seed {seed}: {}", names(&disk, "/d")));
                }
            }
        }
    }
    None
}

#[test]
fn write_atomic_leaves_old_or_new_at_every_power_cut() {
    assert_eq!(attack(|disk, bytes| write_atomic(disk, p("/d/f"), bytes, 0o644)), None);
}

#[test]
fn careless_ways_to_replace_a_file_are_caught() {
    fn fresh(disk: &SimDisk, bytes: &[u8]) -> io::Result<Box<dyn DiskFile>> {
        let file = disk.create_new(p("/d/.f.tmp"), 0o644)?;
        file.write_all_at(bytes, 0)?;
        Ok(file)
    }
    let careless: [(&str, Replace); 4] = [
        ("no sync of the file", |disk, bytes| {
            fresh(disk, bytes)?;
            disk.rename(p("/d/.f.tmp"), p("/d/f"))?;
            disk.sync_dir(p("/d"))
        }),
        ("no sync of the directory", |disk, bytes| {
            fresh(disk, bytes)?.sync_all()?;
            disk.rename(p("/d/.f.tmp"), p("/d/f"))
        }),
        ("sync after the rename", |disk, bytes| {
            let file = fresh(disk, bytes)?;
            disk.rename(p("/d/.f.tmp"), p("/d/f"))?;
            file.sync_all()?;
            disk.sync_dir(p("/d"))
        }),
        ("in place", |disk, bytes| {
            let file = disk.open_append_or_create(p("/d/f"))?;
            file.set_len(0)?;
            file.append(bytes)?;
            file.sync_all()?;
            disk.sync_dir(p("/d"))
        }),
    ];
    for (what, replace) in careless {
        assert!(attack(replace).is_some(), "{what}");
    }
}

#[test]
fn write_atomic_on_a_disk_that_is_full_or_fails_leaves_old_or_new() {
    for errno in [EIO, ENOSPC] {
        for step in 0..5 {
            for seed in 0..20 {
                let disk = SimDisk::new(seed);
                put(&disk, "/f", b"old");
                disk.sync_fs(p("/")).unwrap();
                disk.fail_nth(step, errno);
                assert!(write_atomic(&disk, p("/f"), &[2; 9000], 0o644).is_err());
                assert_eq!(names(&disk, "/"), "f", "nothing is left behind");
                disk.crash(seed);
                let left = get(&disk, "/f").unwrap();
                assert!(left == b"old" || (step == 4 && left == [2; 9000]));
            }
        }
    }
    let disk = SimDisk::new(1);
    put(&disk, "/f", b"old");
    disk.set_capacity(p("/"), Some(10_000));
    assert_eq!(kind(write_atomic(&disk, p("/f"), &[2; 9000], 0o644)), io::ErrorKind::StorageFull);
    assert_eq!((names(&disk, "/"), get(&disk, "/f").unwrap()), ("f".into(), b"old".to_vec()));
}
