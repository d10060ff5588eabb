use std::fs;
use std::sync::Arc;

use checkvalve_host::disk::OsDisk;
use checkvalve_host::disk::fault::FailNth;

use super::*;

struct Place {
    dir: tempfile::TempDir,
    holding: Holding,
}

fn channel() -> ChannelName {
    ChannelName::new("default").unwrap()
}

fn place() -> Place {
    let dir = tempfile::tempdir().unwrap();
    let (spool, state) = (dir.path().join("spool"), dir.path().join("state"));
    fs::create_dir(&spool).unwrap();
    fs::create_dir(&state).unwrap();
    let holding = Holding::open(&OsDisk, &spool, &state, [channel()]).unwrap();
    Place { dir, holding }
}

impl Place {
    fn folder(&self) -> PathBuf {
        self.holding.folder(&channel())
    }

    fn claimed(&self, name: &OsStr, id: u64) -> Home {
        fs::write(self.folder().join(name), "content").unwrap();
        self.holding.claim(&OsDisk, &channel(), name, BundleId(id)).unwrap()
    }
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn opening_leaves_nothing_behind_and_chooses_the_state_directory() {
    let place = place();
    assert_eq!(names(&place.folder()), [""; 0]);
    assert_eq!(names(&place.dir.path().join("state")), ["bundles"]);
    assert_eq!(names(&place.dir.path().join("state/bundles")), [""; 0]);
    assert_eq!(names(&place.dir.path().join("spool")), ["default"]);
}

#[test]
fn another_file_system_is_held_in_the_spool() {
    // EXDEV for the first rename only, as between two mounts.
    let dir = tempfile::tempdir().unwrap();
    let (spool, state) = (dir.path().join("spool"), dir.path().join("state"));
    fs::create_dir_all(spool.join("default")).unwrap();
    fs::create_dir(&state).unwrap();
    let disk = FailNth::new(Arc::new(OsDisk));
    drop(Holding::open(&disk, &spool, &state, [channel()]).unwrap());
    let rename = disk.operations().iter().position(|what| *what == "rename").unwrap();
    disk.heal();
    disk.fail_once(rename, 18);
    let holding = Holding::open(&disk, &spool, &state, [channel()]).unwrap();
    fs::write(spool.join("default/f"), "").unwrap();
    let home = holding.claim(&OsDisk, &channel(), "f".as_ref(), BundleId(1)).unwrap();
    assert!(home.root().starts_with(spool.join(".checkvalve")));
    assert_eq!(holding.find(&OsDisk, &channel(), BundleId(1)).unwrap().as_ref(), Some(&home));
    assert_eq!(holding.scan(&OsDisk).unwrap().len(), 1);
    // The next start may see state on the same file system; what is held elsewhere is found all the same.
    let holding = Holding::open(&OsDisk, &spool, &state, [channel()]).unwrap();
    assert_eq!(holding.find(&OsDisk, &channel(), BundleId(1)).unwrap(), Some(home));
}

#[test]
fn claims_are_found_again_in_their_order() {
    let place = place();
    for (id, name) in [(9, "first"), (3, "second"), (5, "third")] {
        place.claimed(name.as_ref(), id);
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    let found = place.holding.scan(&OsDisk).unwrap();
    let order: Vec<_> = found.iter().map(|f| (f.home.id().0, f.name.clone().unwrap().into_string().unwrap())).collect();
    assert_eq!(order, [(9, "first".into()), (3, "second".into()), (5, "third".into())]);
    assert_eq!(names(&place.folder()), [""; 0]);
}

#[test]
fn a_claim_that_fails_anywhere_leaves_the_bundle_where_it_was() {
    let place = place();
    let disk = FailNth::new(Arc::new(OsDisk));
    let file = place.folder().join("f");
    let mut nth = 0;
    loop {
        fs::write(&file, "content").unwrap();
        disk.heal();
        disk.fail_once(nth, 28);
        match place.holding.claim(&disk, &channel(), "f".as_ref(), BundleId(nth as u64 + 1)) {
            Ok(home) => {
                assert!(!file.exists() && home.root().join("f").exists());
                break;
            }
            Err(error) => {
                assert_eq!(error.raw_os_error(), Some(28));
                assert_eq!(fs::read_to_string(&file).unwrap(), "content", "{nth}");
            }
        }
        nth += 1;
    }
    assert!(nth >= 2);
}

#[test]
fn what_is_given_up_lies_in_failed_beside_its_reason() {
    let place = place();
    let long = "x".repeat(255);
    for id in 1..=3 {
        let home = place.claimed("f".as_ref(), id);
        place.holding.fail(&OsDisk, &home, &format!("reason {id}")).unwrap();
    }
    let home = place.claimed(long.as_ref(), 4);
    place.holding.fail(&OsDisk, &home, "long").unwrap();
    let failed = place.folder().join(FAILED);
    let reason = format!("{}.reason", "x".repeat(248));
    assert_eq!(names(&failed), ["f", "f.1", "f.1.reason", "f.2", "f.2.reason", "f.reason", &reason, &long]);
    assert_eq!(fs::read_to_string(failed.join("f.1.reason")).unwrap(), "reason 2\n");
    assert!(place.holding.scan(&OsDisk).unwrap().is_empty());
    assert_eq!(place.holding.fail(&OsDisk, &home, "again").unwrap(), None, "nothing is left to move");
}

#[test]
fn giving_up_survives_an_error_at_every_step() {
    let disk = FailNth::new(Arc::new(OsDisk));
    for nth in 0.. {
        let place = place();
        let home = place.claimed("f".as_ref(), 1);
        disk.heal();
        disk.fail_once(nth, 28);
        let first = place.holding.fail(&disk, &home, "reason");
        let steps = disk.operations().len();
        disk.heal();
        if first.is_err() {
            place.holding.fail(&disk, &home, "reason").unwrap();
        }
        let failed = place.folder().join(FAILED);
        assert_eq!(fs::read_to_string(failed.join("f")).unwrap(), "content", "{nth}");
        assert_eq!(fs::read_to_string(failed.join("f.reason")).unwrap(), "reason\n", "{nth}");
        assert_eq!(names(&failed).len(), 2, "{nth}");
        assert!(place.holding.scan(&OsDisk).unwrap().is_empty(), "{nth}");
        if nth >= steps {
            return;
        }
    }
}

#[test]
fn announce_and_hashes_are_read_as_written() {
    let place = place();
    let home = place.claimed("f".as_ref(), 1);
    assert_eq!(home.read_announce(&OsDisk).unwrap_err().kind(), io::ErrorKind::NotFound);
    home.write_announce(&OsDisk, b"one").unwrap();
    home.write_announce(&OsDisk, b"two").unwrap();
    assert_eq!(home.read_announce(&OsDisk).unwrap(), b"two");
    home.write_hashes(&OsDisk, &[[1; 32], [2; 32]]).unwrap();
    assert_eq!(home.read_hashes(&OsDisk).unwrap(), [[1; 32], [2; 32]]);
    home.write_hashes(&OsDisk, &[]).unwrap();
    assert!(home.read_hashes(&OsDisk).unwrap().is_empty());
    assert_eq!(home.name(&OsDisk).unwrap(), Some("f".into()));
    place.holding.sync_claim(&OsDisk, &home).unwrap();
    home.remove(&OsDisk).unwrap();
    home.remove(&OsDisk).unwrap();
    assert!(place.holding.find(&OsDisk, &channel(), BundleId(1)).unwrap().is_none());
}
