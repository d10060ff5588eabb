//! Tickets, and content that was let go and comes back.

use std::fs;
use std::ops::Range;

use checkvalve_protocol::id::BundleId;
use checkvalve_protocol::ticket::{Data, Loss, Need, Subject, Ticket};
use checkvalve_protocol::transmit::Selection;

use super::rig::{Rig, channel};
use crate::engine::{Asked, ResendError, RestoreError, Restoring};

fn ticket(bundle: BundleId, data: Data) -> Ticket {
    Ticket::new(Subject::Bundle { bundle, announce: true, hashes: false, data }, Loss::of(2, 100)).unwrap()
}

fn sequences(name: &str, range: Range<u64>) -> Ticket {
    let subject = Subject::Sequences { channel: channel(name), first: range.start, count: range.end - range.start };
    Ticket::new(subject, Loss::UNKNOWN).unwrap()
}

impl Rig {
    fn ask(&mut self, ticket: &Ticket, dry_run: bool) -> Vec<Asked> {
        let now = self.now;
        self.engine().resend_ticket(ticket, dry_run, now)
    }

    /// Puts content where a command would, and asks for it to be taken back.
    fn give_back(&mut self, which: &str, content: &[u8], like: &std::path::Path) -> Result<bool, RestoreError> {
        let path = self.path("spool/a/.restore-1.tmp");
        drop(fs::remove_file(&path));
        fs::write(&path, content).unwrap();
        let mtime = fs::metadata(like).unwrap().modified().unwrap();
        fs::File::options().write(true).open(&path).unwrap().set_modified(mtime).unwrap();
        let now = self.now;
        self.engine().restore(which, ".restore-1.tmp".as_ref(), now)
    }
}

#[test]
fn a_ticket_sends_its_blocks_with_margin_and_survives_a_restart() {
    let mut rig = Rig::new();
    let content: Vec<u8> = (0..3_000_000_u32).map(|i| ((i * 7) >> 3) as u8).collect();
    rig.drop_file("a", "f", &content);
    rig.run(100);
    let id = rig.sent[0].bundle;
    let three = ticket(id, Data::of_blocks([(2, Need::Symbols(5)), (3, Need::Symbols(5)), (8, Need::Whole)]));
    let dry = rig.ask(&three, true);
    rig.run(100);
    assert_eq!(rig.sent.len(), 1, "only said");
    let (shown, priced) = (&dry[0].0, dry[0].1.as_ref().unwrap());
    assert_eq!(shown, "a/1");
    assert_eq!((priced.chosen.blocks, priced.chosen.of_blocks), (3, 9));
    assert!(priced.datagrams > 200 && priced.wire_bytes == priced.datagrams * 1_538 && priced.millis > 0, "{priced:?}");
    assert_eq!(rig.ask(&three, false)[0].1.as_ref().unwrap(), priced);
    assert!(rig.ask(&three, false)[0].1.is_ok(), "asked for twice is asked for once");
    rig.open();
    rig.run(100);
    assert_eq!(rig.sent.len(), 2);
    let Selection::Ranges(ranges) = &rig.sent[1].selection else { panic!() };
    let [(few, Some(a)), (whole, Some(b))] = ranges.as_slice() else { panic!("{ranges:?}") };
    assert_eq!((few, whole), (&(2..4), &(8..9)));
    assert!((9..14).contains(a), "{a}");
    assert!((240..300).contains(b), "{b}");
    assert!(rig.sent[1].esis.start >= rig.sent[0].esis.end);
    // Announce and hashes go along with anything: nothing of the data is enough to ask for them.
    assert!(rig.ask(&ticket(id, Data::Nothing), false)[0].1.is_ok());
    rig.open();
    rig.run(100);
    let Selection::Ranges(none) = &rig.sent[2].selection else { panic!("{:?}", rig.sent[2].selection) };
    assert!(none.iter().all(|(range, _)| range.is_empty()));
}

#[test]
fn what_a_ticket_cannot_have_is_said() {
    let mut rig = Rig::new();
    rig.drop_file("a", "f", b"one");
    rig.run(100);
    let id = rig.sent[0].bundle;
    let mut refused = |ticket: Ticket| rig.ask(&ticket, false).remove(0).1.unwrap_err();
    let beyond =
        Subject::Bundle { bundle: id, announce: false, hashes: true, data: Data::of_blocks([(1, Need::Whole)]) };
    let beyond = refused(Ticket::new(beyond, Loss::of(0, 1)).unwrap());
    assert!(matches!(beyond, ResendError::Blocks(_, 1, 1, 2)), "{beyond}");
    assert!(matches!(refused(ticket(BundleId(77), Data::All)), ResendError::Unknown(_)));
    // A receiver that lacks the announce may have been told of other blocks by whoever has the link key: all of it goes out.
    let unannounced = ticket(id, Data::of_blocks([(1, Need::Whole)]));
    let priced = rig.ask(&unannounced, false).remove(0).1.unwrap();
    assert_eq!(priced.chosen.blocks, 1);
    let many = ticket(id, Data::of_blocks((0..1).map(|i| (i, Need::Whole))));
    assert!(rig.ask(&many, true)[0].1.is_ok());
}

#[test]
fn sequences_are_sent_whole_and_those_that_are_not_there_are_named() {
    let mut rig = Rig::new();
    for n in 0..3 {
        rig.drop_file("a", &format!("f{n}"), &[n; 3_000]);
        rig.run(100);
    }
    let asked = rig.ask(&sequences("a", 2..7), false);
    let shown: Vec<&str> = asked.iter().map(|(shown, _)| shown.as_str()).collect();
    assert_eq!(shown, ["a/2", "a/3", "a/4 to a/6"]);
    assert!(matches!(asked[2].1, Err(ResendError::Unknown(_))));
    rig.run(100);
    assert_eq!(rig.sent.len(), 5);
    assert!(rig.sent[3..].iter().all(|sent| matches!(&sent.selection, Selection::Ranges(r) if r[0].0 == (0..1))));
    let asked = rig.ask(&sequences("a", 1..u64::MAX), true);
    assert_eq!(asked.len(), 4);
    assert_eq!(rig.ask(&sequences("b", 1..2), true).len(), 1);
}

#[test]
fn what_was_let_go_is_taken_back_only_if_it_is_the_same() {
    let mut rig = Rig::closed();
    rig.retain_bytes = 0;
    rig.open();
    let like = rig.path("place/like");
    fs::write(&like, b"content").unwrap();
    rig.drop_file("a", "f", b"content");
    // The rig's drop has a time of its own; what comes back must have the same.
    let mtime = fs::metadata(rig.path("spool/a/f")).unwrap().modified().unwrap();
    fs::File::options().write(true).open(&like).unwrap().set_modified(mtime).unwrap();
    rig.run(200_000);
    let id = rig.sent[0].bundle;
    let all = ticket(id, Data::All);
    assert!(matches!(rig.ask(&all, false)[0].1, Err(ResendError::NotRetained(_))));
    let outcome = |rig: &mut Rig| {
        rig.run(100);
        rig.engine().restoring(id).cloned().unwrap()
    };
    for (content, why) in [(&b"CONTENT"[..], "contents"), (b"longer content", "bytes together")] {
        assert!(rig.give_back("a/1", content, &like).unwrap());
        let Restoring::Refused(said) = outcome(&mut rig) else { panic!() };
        assert!(said.contains("not the same") && said.contains(why), "{said}");
        assert!(matches!(rig.ask(&all, true)[0].1, Err(ResendError::NotRetained(_))));
        rig.run(1_000);
    }
    // Another time than was announced.
    assert!(rig.give_back("a/1", b"content", rig.dir.path().to_owned().as_path()).unwrap());
    let Restoring::Refused(said) = outcome(&mut rig) else { panic!() };
    assert!(said.contains("no longer kept"), "{said}");
    rig.run(1_000);
    assert!(rig.give_back("a/1", b"content", &like).unwrap());
    assert!(matches!(rig.give_back("a/1", b"content", &like), Err(RestoreError::Busy(_))), "one at a time");
    assert_eq!(outcome(&mut rig), Restoring::Held);
    assert!(rig.ask(&all, false)[0].1.is_ok());
    rig.run(100);
    assert_eq!(rig.sent.len(), 2);
    assert!(rig.sent[1].knew_hashes && rig.sent[1].announce == rig.sent[0].announce);
    let now = rig.now;
    assert!(matches!(rig.engine().restore("a/1", "x".as_ref(), now), Err(RestoreError::Name) | Ok(false)));
}
