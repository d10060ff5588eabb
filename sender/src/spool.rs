//! Decides when something in the spool is whole and may be claimed.
//!
//! A name that is renamed in is whole at once. A name that is written in place is whole when it was closed and has not
//! changed for the settle time. inotify reports both where it works. A scan now and then finds what inotify missed; of
//! such a name it is only known whether it still changes.

mod signature;
mod watch;

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use checkvalve_host::disk::{Disk, Kind};
use checkvalve_protocol::id::ChannelName;

pub use signature::Signature;
pub use watch::{Tell, Told, WatchError, Watcher};

/// Trees that are looked at at the same time.
const PROBES: usize = 4;

/// A name in a channel's folder.
pub type Place = (ChannelName, OsString);

/// What was seen of a name in a channel's folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// It was renamed in: it is whole.
    Renamed,
    /// It was created, as a file that may still be open.
    Created,
    /// It was written to, so it is open.
    Written,
    /// Something about it changed, but it need not be open: a new directory, a new mode.
    Touched,
    /// It was closed after writing.
    Closed,
    /// It is gone.
    Removed,
}

/// What to do next about a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Rename it away.
    Claim(Place),
    /// Look at it, and say with [`Spool::probed`] what was seen.
    Probe(Place),
}

/// The names in the spool that are not claimed yet.
pub struct Spool {
    settle_ms: u64,
    candidates: BTreeMap<Place, Candidate>,
    arrivals: u64,
    probing: usize,
}

struct Candidate {
    /// Its turn among the others.
    order: u64,
    whole: bool,
    open: bool,
    /// What it looked like, and since when nothing moved.
    quiet: Option<(Signature, u64)>,
    /// When to look again.
    look_at_ms: u64,
    probing: bool,
    /// Something was seen of it since it is being looked at.
    disturbed: bool,
    problem: Option<String>,
}

/// A name that waits in the spool, for status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting<'a> {
    /// Where.
    pub place: &'a Place,
    /// Why, for programs: words joined by `-`, never changed.
    pub code: &'static str,
    /// Why, for people.
    pub why: &'a str,
    /// Whether a person should look.
    pub problem: bool,
}

impl Spool {
    /// `settle_ms`: how long something that was written in place must be quiet.
    #[must_use]
    pub fn new(settle_ms: u64) -> Self {
        Self { settle_ms, candidates: BTreeMap::new(), arrivals: 0, probing: 0 }
    }

    /// Takes note of what inotify told. `now_ms` is of a clock that never jumps.
    pub fn seen(&mut self, place: Place, seen: Seen, now_ms: u64) {
        if is_ignored(&place.1) {
            return;
        }
        if seen == Seen::Removed {
            self.forget(&place);
            return;
        }
        let settle_ms = self.settle_ms;
        let candidate = self.candidate(place, now_ms);
        candidate.disturbed = true;
        candidate.quiet = None;
        candidate.look_at_ms = now_ms;
        match seen {
            Seen::Renamed => {
                candidate.whole = true;
                candidate.open = false;
                candidate.problem = None;
            }
            Seen::Created => candidate.open = true,
            Seen::Written => {
                candidate.open = true;
                // Writing comes in torrents; looking each time would only slow it down.
                candidate.look_at_ms = now_ms.saturating_add(settle_ms / 4);
            }
            Seen::Closed => candidate.open = false,
            Seen::Touched | Seen::Removed => {}
        }
    }

    /// inotify lost something: what is known to be open may have been closed since.
    pub fn overflowed(&mut self) {
        for candidate in self.candidates.values_mut() {
            candidate.open = false;
            candidate.disturbed = true;
        }
    }

    /// Finds names in a channel's folder that were not seen yet, and forgets those that are gone. New ones take their turns
    /// in the order in which their inodes changed last, which for what was renamed in is when it came.
    ///
    /// Errors: those of reading the folder.
    pub fn scan(&mut self, disk: &dyn Disk, channel: &ChannelName, folder: &Path, now_ms: u64) -> io::Result<()> {
        let names: Vec<_> = disk.read_dir(folder)?.into_iter().filter(|name| !is_ignored(name)).collect();
        let first = (channel.clone(), OsString::new());
        let known = self.candidates.range(first..).map(|(place, _)| place).take_while(|place| place.0 == *channel);
        let known: Vec<_> = known.cloned().collect();
        for place in known {
            if names.binary_search(&place.1).is_err() {
                self.forget(&place);
            }
        }
        let mut new: Vec<_> = names
            .into_iter()
            .map(|name| (channel.clone(), name))
            .filter(|place| !self.candidates.contains_key(place))
            .filter_map(|place| Some((disk.lstat(&folder.join(&place.1)).ok()?.ctime, place)))
            .collect();
        new.sort();
        for (_, place) in new {
            self.candidate(place, now_ms);
        }
        Ok(())
    }

    /// What to do now, at most `limit` things, in the order in which the names came.
    pub fn decide(&mut self, now_ms: u64, limit: usize) -> Vec<Decision> {
        let due = |c: &Candidate| c.look_at_ms <= now_ms && !c.probing && (c.whole || !c.open || c.quiet.is_none());
        let mut ready: Vec<_> =
            self.candidates.iter().filter(|(_, c)| due(c)).map(|(p, c)| (c.order, p.clone())).collect();
        ready.sort_unstable();
        ready.truncate(limit);
        let mut decisions = Vec::new();
        for (_, place) in ready {
            let Some(candidate) = self.candidates.get_mut(&place) else { continue };
            if candidate.whole {
                decisions.push(Decision::Claim(place));
            } else if self.probing < PROBES {
                self.probing += 1;
                candidate.probing = true;
                candidate.disturbed = false;
                decisions.push(Decision::Probe(place));
            }
        }
        decisions
    }

    /// Takes note of what a name looks like.
    pub fn probed(&mut self, place: &Place, looks: io::Result<Signature>, now_ms: u64) {
        self.probing = self.probing.saturating_sub(1);
        let settle_ms = self.settle_ms;
        let Some(candidate) = self.candidates.get_mut(place) else { return };
        candidate.probing = false;
        let looks = match looks {
            Ok(looks) => looks,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return self.forget(place),
            Err(e) => {
                candidate.problem = Some(format!("cannot be looked at: {e}"));
                candidate.look_at_ms = now_ms.saturating_add(settle_ms.max(1_000));
                return;
            }
        };
        // A second name of a file comes by link(2), after which nobody has it open.
        if looks.kind != Kind::File || looks.links > 1 {
            candidate.open = false;
        }
        if candidate.disturbed {
            // It moved since: begin again. `seen` has set when.
            return;
        }
        match &candidate.quiet {
            Some((before, since)) if *before == looks && now_ms.saturating_sub(*since) >= settle_ms => {
                if candidate.open {
                    candidate.look_at_ms = now_ms.saturating_add(settle_ms.max(1_000));
                } else {
                    candidate.whole = true;
                    candidate.look_at_ms = now_ms;
                }
            }
            Some((before, since)) if *before == looks => candidate.look_at_ms = since.saturating_add(settle_ms),
            _ => {
                candidate.quiet = Some((looks, now_ms));
                candidate.look_at_ms = now_ms.saturating_add(settle_ms);
            }
        }
    }

    /// It was claimed, or is gone.
    pub fn forget(&mut self, place: &Place) {
        self.candidates.remove(place);
    }

    /// It could not be claimed; tries again after `retry_ms`. Gives whether this is news.
    pub fn unclaimable(&mut self, place: &Place, why: String, now_ms: u64, retry_ms: u64) -> bool {
        let Some(candidate) = self.candidates.get_mut(place) else { return false };
        candidate.look_at_ms = now_ms.saturating_add(retry_ms);
        let news = candidate.problem.as_deref() != Some(&why);
        candidate.problem = Some(why);
        news
    }

    /// When [`Spool::decide`] may have something new.
    #[must_use]
    pub fn next_look_ms(&self) -> Option<u64> {
        let may_look = |c: &Candidate| self.probing < PROBES && !c.probing && (!c.open || c.quiet.is_none());
        let waits = |c: &&Candidate| (c.whole && !c.probing) || may_look(c);
        self.candidates.values().filter(waits).map(|c| c.look_at_ms).min()
    }

    /// What waits, and why.
    pub fn waiting(&self) -> impl Iterator<Item = Waiting<'_>> {
        self.candidates.iter().map(|(place, c)| {
            let (code, why) = match &c.problem {
                Some(why) if c.whole => ("cannot-claim", why.as_str()),
                Some(why) => ("cannot-look", why.as_str()),
                None if c.whole => ("claiming", "about to be claimed"),
                None if c.open => ("open", "open for writing"),
                None => ("settling", "settling"),
            };
            Waiting { place, code, why, problem: c.problem.is_some() }
        })
    }

    fn candidate(&mut self, place: Place, now_ms: u64) -> &mut Candidate {
        let arrivals = &mut self.arrivals;
        self.candidates.entry(place).or_insert_with(|| {
            *arrivals += 1;
            Candidate {
                order: *arrivals,
                whole: false,
                open: false,
                quiet: None,
                look_at_ms: now_ms,
                probing: false,
                disturbed: false,
                problem: None,
            }
        })
    }
}

/// Whether a name in a channel's folder is left alone: `.*`, `*.part`, `*.tmp`.
#[must_use]
pub fn is_ignored(name: &OsStr) -> bool {
    let name = name.as_bytes();
    name.starts_with(b".") || name.ends_with(b".part") || name.ends_with(b".tmp")
}

#[cfg(test)]
mod tests;
