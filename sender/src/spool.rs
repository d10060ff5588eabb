//! Decides when a file or directory in the spool is complete and may be claimed.
//!
//! A name that is renamed into a folder is complete at once. A name that is written in place is complete when it was closed
//! and has not changed for the settle time. inotify reports both where it works. An occasional scan finds what inotify missed;
//! for such a name, only whether it still changes is known.

mod signature;
mod turns;
mod watch;

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use checkvalve_host::disk::{Disk, Kind};
use checkvalve_protocol::id::ChannelName;

pub use signature::Signature;
use turns::Turns;
pub use watch::{Tell, Told, WatchError, Watcher};

/// How many probes may run at the same time.
const PROBES: usize = 4;

/// A name in a channel's folder.
pub type Place = (ChannelName, OsString);

/// What happened to a name in a channel's folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// It was renamed into the folder, so it is complete.
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

/// What to do next with a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Rename it away.
    Claim(Place),
    /// Look at it and report the result to [`Spool::probed`].
    Probe(Place),
}

/// The names in the spool that are not claimed yet.
pub struct Spool {
    settle_ms: u64,
    /// Only [`Spool::change`], [`Spool::ensure`] and [`Spool::forget`] change this. They keep the fields below in step.
    candidates: BTreeMap<Place, Candidate>,
    /// The candidates' names by their turns.
    places: BTreeMap<u64, Place>,
    /// Candidates to be claimed.
    claims: Turns,
    /// Candidates to be probed.
    looks: Turns,
    arrivals: u64,
    probing: usize,
}

struct Candidate {
    /// The candidate's turn.
    order: u64,
    whole: bool,
    open: bool,
    /// What it looked like, and since when it has not changed.
    quiet: Option<(Signature, u64)>,
    /// When to look again.
    look_at_ms: u64,
    probing: bool,
    /// Something happened to it since the running probe began.
    disturbed: bool,
    problem: Option<String>,
}

/// What a name waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Waits {
    Claim,
    Look,
    /// The result of its probe, or a report from inotify.
    News,
}

/// A name that waits in the spool, as status shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting<'a> {
    /// The name.
    pub place: &'a Place,
    /// Why, for programs: words joined by `-`, never changed.
    pub code: &'static str,
    /// Why, for people.
    pub why: &'a str,
    /// Whether it needs an operator.
    pub problem: bool,
}

impl Spool {
    /// An empty spool. A name that was written in place must not change for `settle_ms` before it is claimed.
    #[must_use]
    pub fn new(settle_ms: u64) -> Self {
        Self {
            settle_ms,
            candidates: BTreeMap::new(),
            places: BTreeMap::new(),
            claims: Turns::default(),
            looks: Turns::default(),
            arrivals: 0,
            probing: 0,
        }
    }

    /// Handles a report from inotify. `now_ms` comes from a clock that never jumps.
    pub fn seen(&mut self, place: Place, seen: Seen, now_ms: u64) {
        if is_ignored(&place.1) {
            return;
        }
        if seen == Seen::Removed {
            self.forget(&place);
            return;
        }
        let settle_ms = self.settle_ms;
        self.ensure(&place, now_ms);
        self.change(&place, |candidate| {
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
                    // Writes come in large numbers. A probe after each of them would only slow them down.
                    candidate.look_at_ms = now_ms.saturating_add(settle_ms / 4);
                }
                Seen::Closed => candidate.open = false,
                Seen::Touched | Seen::Removed => {}
            }
        });
    }

    /// inotify lost events: a name that was last seen open may have been closed since.
    pub fn overflowed(&mut self) {
        let places: Vec<Place> = self.candidates.keys().cloned().collect();
        for place in places {
            self.change(&place, |candidate| (candidate.open, candidate.disturbed) = (false, true));
        }
    }

    /// Finds new names in a channel's folder, and forgets names that are gone. New names get their turns in the order of
    /// ctime, which for a renamed file is when it arrived.
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
            self.ensure(&place, now_ms);
        }
        Ok(())
    }

    /// At most `limit` things to do now, in the order in which the names arrived.
    pub fn decide(&mut self, now_ms: u64, limit: usize) -> Vec<Decision> {
        self.claims.advance_to(now_ms);
        self.looks.advance_to(now_ms);
        let looks = self.looks.due().take(PROBES.saturating_sub(self.probing));
        let mut ready: Vec<u64> = self.claims.due().take(limit).chain(looks).collect();
        ready.sort_unstable();
        ready.truncate(limit);
        let places: Vec<Place> = ready.iter().map(|order| self.places[order].clone()).collect();
        let decided = places.into_iter().map(|place| {
            if self.candidates[&place].whole {
                return Decision::Claim(place);
            }
            self.probing += 1;
            self.change(&place, |candidate| (candidate.probing, candidate.disturbed) = (true, false));
            Decision::Probe(place)
        });
        decided.collect()
    }

    /// Handles the result of a probe.
    pub fn probed(&mut self, place: &Place, looks: io::Result<Signature>, now_ms: u64) {
        self.probing = self.probing.saturating_sub(1);
        let settle_ms = self.settle_ms;
        if matches!(&looks, Err(error) if error.kind() == io::ErrorKind::NotFound) {
            return self.forget(place);
        }
        self.change(place, |candidate| candidate.looked(looks, settle_ms, now_ms));
    }

    /// Forgets a name that was claimed or is gone.
    pub fn forget(&mut self, place: &Place) {
        let Some(candidate) = self.candidates.remove(place) else { return };
        self.places.remove(&candidate.order);
        if let Some(turns) = self.turns(candidate.waits()) {
            turns.remove(candidate.look_at_ms, candidate.order);
        }
    }

    /// Notes that a name could not be claimed, and retries after `retry_ms`. Returns whether the reason is new.
    pub fn unclaimable(&mut self, place: &Place, why: String, now_ms: u64, retry_ms: u64) -> bool {
        let news = self.candidates.get(place).is_some_and(|candidate| candidate.problem.as_deref() != Some(&why));
        self.change(place, |candidate| {
            candidate.look_at_ms = now_ms.saturating_add(retry_ms);
            candidate.problem = Some(why);
        });
        news
    }

    /// When [`Spool::decide`] may have something new.
    #[must_use]
    pub fn next_look_ms(&self) -> Option<u64> {
        let look = if self.probing < PROBES { self.looks.next_ms() } else { None };
        self.claims.next_ms().into_iter().chain(look).min()
    }

    /// The names that wait, and why.
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

    /// Adds a name, unless it is known already.
    fn ensure(&mut self, place: &Place, now_ms: u64) {
        if self.candidates.contains_key(place) {
            return;
        }
        self.arrivals += 1;
        let candidate = Candidate {
            order: self.arrivals,
            whole: false,
            open: false,
            quiet: None,
            look_at_ms: now_ms,
            probing: false,
            disturbed: false,
            problem: None,
        };
        if let Some(turns) = self.turns(candidate.waits()) {
            turns.insert(candidate.look_at_ms, candidate.order);
        }
        self.places.insert(candidate.order, place.clone());
        self.candidates.insert(place.clone(), candidate);
    }

    /// Changes a candidate, if there is one.
    fn change(&mut self, place: &Place, change: impl FnOnce(&mut Candidate)) {
        let Some(candidate) = self.candidates.get_mut(place) else { return };
        let before = (candidate.waits(), candidate.look_at_ms);
        change(candidate);
        let (after, order) = ((candidate.waits(), candidate.look_at_ms), candidate.order);
        if before == after {
            return;
        }
        if let Some(turns) = self.turns(before.0) {
            turns.remove(before.1, order);
        }
        if let Some(turns) = self.turns(after.0) {
            turns.insert(after.1, order);
        }
    }

    fn turns(&mut self, waits: Waits) -> Option<&mut Turns> {
        match waits {
            Waits::Claim => Some(&mut self.claims),
            Waits::Look => Some(&mut self.looks),
            Waits::News => None,
        }
    }

    /// How many names [`Spool::decide`] visited.
    #[cfg(test)]
    fn visited(&self) -> usize {
        self.claims.visited() + self.looks.visited()
    }

    /// Asserts that the turns match the candidates.
    #[cfg(test)]
    fn assert_in_step(&self) {
        let (mut claims, mut looks) = (self.claims.emptied(), self.looks.emptied());
        for candidate in self.candidates.values() {
            match candidate.waits() {
                Waits::Claim => claims.insert(candidate.look_at_ms, candidate.order),
                Waits::Look => looks.insert(candidate.look_at_ms, candidate.order),
                Waits::News => {}
            }
        }
        assert_eq!((&self.claims, &self.looks), (&claims, &looks));
        assert_eq!(self.places.len(), self.candidates.len());
        assert!(self.places.iter().all(|(order, place)| self.candidates[place].order == *order));
    }
}

impl Candidate {
    fn waits(&self) -> Waits {
        match (self.probing, self.whole, self.open && self.quiet.is_some()) {
            (true, ..) | (false, false, true) => Waits::News,
            (false, true, _) => Waits::Claim,
            (false, false, false) => Waits::Look,
        }
    }

    /// Handles the result of a probe.
    fn looked(&mut self, looks: io::Result<Signature>, settle_ms: u64, now_ms: u64) {
        self.probing = false;
        let looks = match looks {
            Ok(looks) => looks,
            Err(e) => {
                self.problem = Some(format!("cannot be looked at: {e}"));
                self.look_at_ms = now_ms.saturating_add(settle_ms.max(1_000));
                return;
            }
        };
        // A second name was made with link(2), which a writer calls only after it has closed the file.
        if looks.kind != Kind::File || looks.links > 1 {
            self.open = false;
        }
        if self.disturbed {
            // It changed during the probe: begin again. `seen` has set the time.
            return;
        }
        match &self.quiet {
            Some((before, since)) if *before == looks && now_ms.saturating_sub(*since) >= settle_ms => {
                if self.open {
                    self.look_at_ms = now_ms.saturating_add(settle_ms.max(1_000));
                } else {
                    self.whole = true;
                    self.look_at_ms = now_ms;
                }
            }
            Some((before, since)) if *before == looks => self.look_at_ms = since.saturating_add(settle_ms),
            _ => {
                self.quiet = Some((looks, now_ms));
                self.look_at_ms = now_ms.saturating_add(settle_ms);
            }
        }
    }
}

/// Whether a name in a channel's folder is ignored: `.*`, `*.part`, `*.tmp`.
#[must_use]
pub fn is_ignored(name: &OsStr) -> bool {
    let name = name.as_bytes();
    name.starts_with(b".") || name.ends_with(b".part") || name.ends_with(b".tmp")
}

#[cfg(test)]
mod tests;
