//! Directories that somebody removes, from under the daemons and before they start.

use std::fs;

use checkvalve_tests::pair::Pair;
use checkvalve_tests::{require_link, tree};

use super::{carry_tickets, reason};

#[test]
fn a_channels_folder_in_the_inbox_is_made_again() {
    require_link!();
    let pair = Pair::setup().start();
    let first = pair.drop_file("first", b"first");
    pair.wait_installed(&first);
    fs::remove_dir_all(pair.high.inbox.join("default")).unwrap();
    let second = pair.drop_file("second", b"second");
    pair.wait_installed(&second);
    pair.assert_identical(&second);
    assert!(!pair.landed(&first, 1).exists(), "what an operator removed stays removed");
}

#[test]
fn an_inbox_that_is_gone_is_said_and_waited_for() {
    require_link!();
    let mut pair = Pair::setup().start();
    fs::remove_dir_all(&pair.high.inbox).unwrap();
    let bundle = pair.drop_file("bundle", b"bundle");
    let waits = pair.wait_state(&bundle, &["incomplete"]);
    let said = reason(&pair, &bundle);
    assert!(said.contains("inbox") && said.contains("No such file") && said.contains("once that is mended"), "{said}");
    assert!(waits.all["ticket"].is_null(), "all of it is here: {}", waits.all);
    let none = pair.receiver_command(&["ticket", "default/1"]);
    assert_eq!(none.status.code(), Some(74), "{}", String::from_utf8_lossy(&none.stderr));
    assert!(String::from_utf8_lossy(&none.stderr).contains("once that is mended"));
    // A restart says it in one line.
    pair.stop_receiver();
    let (code, said) = pair.refuses_to_start("receiver");
    assert_eq!(code, Some(78), "{said}");
    assert!(said.contains("inbox") && said.contains("does not exist"), "{said}");
    fs::create_dir(&pair.high.inbox).unwrap();
    pair.start_receiver();
    pair.wait_installed(&bundle);
    pair.assert_identical(&bundle);
}

#[test]
fn staging_is_made_again_and_what_it_held_is_asked_for() {
    require_link!();
    let mut pair = Pair::setup().rate("60 Mbit/s").start();
    for at_start in [false, true] {
        let name = if at_start { "at-start" } else { "running" };
        tree::large(&pair.place(name), 20 << 20, 6);
        let image = pair.drop(name);
        pair.wait_for("some of it to arrive", || {
            let found = pair.receiver_status()?.find("default", name)?;
            (found.all["received"].as_u64()? > 4 << 20).then_some(())
        });
        if at_start {
            pair.stop_receiver();
        }
        // New directories come into being in it meanwhile.
        pair.wait_for("staging to be removed", || fs::remove_dir_all(pair.high.state.join("staging")).ok());
        if at_start {
            pair.start_receiver();
        }
        pair.wait_sender_state(&image, &["transmitted"]);
        let lacking = pair.wait_state(&image, &["incomplete", "missing"]);
        assert!(lacking.all["ticket"].is_string(), "{}", lacking.all);
        carry_tickets(&pair);
        pair.wait_installed(&image);
        pair.assert_identical(&image);
    }
    assert!(pair.log_of("receiver").contains("staging was removed"), "{}", pair.log_of("receiver"));
}

#[test]
fn a_channels_folder_in_the_spool_is_made_again() {
    require_link!();
    let mut pair = Pair::setup().sender("rescan", "2 s").start();
    let folder = pair.low.spool.join("default");
    let first = pair.drop_file("first", b"first");
    pair.wait_installed(&first);
    fs::remove_dir_all(&folder).unwrap();
    pair.wait_for("the folder to be made again", || folder.is_dir().then_some(()));
    let second = pair.drop_file("second", b"second");
    pair.wait_installed(&second);
    pair.assert_identical(&second);
    pair.stop_sender();
    fs::remove_dir_all(&folder).unwrap();
    pair.start_sender();
    assert!(folder.is_dir());
    let third = pair.drop_file("third", b"third");
    pair.wait_installed(&third);
    pair.assert_identical(&third);
    // The whole spool is nothing that the sender makes.
    pair.stop_sender();
    fs::remove_dir_all(&pair.low.spool).unwrap();
    let (code, said) = pair.refuses_to_start("sender");
    assert_eq!(code, Some(78), "{said}");
    assert!(said.contains("spool") && said.contains("does not exist"), "{said}");
}

/// What was claimed and not sent yet is withdrawn by name; what was sent cannot be sent again, which is said.
#[test]
fn what_somebody_removed_from_the_holding_area_is_said_on_both_sides() {
    require_link!();
    let mut pair = Pair::setup().start();
    let first = pair.drop_file("first", b"first");
    pair.wait_installed(&first);
    pair.wait_sender_state(&first, &["transmitted"]);
    fs::remove_dir_all(pair.low.state.join("bundles")).unwrap();
    let again = pair.sender_command(&["resend", "default/1"]);
    pair.wait_for("the sender to let go of it", || {
        let found = pair.sender_status()?.find("default", "first")?;
        (found.all["retained"] == false).then_some(())
    });
    drop(again);
    let second = pair.drop_file("second", b"second");
    pair.wait_installed(&second);
    pair.assert_identical(&second);
    let refused = pair.sender_command(&["resend", "default/1"]);
    assert_eq!(refused.status.code(), Some(66), "{}", String::from_utf8_lossy(&refused.stderr));
    pair.stop_sender();
}

/// Both ledgers are written anew from memory before anything relies on them; the audit trail begins again, and says so in the log.
#[test]
fn a_ledger_that_is_removed_from_under_a_daemon_is_written_again() {
    require_link!();
    let mut pair = Pair::setup().start();
    let first = pair.drop_file("first", b"first");
    pair.wait_installed(&first);
    pair.wait_sender_state(&first, &["transmitted"]);
    for file in [pair.low.state.join("ledger"), pair.high.state.join("ledger"), pair.high.state.join("audit.jsonl")] {
        fs::remove_file(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    }
    let second = pair.drop_file("second", b"second");
    pair.wait_installed(&second);
    pair.wait_sender_state(&second, &["transmitted"]);
    // What a restart reads is all that was known.
    pair.kill_sender();
    pair.kill_receiver();
    pair.start_sender();
    pair.start_receiver();
    for bundle in [&first, &second] {
        pair.wait_installed(bundle);
        pair.wait_sender_state(bundle, &["transmitted"]);
    }
    let third = pair.drop_file("third", b"third");
    pair.wait_installed(&third);
    pair.assert_identical(&third);
    assert_eq!(pair.hook_runs().len(), 3, "each once");
    assert!(pair.log_of("receiver").contains("the audit trail was removed"), "{}", pair.log_of("receiver"));
    for side in ["sender", "receiver"] {
        assert!(pair.log_of(side).contains("the journal was removed"), "{}", pair.log_of(side));
    }
}
