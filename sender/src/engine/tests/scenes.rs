//! What the engine does when nothing goes wrong with the disk.

use std::fs;
use std::os::unix::fs::symlink;

use super::rig::{Rig, channel, names};
use crate::engine::{BundleState, ResendError, Rules};
use crate::pipeline::Finished;
use crate::spool::Seen;
use crate::trouble::Trouble;
use checkvalve_protocol::beacon::RecentState;
use checkvalve_protocol::transmit::Selection;

#[test]
fn bundles_are_numbered_and_sent_in_their_order() {
    let mut rig = Rig::new();
    for (folder, name) in [("a", "x"), ("b", "y"), ("a", "z"), ("a", "w")] {
        rig.drop_file(folder, name, name.as_bytes());
    }
    rig.run(100);
    let a: Vec<_> = rig.sent.iter().filter(|s| s.channel == "a").map(|s| (s.sequence, s.name.as_str())).collect();
    assert_eq!(a, [(1, "x"), (2, "z"), (3, "w")]);
    assert_eq!(rig.sent.len(), 4);
    assert!(rig.sent.iter().all(|s| s.esis.start == 0 && s.selection == Selection::All && s.pass == 1));
    let expected = [("a", 1, "x"), ("a", 2, "z"), ("a", 3, "w"), ("b", 1, "y")]
        .map(|(c, n, name)| (c.to_owned(), Some(n), name.to_owned(), BundleState::Transmitted));
    assert_eq!(rig.states(), expected);
    assert_eq!(names(&rig.path("spool/a")).len(), 0);
    assert!(rig.bundles().iter().all(|b| b.retained));
}

#[test]
fn what_is_refused_takes_no_sequence_and_holds_up_nobody() {
    let mut rig = Rig::new();
    fs::create_dir(rig.path("place/bad")).unwrap();
    symlink("/etc", rig.path("place/bad/l")).unwrap();
    rig.drop_file("a", "one", b"1");
    rig.drop_in("a", "bad", "bad");
    rig.drop_file("a", "two", b"2");
    rig.run(100);
    let sent: Vec<_> = rig.sent.iter().map(|s| (s.sequence, s.name.as_str())).collect();
    assert_eq!(sent, [(1, "one"), (2, "two")]);
    assert_eq!(rig.failed("a"), ["bad".to_owned(), "bad.reason".to_owned()].into());
    let reason = fs::read_to_string(rig.path("spool/a/.failed/bad.reason")).unwrap();
    assert!(reason.contains("\"bad/l\" is a symlink whose target \"/etc\" is absolute"), "{reason}");
    let refused: Vec<_> = rig.bundles().into_iter().filter(|b| b.state == BundleState::Failed).collect();
    assert_eq!((refused.len(), refused[0].sequence), (1, None));
    rig.open();
    rig.run(100);
    assert_eq!(rig.sent.len(), 2);
    assert_eq!(rig.bundles().len(), 3, "it is remembered");
}

#[test]
fn a_bundle_that_changes_while_it_is_sent_is_withdrawn_and_stays_known() {
    let mut rig = Rig::new();
    rig.running = false;
    rig.drop_file("a", "f", b"before");
    rig.drop_file("a", "next", b"next");
    rig.run(100);
    let held = rig.jobs[0].root.join("f");
    std::thread::sleep(std::time::Duration::from_millis(20));
    fs::write(&held, b"after!").unwrap();
    rig.running = true;
    rig.run(100);
    assert_eq!(rig.sent.iter().map(|s| (s.sequence, s.hashes.is_some())).collect::<Vec<_>>(), [(1, false), (2, true)]);
    let states = rig.states();
    assert_eq!(states[0], ("a".into(), Some(1), "f".into(), BundleState::Failed));
    assert_eq!(fs::read(rig.path("spool/a/.failed/f")).unwrap(), b"after!");
    let beacon = rig.engine().beacon();
    assert_eq!(beacon[0].newest, 2);
    let recent: Vec<_> = beacon[0].recent.iter().map(|r| (r.sequence, r.state)).collect();
    assert_eq!(recent, [(2, RecentState::Transmitted), (1, RecentState::Withdrawn)]);
    assert!(matches!(rig.resend("a/1", &[]), Err(ResendError::Failed(..))));
    rig.open();
    assert_eq!(rig.states()[0].3, BundleState::Failed);
    rig.drop_file("a", "third", b"");
    rig.run(100);
    assert_eq!(rig.sent.last().unwrap().sequence, 3);
}

#[test]
fn passes_keep_their_interval_and_use_fresh_esis() {
    let mut rig = Rig::closed();
    rig.rules.insert(channel("a"), Rules { passes: 3, pass_interval_ms: 60_000, ..Rules::default() });
    rig.open();
    rig.drop_file("a", "f", b"x");
    rig.run(30_000);
    assert_eq!(rig.sent.len(), 1);
    assert_eq!(rig.states()[0].3, BundleState::Transmitting, "two are still to come");
    rig.drop_file("a", "g", b"y");
    rig.run(50_000);
    assert_eq!(rig.names(), ["f", "g", "f"], "others go in between");
    // The interval goes on where it was, whatever the clock on the wall says.
    rig.now.wall_ms += 1 << 40;
    rig.open();
    rig.run(1_000);
    assert_eq!(rig.sent.len(), 3);
    rig.run(120_000);
    assert_eq!(rig.names(), ["f", "g", "f", "g", "f", "g"]);
    assert!(rig.states().iter().all(|s| s.3 == BundleState::Transmitted));
    for name in ["f", "g"] {
        let sent: Vec<_> = rig.sent.iter().filter(|s| s.name == name).collect();
        assert!(sent.windows(2).all(|w| w[0].esis.end <= w[1].esis.start && w[0].announce == w[1].announce));
        assert_eq!(sent.iter().map(|s| s.pass).collect::<Vec<_>>(), [1, 2, 3]);
        assert!(sent[1].knew_hashes && !sent[0].knew_hashes);
    }
}

#[test]
fn a_clock_that_jumps_changes_nothing() {
    for by in [1_i64 << 40, -(1 << 40), -1_600_000_000_000] {
        let mut rig = Rig::closed();
        rig.retain_ms = 100_000;
        rig.rules.insert(channel("a"), Rules { passes: 2, pass_interval_ms: 20_000, ..Rules::default() });
        rig.open();
        let before = rig.engine().session_number();
        fs::write(rig.path("spool/a/written"), b"in place").unwrap();
        let now = rig.now;
        rig.engine().seen((channel("a"), "written".into()), Seen::Closed, now);
        rig.run(1_000);
        rig.now.wall_ms = rig.now.wall_ms.saturating_add_signed(by);
        assert!(rig.sent.is_empty(), "it has to be quiet for two seconds");
        rig.run(1_500);
        assert_eq!(rig.sent.len(), 1);
        rig.now.wall_ms = rig.now.wall_ms.saturating_add_signed(by);
        rig.run(10_000);
        assert_eq!(rig.sent.len(), 1);
        rig.open();
        assert!(rig.engine().session_number() > before);
        rig.run(21_000);
        assert_eq!(rig.sent.len(), 2, "the second pass has its interval, counted from what was written down");
        rig.now.wall_ms = rig.now.wall_ms.saturating_add_signed(-by);
        rig.run(50_000);
        assert!(rig.bundles()[0].retained);
        rig.run(130_000);
        assert!(!rig.bundles()[0].retained, "for as long as the daemon ran");
    }
}

#[test]
fn a_later_pass_that_cannot_be_read_does_not_unmake_the_first() {
    let mut rig = Rig::closed();
    rig.rules.insert(channel("a"), Rules { passes: 2, pass_interval_ms: 60_000, ..Rules::default() });
    rig.open();
    rig.drop_file("a", "f", b"x");
    rig.run(30_000);
    let held = rig.path("state/bundles/a").join(rig.sent[0].bundle.to_string()).join("content/f");
    fs::write(held, "y").unwrap();
    rig.run(60_000);
    assert_eq!(rig.sent.len(), 1);
    assert_eq!(rig.states()[0].3, BundleState::Transmitted);
    let troubles = rig.engine().view().troubles;
    assert!(troubles.len() == 1 && troubles[0].text.starts_with("a/1: cannot be sent again"), "{troubles:?}");
    assert_eq!(rig.engine().beacon()[0].recent[0].state, RecentState::Transmitted);
}

#[test]
fn what_is_asked_again_while_the_disk_refuses_is_not_lost() {
    let mut rig = Rig::new();
    rig.drop_file("a", "f", b"content");
    rig.run(1_000);
    rig.resend("a/1", &[]).unwrap();
    rig.running = false;
    rig.run(100);
    let (id, now) = (rig.jobs.remove(0).order.bundle, rig.now);
    // It is over, and the disk does not take that.
    rig.disk.fail_from(0, 28);
    let hashes = vec![*blake3::hash(b"content").as_bytes()];
    rig.engine().finished(id, Finished::Transmitted { hashes }, now);
    rig.disk.heal();
    rig.engine().assert_consistent();
    rig.resend("a/1", &[]).unwrap();
    rig.running = true;
    rig.run(5_000);
    let view = rig.bundles().remove(0);
    assert_eq!((rig.sent.len(), view.sent, view.resends), (2, 3, 0), "the pass, and two resends");
    rig.open();
    let view = rig.bundles().remove(0);
    assert_eq!((view.sent, view.resends), (3, 0));
}

#[test]
fn a_resend_sends_what_is_asked_for_with_fresh_esis() {
    let mut rig = Rig::new();
    let content: Vec<u8> = (0..3_000_000_u32).map(|i| ((i * 7) >> 3) as u8).collect();
    rig.drop_file("a", "f", &content);
    rig.run(100);
    let id = rig.sent[0].bundle.to_string();
    let chosen = rig.resend("a/1", &[(2..4, None), (6..7, Some(9))]).unwrap();
    assert_eq!((chosen.blocks, chosen.of_blocks), (3, 9));
    rig.resend("a/1", &[(2..4, None), (6..7, Some(9))]).unwrap();
    rig.run(100);
    assert_eq!(rig.sent.len(), 2, "asked for twice is asked for once");
    assert_eq!(rig.sent[1].selection, Selection::Ranges(vec![(2..4, None), (6..7, Some(9))]));
    assert!(rig.sent[1].esis.start >= rig.sent[0].esis.end && rig.sent[1].knew_hashes);
    rig.resend(&id[..14], &[]).unwrap();
    // It is asked for durably.
    rig.open();
    rig.run(100);
    assert_eq!(rig.sent[2].selection, Selection::All);
    assert!(rig.sent[2].esis.start >= rig.sent[1].esis.end);
    assert_eq!(rig.bundles()[0].resends, 0);
    for (bad, what) in [("a/2", "no bundle"), ("zz", "no bundle"), ("ffff", "no bundle"), ("c/1", "no bundle")] {
        let error = rig.resend(bad, &[]).unwrap_err().to_string();
        assert!(error.starts_with(what), "{bad}: {error}");
    }
    assert!(matches!(rig.resend("a/1", &[(8..10, None)]), Err(ResendError::Blocks(..))));
    assert!(matches!(rig.resend("a/1", &[(3..3, None)]), Err(ResendError::Blocks(..))));
}

#[test]
fn what_is_held_is_proven_before_it_is_sent_again() {
    let mut rig = Rig::new();
    rig.drop_file("a", "f", b"content");
    rig.drop_file("a", "g", b"content");
    rig.drop_file("a", "h", b"content");
    rig.run(100);
    let held = |rig: &Rig, at: usize, name: &str| {
        rig.path("state/bundles/a").join(rig.sent[at].bundle.to_string()).join("content").join(name)
    };
    // Touched, and the same: proven by reading it.
    let f = held(&rig, 0, "f");
    let mtime = fs::metadata(&f).unwrap().modified().unwrap();
    fs::write(&f, b"content").unwrap();
    fs::File::options().write(true).open(&f).unwrap().set_modified(mtime).unwrap();
    rig.resend("a/1", &[]).unwrap();
    rig.run(100);
    assert_eq!(rig.sent.len(), 4);
    // Touched, and another: not sent.
    let g = held(&rig, 1, "g");
    fs::write(&g, b"CONTENT").unwrap();
    fs::File::options().write(true).open(&g).unwrap().set_modified(mtime).unwrap();
    rig.resend("a/2", &[]).unwrap();
    rig.run(100);
    assert_eq!(rig.sent.len(), 4);
    let view = rig.engine().view();
    assert!(view.troubles.iter().any(|t| t.text.starts_with("a/2: cannot be sent again:")), "{:?}", view.troubles);
    assert_eq!((view.bundles[1].state, view.bundles[1].resends), (BundleState::Transmitted, 0));
    // Gone altogether.
    fs::remove_dir_all(held(&rig, 2, "h").parent().unwrap().parent().unwrap()).unwrap();
    rig.resend("a/3", &[]).unwrap();
    rig.run(100);
    assert_eq!(rig.sent.len(), 4);
    assert!(matches!(rig.resend("a/3", &[]), Err(ResendError::NotRetained(_))));
}

#[test]
fn hashes_that_were_lost_are_made_again() {
    let mut rig = Rig::new();
    rig.drop_file("a", "f", b"content");
    rig.run(100);
    let home = rig.path("state/bundles/a").join(rig.sent[0].bundle.to_string());
    fs::remove_file(home.join("hashes")).unwrap();
    fs::write(home.join("announce"), b"torn").unwrap();
    rig.resend("a/1", &[]).unwrap();
    rig.run(100);
    assert!(rig.sent[1].knew_hashes && rig.sent[1].announce == rig.sent[0].announce);
    assert!(home.join("hashes").exists());
}

#[test]
fn retention_lets_go_of_the_oldest_and_never_of_the_unsent() {
    let mut rig = Rig::closed();
    rig.retain_bytes = 250;
    rig.open();
    for n in 0..5 {
        rig.drop_file("a", &format!("f{n}"), &[n; 100]);
        rig.run(1_000);
    }
    let retained = |rig: &mut Rig| rig.bundles().iter().map(|b| b.retained).collect::<Vec<_>>();
    assert_eq!(retained(&mut rig), [false, false, false, true, true]);
    assert_eq!(names(&rig.path("state/bundles/a")).len(), 2);
    assert!(matches!(rig.resend("a/1", &[]), Err(ResendError::NotRetained(_))));
    // By age, which a clock that jumps does not change; what waits is kept whatever its size and age.
    rig.retain_ms = 1_000_000;
    rig.running = false;
    rig.now.wall_ms += 1 << 40;
    rig.open();
    rig.drop_file("a", "large", &[9; 10_000]);
    rig.run(900_000);
    assert_eq!(retained(&mut rig)[3..5], [true, true]);
    rig.run(200_000);
    assert_eq!(retained(&mut rig)[3..5], [false, false]);
    assert_eq!(names(&rig.path("state/bundles/a")).len(), 1);
    rig.running = true;
    rig.run(1);
    while !rig.jobs.is_empty() {
        rig.finish_job(0);
    }
    assert_eq!(rig.sent.last().unwrap().name, "large");
}

#[test]
fn what_was_in_the_spool_before_the_start_is_sent_too() {
    let mut rig = Rig::closed();
    fs::create_dir(rig.path("spool/a")).unwrap();
    for name in ["z", "y", ".hidden", "x.part"] {
        fs::write(rig.path("spool/a").join(name), name).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(15));
    }
    rig.open();
    rig.run(1_900);
    assert_eq!(rig.names(), [""; 0], "not yet settled");
    rig.run(2_000);
    assert_eq!(rig.names(), ["z", "y"]);
    assert_eq!(names(&rig.path("spool/a")), [".hidden".to_owned(), "x.part".to_owned()].into());
}

#[test]
fn what_is_in_no_channel_is_pointed_out() {
    let mut rig = Rig::new();
    fs::create_dir(rig.path("spool/typo")).unwrap();
    rig.run(11_000);
    let troubles = rig.engine().view().troubles;
    let text = "spool: \"typo\" in the spool is no channel: add a table [channel.typo] for it and restart, or remove the folder; nothing in it is sent";
    assert_eq!(troubles, [Trouble::new("in-no-channel", text)]);
    fs::remove_dir(rig.path("spool/typo")).unwrap();
    fs::remove_dir(rig.path("spool/b")).unwrap();
    rig.run(11_000);
    assert_eq!(rig.engine().view().troubles, []);
    assert!(rig.path("spool/b").is_dir(), "made again");
}

#[test]
fn a_channel_that_is_taken_out_of_the_configuration_still_sends_what_it_has() {
    let mut rig = Rig::new();
    rig.running = false;
    rig.drop_file("b", "f", b"x");
    rig.run(100);
    rig.rules.remove(&channel("b"));
    rig.running = true;
    rig.open();
    rig.run(100);
    assert_eq!(rig.names(), ["f"]);
    let view = rig.engine().view();
    assert!(!view.channels.iter().find(|c| c.name == channel("b")).unwrap().configured);
}

#[test]
fn a_smaller_mtu_or_another_key_withdraws_what_was_begun() {
    for what in ["mtu", "key"] {
        let mut rig = Rig::closed();
        rig.mtu = 9_000;
        rig.open();
        rig.drop_file("b", "done", b"x");
        rig.run(100);
        rig.running = false;
        rig.drop_file("a", "begun", b"x");
        rig.drop_file("a", "also", b"x");
        rig.drop_file("a", "queued", b"x");
        rig.run(100);
        assert_eq!(rig.jobs.len(), 2);
        if what == "mtu" {
            rig.mtu = 1_500;
        } else {
            rig.key = 2;
        }
        rig.running = true;
        rig.open();
        rig.run(100);
        let states = rig.states();
        assert_eq!(states[0].3, BundleState::Failed, "{what}");
        assert_eq!(states[1].3, BundleState::Failed, "{what}");
        assert!(rig.failed("a").contains("begun"));
        let queued = if what == "mtu" { BundleState::Transmitted } else { BundleState::Failed };
        assert_eq!(states[2].3, queued, "{what}");
        if what == "mtu" {
            assert_eq!(rig.sent.last().unwrap().symbol_size, 1_408);
        }
        rig.resend("b/1", &[]).unwrap();
        rig.run(100);
        assert_eq!(rig.states()[3].3, BundleState::Transmitted, "what was sent stays sent");
    }
}

#[test]
fn esis_go_round_when_they_are_used_up() {
    let mut rig = Rig::closed();
    rig.rules.insert(channel("a"), Rules { carousel_ms: Some(1_000), ..Rules::default() });
    rig.open();
    rig.drop_file("a", "f", b"x");
    for _ in 0..850 {
        rig.run(10_000);
    }
    assert!(rig.sent.len() > 8_000);
    let limit = checkvalve_protocol::limits::MAX_ESI;
    assert!(rig.sent.iter().all(|s| s.esis.end <= limit && s.esis.len() == rig.sent[0].esis.len()));
    let wrapped = rig.sent.windows(2).filter(|w| w[1].esis.start < w[0].esis.start).count();
    assert!(wrapped >= 1, "{wrapped}");
    assert!(rig.sent[1..].iter().all(|s| s.esis.start >= 256), "source symbols are sent once");
}

#[test]
fn send_finds_its_bundle_by_inode() {
    let mut rig = Rig::new();
    rig.running = false;
    fs::write(rig.path("place/x"), "x").unwrap();
    let inode = std::os::unix::fs::MetadataExt::ino(&fs::metadata(rig.path("place/x")).unwrap());
    let at = rig.now.wall_ms;
    rig.drop_in("a", "f", "x");
    assert_eq!(rig.engine().find_dropped(&channel("a"), inode, at), None);
    rig.run(10);
    let found = rig.engine().find_dropped(&channel("a"), inode, at).unwrap();
    assert_eq!((found.sequence, found.state), (Some(1), BundleState::Transmitting));
    assert_eq!(rig.engine().find_dropped(&channel("a"), inode, at + 1_000), None, "an inode of another time");
    assert_eq!(rig.engine().find_dropped(&channel("b"), inode, at), None);
}

#[test]
fn a_large_queue_is_walked_through_without_looking_at_all_of_it() {
    let mut rig = Rig::new();
    for n in 0..300 {
        rig.drop_file("a", &format!("{n}"), b"");
    }
    rig.run(1_000);
    let names: Vec<_> = rig.names().iter().map(|n| n.parse::<u32>().unwrap()).collect();
    assert!(names.iter().copied().eq(0..300));
    assert!(rig.sent.iter().zip(1..).all(|(sent, sequence)| sent.sequence == sequence));
}

#[test]
fn jobs_that_were_stopped_go_on_with_fresh_esis() {
    let mut rig = Rig::new();
    rig.running = false;
    rig.drop_file("a", "f", b"x");
    rig.run(100);
    let first = rig.jobs[0].order.first_esi..rig.jobs[0].esi_limit;
    let (job, now) = (rig.jobs.remove(0), rig.now);
    rig.engine().finished(job.order.bundle, crate::pipeline::Finished::Aborted, now);
    rig.running = true;
    rig.run(100);
    assert!(rig.sent[0].esis.start >= first.end);
    assert_eq!(rig.sent[0].pass, 1);
}

#[test]
fn the_wrong_kind_of_event_does_no_harm() {
    let mut rig = Rig::new();
    let now = rig.now;
    for seen in [Seen::Renamed, Seen::Created, Seen::Written, Seen::Closed, Seen::Removed, Seen::Touched] {
        rig.engine().seen((channel("a"), "never".into()), seen, now);
        rig.engine().seen((channel("nochannel"), "never".into()), seen, now);
    }
    rig.run(30_000);
    assert_eq!(rig.sent.len(), 0);
    rig.drop_file("a", "f", b"");
    rig.run(100);
    assert_eq!(rig.sent.len(), 1);
}

impl Rig {
    fn resend(
        &mut self,
        which: &str,
        ranges: &[(std::ops::Range<u32>, Option<u32>)],
    ) -> Result<crate::engine::Chosen, ResendError> {
        let now = self.now;
        self.engine().resend(which, ranges, now)
    }
}
