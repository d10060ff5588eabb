use std::fs;

use checkvalve_host::disk::OsDisk;

use super::*;

const SETTLE: u64 = 2_000;

fn channel() -> ChannelName {
    ChannelName::new("default").unwrap()
}

fn place(name: &str) -> Place {
    (channel(), name.into())
}

/// A spool over a directory, whose probes are answered at once.
struct Rig {
    dir: tempfile::TempDir,
    spool: Spool,
    now: u64,
}

impl Rig {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), spool: Spool::new(SETTLE), now: 1_000 }
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.dir.path().join(name), text).unwrap();
    }

    fn seen(&mut self, name: &str, seen: Seen) {
        self.spool.seen(place(name), seen, self.now);
    }

    fn scan(&mut self) {
        self.spool.scan(&OsDisk, &channel(), self.dir.path(), self.now).unwrap();
    }

    /// What is claimed within `ms` milliseconds, and when.
    fn claims(&mut self, ms: u64) -> Vec<(String, u64)> {
        let end = self.now + ms;
        let mut claims = Vec::new();
        loop {
            self.spool.assert_in_step();
            for decision in self.spool.decide(self.now, 100) {
                self.spool.assert_in_step();
                match decision {
                    Decision::Claim(place) => {
                        self.spool.forget(&place);
                        claims.push((place.1.into_string().unwrap(), self.now));
                    }
                    Decision::Probe(place) => {
                        let looks = Signature::of(&OsDisk, &self.dir.path().join(&place.1));
                        self.spool.probed(&place, looks, self.now);
                    }
                }
            }
            match self.spool.next_look_ms() {
                Some(at) if at <= end => self.now = at.max(self.now),
                _ => break,
            }
        }
        self.now = end;
        claims
    }
}

#[test]
fn what_is_renamed_in_is_claimed_at_once_and_in_order() {
    let mut rig = Rig::new();
    for name in ["b", "a", "c"] {
        rig.write(name, "");
        rig.seen(name, Seen::Renamed);
    }
    assert_eq!(rig.claims(0), [("b".into(), 1_000), ("a".into(), 1_000), ("c".into(), 1_000)]);
}

#[test]
fn what_is_written_in_place_is_claimed_when_closed_and_quiet() {
    let mut rig = Rig::new();
    rig.write("f", "1");
    rig.seen("f", Seen::Created);
    assert_eq!(rig.claims(60_000), [], "open");
    rig.write("f", "12");
    rig.seen("f", Seen::Written);
    assert_eq!(rig.claims(60_000), [], "still open");
    rig.seen("f", Seen::Closed);
    let closed = rig.now;
    assert_eq!(rig.claims(1_000), []);
    rig.seen("f", Seen::Written);
    assert_eq!(rig.claims(60_000), [], "opened again");
    rig.seen("f", Seen::Closed);
    let (closed_again, _) = (rig.now, closed);
    assert_eq!(rig.claims(60_000), [("f".into(), closed_again + SETTLE)]);
}

#[test]
fn without_inotify_it_is_claimed_when_it_stays_the_same() {
    let mut rig = Rig::new();
    rig.write("f", "");
    rig.scan();
    for round in 0..5 {
        assert_eq!(rig.claims(SETTLE - 1), [], "{round}");
        rig.write("f", &"x".repeat(round + 1));
    }
    let claims = rig.claims(60_000);
    assert_eq!(claims.len(), 1);
    assert!(claims[0].1 >= 1_000 + 5 * (SETTLE - 1) + SETTLE, "{claims:?}");
}

#[test]
fn a_tree_is_quiet_when_nothing_below_it_moves() {
    let mut rig = Rig::new();
    fs::create_dir_all(rig.dir.path().join("t/a/b")).unwrap();
    rig.write("t/a/b/f", "1");
    rig.seen("t", Seen::Touched);
    for round in 0..4 {
        assert_eq!(rig.claims(SETTLE - 1), [], "{round}");
        match round {
            0 => rig.write("t/a/b/f", "22"),
            1 => rig.write("t/a/b/g", ""),
            2 => fs::rename(rig.dir.path().join("t/a/b/g"), rig.dir.path().join("t/a/b/h")).unwrap(),
            _ => fs::remove_file(rig.dir.path().join("t/a/b/h")).unwrap(),
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    assert_eq!(rig.claims(60_000).len(), 1);
}

#[test]
fn a_second_name_of_a_file_is_not_open() {
    let mut rig = Rig::new();
    rig.write("other.tmp", "x");
    fs::hard_link(rig.dir.path().join("other.tmp"), rig.dir.path().join("f")).unwrap();
    rig.seen("f", Seen::Created);
    assert_eq!(rig.claims(60_000).len(), 1);
}

#[test]
fn what_is_to_be_left_alone_is() {
    let mut rig = Rig::new();
    for name in [".hidden", "f.part", "f.tmp", ".tmp", "."] {
        if name != "." {
            rig.write(name, "");
        }
        rig.seen(name, Seen::Renamed);
    }
    rig.scan();
    assert_eq!(rig.claims(60_000), []);
    rig.write("f.party", "");
    rig.scan();
    assert_eq!(rig.claims(60_000).len(), 1);
}

#[test]
fn what_goes_is_forgotten() {
    let mut rig = Rig::new();
    rig.write("f", "");
    rig.write("g", "");
    rig.seen("f", Seen::Created);
    rig.scan();
    fs::remove_file(rig.dir.path().join("f")).unwrap();
    rig.seen("f", Seen::Removed);
    fs::remove_file(rig.dir.path().join("g")).unwrap();
    assert_eq!(rig.claims(60_000), []);
    assert_eq!(rig.spool.waiting().count(), 0);
}

#[test]
fn an_overflow_makes_the_open_ones_looked_at() {
    let mut rig = Rig::new();
    rig.write("f", "");
    rig.seen("f", Seen::Created);
    assert_eq!(rig.claims(60_000), []);
    rig.spool.overflowed();
    assert_eq!(rig.claims(60_000).len(), 1);
}

#[test]
fn scanned_names_take_their_turns_as_they_came() {
    let mut rig = Rig::new();
    for name in ["c", "a", "b"] {
        rig.write(name, "");
        std::thread::sleep(std::time::Duration::from_millis(15));
    }
    rig.scan();
    let order: Vec<_> = rig.claims(60_000).into_iter().map(|(name, _)| name).collect();
    assert_eq!(order, ["c", "a", "b"]);
}

#[test]
fn many_trees_are_looked_at_a_few_at_a_time_without_spinning() {
    let mut spool = Spool::new(SETTLE);
    for n in 0..50 {
        spool.seen(place(&n.to_string()), Seen::Touched, 0);
    }
    let probes = spool.decide(0, 100);
    assert_eq!(probes.len(), PROBES);
    assert_eq!(spool.decide(0, 100), []);
    assert_eq!(spool.next_look_ms(), None, "an answer wakes");
    let dir = tempfile::tempdir().unwrap();
    for probe in probes {
        let Decision::Probe(place) = probe else { panic!() };
        spool.probed(&place, Signature::of(&OsDisk, dir.path()), 0);
    }
    assert_eq!(spool.decide(0, 100).len(), PROBES);
}

#[test]
fn what_cannot_be_claimed_says_so_once_and_is_tried_again() {
    let mut rig = Rig::new();
    rig.write("f", "");
    rig.seen("f", Seen::Renamed);
    assert_eq!(rig.spool.decide(rig.now, 10).len(), 1);
    assert!(rig.spool.unclaimable(&place("f"), "no".into(), rig.now, 1_000));
    assert_eq!(rig.spool.decide(rig.now, 10), []);
    assert_eq!(rig.spool.decide(rig.now + 1_000, 10).len(), 1);
    assert!(!rig.spool.unclaimable(&place("f"), "no".into(), rig.now, 1_000));
    let waiting: Vec<_> = rig.spool.waiting().map(|w| (w.why.to_owned(), w.problem)).collect();
    assert_eq!(waiting, [("no".to_owned(), true)]);
}

#[test]
fn many_names_at_once_are_each_gone_through_once() {
    for names in [10_000_u64, 100_000] {
        let mut spool = Spool::new(SETTLE);
        let began = spool.arrivals;
        for n in 0..names {
            // As they come, not by name.
            spool.seen(place(&format!("{}", n * 7_919 % names)), Seen::Renamed, 5);
        }
        let (mut claimed, mut rounds) = (0, 0);
        while spool.next_look_ms().is_some() {
            for decision in spool.decide(5, 64) {
                let Decision::Claim(place) = decision else { panic!("{decision:?}") };
                claimed += 1;
                assert_eq!(spool.candidates[&place].order, began + claimed, "in the order in which they came");
                spool.forget(&place);
            }
            rounds += 1;
        }
        assert_eq!((claimed, rounds), (names, names.div_ceil(64)));
        assert_eq!(spool.visited() as u64, names);
        spool.assert_in_step();
    }
}

#[test]
fn names_that_wait_for_a_look_keep_nobody_from_being_claimed() {
    let mut spool = Spool::new(SETTLE);
    (0..500).for_each(|n| spool.seen(place(&format!("tree-{n}")), Seen::Touched, 0));
    spool.seen(place("whole"), Seen::Renamed, 0);
    let decisions = spool.decide(0, 64);
    assert_eq!(decisions.len(), PROBES + 1);
    assert_eq!(decisions.last(), Some(&Decision::Claim(place("whole"))));
    assert_eq!(spool.visited(), PROBES + 1);
}

#[test]
fn turns_stay_in_step_whatever_happens() {
    let dir = tempfile::tempdir().unwrap();
    let mut seed = 3_u64;
    let mut next = |below: u64| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) % below
    };
    let kinds = [Seen::Renamed, Seen::Created, Seen::Written, Seen::Touched, Seen::Closed, Seen::Removed];
    let mut spool = Spool::new(SETTLE);
    let (mut now, mut probes) = (0, Vec::new());
    for _ in 0..20_000 {
        now += next(400);
        let place = place(&next(40).to_string());
        match next(8) {
            0..3 => spool.seen(place, kinds[next(kinds.len() as u64) as usize], now),
            3 => spool.forget(&place),
            4 => drop(spool.unclaimable(&place, "no".into(), now, next(3_000))),
            5 if next(40) == 0 => spool.overflowed(),
            5 | 6 if !probes.is_empty() => {
                let looks = match next(6) {
                    0 => Err(io::ErrorKind::NotFound.into()),
                    1 => Err(io::ErrorKind::PermissionDenied.into()),
                    _ => Signature::of(&OsDisk, dir.path()),
                };
                let at = next(probes.len() as u64) as usize;
                spool.probed(&probes.swap_remove(at), looks, now);
            }
            _ => {
                let limit = next(9) as usize;
                let is_due = |c: &Candidate| c.look_at_ms <= now && c.waits() == Waits::Claim;
                let mut due: Vec<_> = spool.candidates.iter().filter(|(_, c)| is_due(c)).collect();
                due.sort_by_key(|(_, c)| c.order);
                let due: Vec<Place> = due.into_iter().map(|(place, _)| place.clone()).collect();
                let decisions = spool.decide(now, limit);
                let claims = decisions.iter().filter_map(|d| match d {
                    Decision::Claim(place) => Some(place.clone()),
                    Decision::Probe(_) => None,
                });
                assert!(due.starts_with(&claims.collect::<Vec<_>>()) && decisions.len() <= limit);
                probes.extend(decisions.into_iter().filter_map(|d| match d {
                    Decision::Probe(place) => Some(place),
                    Decision::Claim(_) => None,
                }));
                assert!(probes.len() <= PROBES);
            }
        }
        spool.assert_in_step();
    }
}
