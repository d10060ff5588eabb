//! Everything that is known about a run from outside, and the invariants that must hold.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use checkvalve_host::disk::{FileTime, Kind};
use checkvalve_protocol::id::BundleId;
use checkvalve_receiver::delivery::HookRun;
use checkvalve_receiver::delivery::status::Status;
use checkvalve_receiver::hook::Outcome;
use checkvalve_receiver::ledger::State;

use super::low::Started;
use super::said::Said;
use super::script::Options;
use crate::simdisk::{Found, SimDisk};

/// Ok, or the invariant that is violated.
pub(super) type Held = Result<(), String>;

/// Everything that happened in a run.
#[derive(Default)]
pub(super) struct Book {
    pub(super) drops: Vec<Dropped>,
    pub(super) said: Said,
    by_name: BTreeMap<Vec<u8>, usize>,
    pub(super) by_id: BTreeMap<BundleId, usize>,
    sequences: BTreeMap<(String, u64), ([u8; 32], BundleId)>,
    esis: BTreeMap<BundleId, Vec<Range<u32>>>,
    /// Bundles that were transmitted completely at least once.
    sent: BTreeSet<BundleId>,
    published: BTreeMap<(String, u64), Published>,
    tales: BTreeMap<BundleId, Tale>,
    begun: BTreeMap<String, u64>,
    /// Bundles that the operator gave up.
    pub(super) rejected: BTreeSet<BundleId>,
}

/// A bundle that an operator dropped.
pub(super) struct Dropped {
    pub(super) channel: String,
    pub(super) name: OsString,
    tree: Vec<Node>,
}

/// What must arrive of a file, directory or link, apart from where it is.
#[derive(Debug, PartialEq, Eq)]
struct Node {
    path: PathBuf,
    kind: Kind,
    mode: u32,
    mtime: FileTime,
    bytes: Vec<u8>,
}

#[derive(Default)]
struct Published {
    durable: bool,
    gone: bool,
}

/// What was seen of a bundle's hook.
struct Tale {
    channel: String,
    attempt: u32,
    running: bool,
    ended: Option<Ended>,
}

struct Ended {
    outcome: Outcome,
    epoch: u64,
    /// The disk misbehaved in this run of the process, so the outcome may not have been saved.
    faulty: bool,
}

impl Book {
    /// Notes that the tree at `place` was dropped as a bundle. The last component is the bundle's name.
    pub(super) fn dropped(&mut self, disk: &SimDisk, channel: &str, place: &Path) {
        let name = place.file_name().expect("a name").to_owned();
        let tree = nodes(&disk.tree(place.parent().expect("a directory")), place);
        self.by_name.insert(name.as_bytes().to_vec(), self.drops.len());
        self.drops.push(Dropped { channel: channel.to_owned(), name, tree });
    }

    /// Checks a transmission that the engine starts.
    pub(super) fn started(&mut self, job: &Started) -> Held {
        self.said.started(job)?;
        let Some(&drop) = self.by_name.get(&job.name) else {
            return Err(format!("{} is transmitted and was never dropped", job.name.escape_ascii()));
        };
        let at = (job.channel.clone(), job.sequence);
        let before = *self.sequences.entry(at).or_insert((job.announce, job.bundle));
        if before != (job.announce, job.bundle) {
            return Err(format!("{}/{} is transmitted with different content", job.channel, job.sequence));
        }
        if *self.by_id.entry(job.bundle).or_insert(drop) != drop {
            return Err(format!("bundle {} is two drops", job.bundle));
        }
        let used = self.esis.entry(job.bundle).or_default();
        if used.iter().any(|r| r.start < job.esis.end && job.esis.start < r.end) {
            return Err(format!("{}/{} uses ESIs {:?} again", job.channel, job.sequence, job.esis));
        }
        used.push(job.esis.clone());
        Ok(())
    }

    /// Notes that a transmission ended.
    pub(super) fn ended(&mut self, bundle: BundleId, whole: bool) {
        if whole {
            self.sent.insert(bundle);
        }
    }

    /// Checks that no drop is gone before it was sent, and that the sender has nothing outside its directories.
    pub(super) fn holds(&self, disk: &SimDisk) -> Held {
        let all = disk.tree(Path::new("/"));
        only(&all, &["spool", "state", "place"])?;
        for (number, drop) in self.drops.iter().enumerate() {
            if self.by_id.iter().any(|(id, n)| *n == number && self.sent.contains(id)) {
                continue;
            }
            if !copies(&all, &drop.name).any(|place| nodes(&all, place) == drop.tree) {
                return Err(format!("{:?} is gone and was never sent", drop.name));
            }
        }
        Ok(())
    }

    /// Whether a complete drop is in `.failed`.
    pub(super) fn is_failed(&self, disk: &SimDisk, number: usize) -> bool {
        let all = disk.tree(Path::new(super::low::SPOOL));
        let drop = &self.drops[number];
        let failed =
            copies(&all, &drop.name).filter(|p| p.parent().and_then(Path::file_name) == Some(OsStr::new(".failed")));
        failed.into_iter().any(|place| nodes(&all, place) == drop.tree)
    }

    /// Checks that everything in the inbox is exactly what was dropped, was published only once, and stays, and that the receiver
    /// has nothing outside its directories.
    pub(super) fn inbox(&mut self, disk: &SimDisk, status: Option<&Status>) -> Held {
        let all = disk.tree(Path::new("/"));
        only(&all, &["inbox", "quarantine", "state"])?;
        let inbox = Path::new(super::high::INBOX);
        let mut there = BTreeSet::new();
        for (nth, found) in all.iter().enumerate() {
            let Ok(path) = found.path.strip_prefix(inbox) else { continue };
            let parts: Vec<_> = path.components().map(|c| c.as_os_str()).collect();
            match parts[..] {
                [] => {}
                [first, ..] if first == ".staging" => {}
                [_] if found.kind == Kind::Directory => {}
                [channel, number] => {
                    let at = place(channel, number).ok_or_else(|| format!("{path:?} is in the inbox"))?;
                    self.is_exact(&all[nth..], &at, &found.path)?;
                    there.insert(at);
                }
                [_, _, ..] => {}
                [_] => return Err(format!("{path:?} is in the inbox")),
            }
        }
        for at in &there {
            let published = self.published.entry(at.clone()).or_default();
            // A power cut may undo a removal that was not finished. The next start removes it again.
            if published.gone && status.is_some() {
                return Err(format!("{at:?} was published a second time"));
            }
            published.gone = false;
        }
        for bundle in status.into_iter().flat_map(|status| &status.bundles) {
            if bundle.path.is_none() {
                continue;
            }
            let at = (bundle.channel.clone(), bundle.sequence);
            if !there.contains(&at) && !self.is_withdrawn(&at) {
                return Err(format!("{at:?} is said to be published and is not there"));
            }
            self.published.entry(at).or_default().durable = true;
        }
        let left: Vec<_> = self.published.keys().filter(|at| !there.contains(*at)).cloned().collect();
        for at in left {
            let withdrawn = self.is_withdrawn(&at);
            let published = self.published.get_mut(&at).expect("it was listed");
            if published.durable && !withdrawn {
                return Err(format!("{at:?} was published and is gone"));
            }
            published.gone = withdrawn;
            if !withdrawn {
                self.published.remove(&at);
            }
        }
        Ok(())
    }

    fn is_withdrawn(&self, at: &(String, u64)) -> bool {
        let Some((_, id)) = self.sequences.get(at) else { return false };
        let ended = self.tales.get(id).and_then(|tale| tale.ended.as_ref());
        ended.is_some_and(|ended| matches!(ended.outcome, Outcome::Quarantine(_)))
    }

    /// Checks a directory, with which `found` begins.
    fn is_exact(&self, found: &[Found], at: &(String, u64), directory: &Path) -> Held {
        let Some(&(_, id)) = self.sequences.get(at) else { return Err(format!("{at:?} was never sent")) };
        let drop = &self.drops[self.by_id[&id]];
        let expected = directory.join(&drop.name);
        let below = found.iter().skip(1).take_while(|f| f.path.starts_with(directory));
        if below.clone().any(|f| !f.path.starts_with(&expected)) {
            return Err(format!("{at:?} has more than was dropped"));
        }
        let found = nodes(found, &expected);
        if found != drop.tree {
            let first = drop.tree.iter().find(|node| !found.contains(node));
            let first = first.map(|n| (&n.path, n.kind, n.mode, n.mtime, n.bytes.len()));
            let other = found.iter().find(|node| !drop.tree.contains(node));
            let other = other.map(|n| (&n.path, n.kind, n.mode, n.mtime, n.bytes.len()));
            return Err(format!("{at:?} in the inbox is not what was dropped: {first:?} became {other:?}"));
        }
        Ok(())
    }

    /// Checks a hook that starts.
    pub(super) fn hook_starts(&mut self, run: &HookRun, status: &Status, epoch: u64, options: &Options) -> Held {
        let at = format!("{}/{} attempt {}", run.channel, run.sequence, run.attempt);
        let channel = run.channel.to_string();
        if self.tales.values().any(|tale| tale.running && tale.channel == channel) {
            return Err(format!("the hook of {at} starts while another of its channel runs"));
        }
        let begun = self.begun.entry(channel.clone()).or_default();
        match self.tales.get(&run.id) {
            None => {
                if run.sequence <= *begun {
                    return Err(format!("the hook of {at} starts after that of {begun}"));
                }
                let waiting = status.bundles.iter().find(|b| {
                    let open = b.state.is_open() || matches!(b.state, State::Complete | State::Installing);
                    b.channel == run.channel.as_str() && b.sequence > *begun && b.sequence < run.sequence && open
                });
                if let (Some(waiting), None) = (waiting, options.wait_for_missing_ms) {
                    return Err(format!("the hook of {at} starts before that of {}", waiting.sequence));
                }
                *begun = run.sequence;
            }
            Some(tale) => {
                if run.attempt <= tale.attempt {
                    return Err(format!("the hook of {at} starts after attempt {}", tale.attempt));
                }
                if *begun != run.sequence {
                    return Err(format!("the hook of {at} starts again after that of {begun}"));
                }
                if let Some(ended) = &tale.ended
                    && (ended.epoch == epoch || !ended.faulty)
                    && !matches!(ended.outcome, Outcome::Again | Outcome::NotStarted(_) | Outcome::Interrupted)
                {
                    return Err(format!("the hook of {at} starts again although it ended: {}", ended.outcome));
                }
            }
        }
        self.tales.insert(run.id, Tale { channel, attempt: run.attempt, running: true, ended: None });
        Ok(())
    }

    /// The receiver was told how a hook ended.
    pub(super) fn hook_ended(&mut self, run: &HookRun, outcome: &Outcome, epoch: u64, faulty: bool) {
        if let Some(tale) = self.tales.get_mut(&run.id) {
            tale.running = false;
            tale.ended = Some(Ended { outcome: outcome.clone(), epoch, faulty });
        }
    }

    /// Notes that the receiver's process and its hooks are gone. It may or may not have saved the outcome it was just told.
    pub(super) fn hooks_are_gone(&mut self, telling: Option<(&HookRun, &Outcome)>, epoch: u64) {
        for (id, tale) in &mut self.tales {
            if tale.running {
                tale.running = false;
                let told = telling.filter(|(run, _)| run.id == *id);
                tale.ended = told.map(|(_, outcome)| Ended { outcome: outcome.clone(), epoch, faulty: true });
            }
        }
    }

    /// Whether the hook refused a bundle.
    pub(super) fn is_refused(&self, id: BundleId) -> bool {
        let ended = self.tales.get(&id).and_then(|tale| tale.ended.as_ref());
        ended.is_some_and(|ended| matches!(ended.outcome, Outcome::Quarantine(_)))
    }

    /// How many bundles were published.
    pub(super) fn published(&self) -> u64 {
        self.published.len() as u64
    }

    /// Whether a sequence is in the inbox.
    pub(super) fn is_published(&self, channel: &str, sequence: u64) -> bool {
        self.published.get(&(channel.to_owned(), sequence)).is_some_and(|p| !p.gone)
    }
}

fn place(channel: &OsStr, number: &OsStr) -> Option<(String, u64)> {
    let number = number.to_str().filter(|n| n.len() == 8)?.parse().ok()?;
    Some((channel.to_str()?.to_owned(), number))
}

fn only(all: &[Found], names: &[&str]) -> Held {
    let first = |found: &Found| found.path.components().nth(1).map(|c| c.as_os_str().to_owned());
    match all.iter().find(|found| first(found).is_some_and(|f| names.iter().all(|n| f != *n))) {
        None => Ok(()),
        Some(found) => Err(format!("{:?} is outside of the daemon's directories", found.path)),
    }
}

fn copies<'a>(all: &'a [Found], name: &'a OsStr) -> impl Iterator<Item = &'a Path> {
    all.iter().map(|found| found.path.as_path()).filter(move |path| path.file_name() == Some(name))
}

/// The tree at `place`, with paths relative to its parent directory. It is listed in one piece.
fn nodes(all: &[Found], place: &Path) -> Vec<Node> {
    let parent = place.parent().expect("not the root");
    let first = all.iter().position(|found| found.path.as_os_str() == place.as_os_str()).unwrap_or(all.len());
    let below = all[first..].iter().take_while(|found| found.path.starts_with(place));
    let node = |found: &Found| Node {
        path: found.path.strip_prefix(parent).expect("it is below").to_owned(),
        kind: found.kind,
        mode: if found.kind == Kind::Symlink { 0 } else { found.mode },
        mtime: found.mtime,
        bytes: found.bytes.clone(),
    };
    below.map(node).collect()
}
