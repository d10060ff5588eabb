//! Which operations fail.

use std::collections::BTreeMap;

use super::world::errno;

/// The operations of a disk and of its files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs, reason = "each is named as its method")]
pub enum Op {
    OpenRead,
    CreateNew,
    OpenRw,
    OpenAppendOrCreate,
    Lstat,
    ReadDir,
    ReadLink,
    CreateDir,
    CreateDirAll,
    Symlink,
    Rename,
    RenameNoreplace,
    RemoveFile,
    RemoveDir,
    RemoveTree,
    SetMode,
    SetMtime,
    SyncDir,
    SyncFs,
    FreeSpace,
    ReadAt,
    WriteAllAt,
    Append,
    Len,
    SetLen,
    SyncData,
    SyncAll,
    StartWriteback,
    FileSetMode,
    FileSetMtime,
    FileMeta,
}

impl Op {
    fn is_on_open_file(self) -> bool {
        use Op::{
            Append, FileMeta, FileSetMode, FileSetMtime, Len, ReadAt, SetLen, StartWriteback, SyncAll, SyncData,
            WriteAllAt,
        };
        let contents =
            matches!(self, ReadAt | WriteAllAt | Append | Len | SetLen | SyncData | SyncAll | StartWriteback);
        contents || matches!(self, FileSetMode | FileSetMtime | FileMeta)
    }
}

/// What a thread unwinds with when its power is cut.
#[derive(Debug, Clone, Copy)]
pub struct PowerCut;

/// What happens to an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Pass,
    Fail(i32),
    Cut,
}

#[derive(Default)]
pub(super) struct Faults {
    counts: BTreeMap<Op, u64>,
    rules: Vec<Rule>,
    powerless: bool,
}

struct Rule {
    op: Option<Op>,
    left: u64,
    verdict: Verdict,
    stays: bool,
}

impl Faults {
    pub(super) fn arm(&mut self, op: Option<Op>, nth: u64, verdict: Verdict, stays: bool) {
        self.rules.push(Rule { op, left: nth, verdict, stays });
    }

    pub(super) fn reset(&mut self) {
        *self = Self::default();
    }

    pub(super) fn total(&self) -> u64 {
        self.counts.values().sum()
    }

    pub(super) fn count(&self, op: Op) -> u64 {
        self.counts.get(&op).copied().unwrap_or(0)
    }

    pub(super) fn next(&mut self, op: Op) -> Verdict {
        if self.powerless {
            return Verdict::Fail(errno::IO);
        }
        *self.counts.entry(op).or_default() += 1;
        let mut verdict = Verdict::Pass;
        self.rules.retain_mut(|rule| {
            if rule.op.is_some_and(|only| only != op) {
                return true;
            }
            if rule.left > 0 {
                rule.left -= 1;
                return true;
            }
            verdict = rule.verdict;
            rule.stays
        });
        // What is open needs no other file.
        if verdict == Verdict::Fail(errno::MFILE) && op.is_on_open_file() {
            verdict = Verdict::Fail(errno::IO);
        }
        self.powerless = verdict == Verdict::Cut;
        verdict
    }
}
