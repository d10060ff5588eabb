//! The state that a power cut leaves.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::io;

use super::fault::Verdict;
use super::world::{Body, Entries, INODE_COST, PAGE, World, errno};
use crate::rng::Rng;

const SECTOR: usize = 512;

/// The contents of a file.
#[derive(Default)]
pub(super) struct Contents {
    pub(super) live: Vec<u8>,
    /// The contents that are certainly on the medium.
    durable: Vec<u8>,
    /// Changes that may not be on the medium yet.
    pending: Vec<Change>,
    /// Pages that were ever written to.
    pub(super) pages: BTreeSet<u64>,
}

enum Change {
    Write { offset: usize, bytes: Vec<u8> },
    SetLen(usize),
}

/// The names of a device: those that are certainly durable, and the changes since then, in order.
#[derive(Default)]
pub(super) struct NameLog {
    base: BTreeMap<u64, Entries>,
    log: Vec<NameOp>,
}

struct NameOp {
    changes: Vec<NameChange>,
    subject: u64,
    durable: bool,
}

#[derive(Clone)]
pub(super) struct NameChange {
    pub(super) dir: u64,
    pub(super) name: OsString,
    pub(super) becomes: Option<u64>,
}

impl Contents {
    /// Writes bytes. Their pages must be allocated already.
    pub(super) fn write(&mut self, offset: usize, bytes: &[u8]) {
        let change = Change::Write { offset, bytes: bytes.to_vec() };
        change.apply(&mut self.live);
        self.pending.push(change);
    }

    pub(super) fn set_len(&mut self, len: usize) {
        let change = Change::SetLen(len);
        change.apply(&mut self.live);
        self.pending.push(change);
        self.trim();
    }

    pub(super) fn sync(&mut self) {
        for change in self.pending.drain(..) {
            change.apply(&mut self.durable);
        }
    }

    /// A failing sync: some changes reach the medium, and the rest is never tried again.
    pub(super) fn fail_sync(&mut self, rng: &mut Rng) {
        for change in self.pending.drain(..) {
            if rng.chance(500) {
                change.apply(&mut self.durable);
            }
        }
    }

    pub(super) fn rot(&mut self, offset: usize, mask: u8) {
        self.sync();
        self.live[offset] ^= mask;
        self.durable[offset] ^= mask;
    }

    fn crash(&mut self, rng: &mut Rng) {
        let all = rng.below(4);
        for change in self.pending.drain(..) {
            match all {
                0 => {}
                1 => change.apply(&mut self.durable),
                _ => change.survive(&mut self.durable, rng),
            }
        }
        self.live.clone_from(&self.durable);
        self.trim();
    }

    fn trim(&mut self) {
        self.pages.split_off(&(self.live.len() as u64).div_ceil(PAGE));
    }
}

impl Change {
    fn apply(&self, data: &mut Vec<u8>) {
        match self {
            Self::Write { offset, bytes } => {
                let end = offset + bytes.len();
                if data.len() < end {
                    data.resize(end, 0);
                }
                data[*offset..end].copy_from_slice(bytes);
            }
            Self::SetLen(len) => data.resize(*len, 0),
        }
    }

    fn survive(&self, data: &mut Vec<u8>, rng: &mut Rng) {
        match self {
            Self::SetLen(_) if rng.chance(500) => self.apply(data),
            Self::SetLen(_) => {}
            Self::Write { offset, bytes } => match rng.below(4) {
                0 => {}
                1 => self.apply(data),
                2 => data.resize(data.len().max(offset + bytes.len()), 0),
                _ => {
                    for (i, part) in sectors(*offset, bytes) {
                        if rng.chance(500) {
                            Self::Write { offset: i, bytes: part.to_vec() }.apply(data);
                        }
                    }
                }
            },
        }
    }
}

/// Splits a write at the sectors of the medium.
fn sectors(offset: usize, bytes: &[u8]) -> impl Iterator<Item = (usize, &[u8])> {
    let (head, tail) = bytes.split_at((SECTOR - offset % SECTOR).min(bytes.len()));
    let parts = std::iter::once(head).chain(tail.chunks(SECTOR));
    parts.scan(offset, |at, part| {
        let here = *at;
        *at += part.len();
        Some((here, part))
    })
}

impl NameLog {
    pub(super) fn record(&mut self, changes: Vec<NameChange>, subject: u64) {
        self.log.push(NameOp { changes, subject, durable: false });
    }

    /// Inodes that a power cut may bring back.
    pub(super) fn mentions(&self) -> impl Iterator<Item = u64> {
        let based = self.base.iter().flat_map(|(dir, entries)| std::iter::once(*dir).chain(entries.values().copied()));
        let logged = self.log.iter().flat_map(|op| op.changes.iter().map(|c| c.dir).chain([op.subject]));
        based.chain(logged)
    }

    fn sync_all(&mut self) {
        self.log.iter_mut().for_each(|op| op.durable = true);
        self.fold();
    }

    fn sync_dir(&mut self, dir: u64) {
        // An operation also makes the earlier ones durable that it builds on: those of the same inode, and those of the same
        // names. Otherwise an inode could end up in two places or in none.
        let (mut subjects, mut slots) = (BTreeSet::new(), BTreeSet::new());
        for op in self.log.iter_mut().rev() {
            let builds_on =
                |change: &NameChange| change.dir == dir || slots.contains(&(change.dir, change.name.clone()));
            if subjects.contains(&op.subject) || op.changes.iter().any(builds_on) {
                op.durable = true;
                subjects.insert(op.subject);
                slots.extend(op.changes.iter().map(|change| (change.dir, change.name.clone())));
            }
        }
        self.fold();
    }

    /// Applies the durable operations at the start of the log to the base.
    fn fold(&mut self) {
        let first = self.log.iter().position(|op| !op.durable).unwrap_or(self.log.len());
        for op in self.log.drain(..first).collect::<Vec<_>>() {
            self.apply(op);
        }
    }

    fn apply(&mut self, op: NameOp) {
        for NameChange { dir, name, becomes } in op.changes {
            let entries = self.base.entry(dir).or_default();
            match becomes {
                Some(ino) => entries.insert(name, ino),
                None => entries.remove(&name),
            };
        }
    }

    fn crash(&mut self, rng: &mut Rng) {
        let ops = std::mem::take(&mut self.log);
        let cut = match rng.below(4) {
            0 => 0,
            1 => ops.len(),
            _ => usize::try_from(rng.below(ops.len() as u64 + 1)).unwrap_or(0),
        };
        for (i, op) in ops.into_iter().enumerate() {
            if i < cut || op.durable {
                self.apply(op);
            }
        }
    }
}

impl World {
    pub(super) fn sync_file(&mut self, ino: u64, times: bool, verdict: Verdict) -> io::Result<()> {
        self.sync_contents(ino, times, verdict);
        failed(verdict)
    }

    pub(super) fn sync_dir(&mut self, ino: u64, verdict: Verdict) -> io::Result<()> {
        let dev = self.node(ino).dev;
        if verdict == Verdict::Pass || self.rng.chance(500) {
            self.devices[dev].names.sync_dir(ino);
            let node = self.node_mut(ino);
            node.durable_attr = node.attr;
        }
        failed(verdict)
    }

    pub(super) fn sync_fs(&mut self, ino: u64, verdict: Verdict) -> io::Result<()> {
        let dev = self.node(ino).dev;
        let all: Vec<u64> = self.nodes.iter().filter(|(_, node)| node.dev == dev).map(|(ino, _)| *ino).collect();
        for ino in all {
            self.sync_contents(ino, true, verdict);
        }
        if verdict == Verdict::Pass || self.rng.chance(500) {
            self.devices[dev].names.sync_all();
        }
        self.sweep();
        failed(verdict)
    }

    fn sync_contents(&mut self, ino: u64, times: bool, verdict: Verdict) {
        let Self { nodes, rng, .. } = self;
        let node = nodes.get_mut(&ino).expect("a node that something names");
        if times && (verdict == Verdict::Pass || rng.chance(500)) {
            node.durable_attr = node.attr;
        }
        if let Body::File(contents) = &mut node.body {
            match verdict {
                Verdict::Pass => contents.sync(),
                Verdict::Fail(_) => contents.fail_sync(rng),
                Verdict::Cut if rng.chance(500) => contents.sync(),
                // The crash decides. If only the process ended, everything still waits to be written.
                Verdict::Cut => {}
            }
        }
    }

    pub(super) fn crash(&mut self, seed: u64) {
        self.kill();
        let mut rng = Rng::new(seed);
        for device in &mut self.devices {
            device.names.crash(&mut rng);
        }
        for (ino, node) in &mut self.nodes {
            let (old, new) = (node.durable_attr, node.attr);
            node.attr.mode = if rng.chance(500) { old.mode } else { new.mode };
            node.attr.mtime = if rng.chance(500) { old.mtime } else { new.mtime };
            node.durable_attr = node.attr;
            match &mut node.body {
                Body::File(contents) => contents.crash(&mut rng),
                Body::Directory(entries) => {
                    let base = &self.devices[node.dev].names.base;
                    *entries = base.get(ino).cloned().unwrap_or_default();
                }
                _ => {}
            }
        }
        self.drop_unreachable();
    }

    pub(super) fn kill(&mut self) {
        self.epoch += 1;
        self.faults.reset();
        let open: Vec<u64> = self.nodes.iter().filter(|(_, node)| node.handles > 0).map(|(ino, _)| *ino).collect();
        for ino in open {
            self.node_mut(ino).handles = 0;
            self.release(ino);
        }
    }

    /// Drops inodes that cannot be reached from a root, and recomputes links and costs.
    fn drop_unreachable(&mut self) {
        let mut links: BTreeMap<u64, u64> = BTreeMap::new();
        let mut todo: Vec<u64> = self.devices.iter().map(|device| device.root).collect();
        while let Some(ino) = todo.pop() {
            let seen = links.entry(ino).or_default();
            *seen += 1;
            if *seen == 1 {
                todo.extend(self.entries(ino).into_iter().flat_map(Entries::values));
            }
        }
        self.nodes.retain(|ino, _| links.contains_key(ino));
        self.devices.iter_mut().for_each(|device| device.used = 0);
        for (ino, node) in &mut self.nodes {
            node.links = links[ino];
            let pages = if let Body::File(contents) = &node.body { contents.pages.len() as u64 } else { 0 };
            node.cost = INODE_COST + pages * PAGE;
            let device = &mut self.devices[node.dev];
            device.used += node.cost;
            if matches!(node.body, Body::Directory(_)) && node.links > 1 {
                unreachable!("a directory in two places");
            }
        }
        for device in &mut self.devices {
            let nodes = &self.nodes;
            device.names.base.retain(|dir, _| nodes.contains_key(dir));
        }
        self.mounts.retain(|at, _| self.nodes.contains_key(at));
    }
}

fn failed(verdict: Verdict) -> io::Result<()> {
    match verdict {
        Verdict::Pass => Ok(()),
        Verdict::Fail(code) => Err(errno(code)),
        Verdict::Cut => Err(errno(errno::IO)),
    }
}
