use std::fs;
use std::io::Write;
use std::sync::mpsc;
use std::time::Duration;

use super::*;

fn channel() -> ChannelName {
    ChannelName::new("default").unwrap()
}

/// A watched folder, and what is told about it.
struct Rig {
    dir: tempfile::TempDir,
    watcher: Watcher,
    told: mpsc::Receiver<Told>,
}

impl Rig {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("default")).unwrap();
        let (tell, told) = mpsc::channel();
        let folders = [(channel(), dir.path().join("default"))];
        let mut watcher = Watcher::new(folders, Box::new(move |what| drop(tell.send(what)))).unwrap();
        assert!(watcher.refresh().unwrap());
        assert!(!watcher.refresh().unwrap());
        Self { dir, watcher, told }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join("default").join(name)
    }

    /// What was seen of `name`, up to `last`.
    fn until(&self, name: &str, last: Seen) -> Vec<Seen> {
        let mut all = Vec::new();
        loop {
            match self.told.recv_timeout(Duration::from_secs(10)).unwrap() {
                Told::Seen(place, seen) if place == (channel(), name.into()) => {
                    all.push(seen);
                    if seen == last {
                        return all;
                    }
                }
                _ => {}
            }
        }
    }
}

#[test]
fn renames_are_told_as_such() {
    let rig = Rig::new();
    fs::write(rig.dir.path().join("x"), "").unwrap();
    fs::rename(rig.dir.path().join("x"), rig.path("f")).unwrap();
    assert_eq!(rig.until("f", Seen::Renamed), [Seen::Renamed]);
    fs::rename(rig.path("f"), rig.path("g")).unwrap();
    assert_eq!(rig.until("f", Seen::Removed), [Seen::Removed]);
    assert_eq!(rig.until("g", Seen::Renamed), [Seen::Renamed]);
    fs::create_dir(rig.dir.path().join("d")).unwrap();
    fs::rename(rig.dir.path().join("d"), rig.path("d")).unwrap();
    assert_eq!(rig.until("d", Seen::Renamed), [Seen::Renamed]);
}

#[test]
fn writing_is_told_until_it_is_closed() {
    let rig = Rig::new();
    let mut file = fs::File::create(rig.path("f")).unwrap();
    file.write_all(b"x").unwrap();
    assert_eq!(rig.until("f", Seen::Written), [Seen::Created, Seen::Written]);
    drop(file);
    assert_eq!(rig.until("f", Seen::Closed).last(), Some(&Seen::Closed));
    fs::create_dir(rig.path("d")).unwrap();
    assert_eq!(rig.until("d", Seen::Touched), [Seen::Touched]);
    fs::remove_file(rig.path("f")).unwrap();
    rig.until("f", Seen::Removed);
}

#[test]
fn a_folder_that_is_replaced_is_watched_again() {
    let mut rig = Rig::new();
    fs::remove_dir(rig.path("")).unwrap();
    while rig.told.recv_timeout(Duration::from_secs(10)).unwrap() != Told::Lost {}
    assert!(!rig.watcher.refresh().unwrap(), "there is none");
    fs::create_dir(rig.path("")).unwrap();
    assert!(rig.watcher.refresh().unwrap());
    fs::write(rig.path("f"), "").unwrap();
    rig.until("f", Seen::Closed);
}
