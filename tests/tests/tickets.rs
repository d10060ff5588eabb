//! Tickets that an operator carries from the high side to the low side, with real daemons.

use std::time::{Duration, Instant};

use checkvalve_tests::link::Loss;
use checkvalve_tests::pair::{Dropped, PATIENCE, Pair};
use checkvalve_tests::{function_name, require_link, skip, tree};
use serde_json::Value;

const MIB: u64 = 1 << 20;

#[test]
fn a_ticket_of_few_lines_completes_what_lost_blocks() {
    require_link!();
    let pair = Pair::setup().rate("200 Mbit/s").sender("fec.burst", "1 ms").start();
    let image = lose_some(&pair, "image", 60 * MIB);
    let number = number(&pair, &image);

    let said = words(&pair.receiver_command(&["ticket", &number]));
    assert!(said.starts_with(&format!("# {number} image lacks ")), "{said}");
    assert!(ticket_lines(&said) <= 6, "{said}");
    let explained = words(&pair.receiver_command_with(&["ticket", "explain", "-"], &said));
    assert!(explained.contains("ranges of its source blocks are asked for"), "{explained}");

    let file = pair.dir.path().join("ticket.txt");
    std::fs::write(&file, &said).unwrap();
    let plan = json(&pair.sender_command(&["--json", "resend", "--dry-run", "--ticket", file.to_str().unwrap()]));
    assert!(plan["bundles"][0]["wire_bytes"].as_u64().unwrap() < 6 * MIB, "{plan}");
    assert_eq!(pair.receiver_status().unwrap().find("default", "image").unwrap().state, "incomplete", "only said");

    // The same ticket as a picture.
    let png = pair.dir.path().join("ticket.png");
    words(&pair.receiver_command(&["ticket", &number, "--qr", "--png", png.to_str().unwrap()]));
    let again = json(&pair.sender_command(&["--json", "resend", "--dry-run", "--ticket", png.to_str().unwrap()]));
    assert_eq!(again["bundles"], plan["bundles"]);
    let said = words(&pair.sender_command(&["resend", "--ticket", png.to_str().unwrap(), "--wait"]));
    assert!(said.contains(" source blocks; ") && said.contains(" at 200 Mbit/s"), "{said}");
    pair.wait_installed(&image);
    pair.assert_identical(&image);
    let none = pair.receiver_command(&["ticket", &number]);
    assert_eq!(none.status.code(), Some(65), "nothing is lacking any more");
}

#[test]
fn a_receiver_that_was_off_names_what_it_missed_within_five_seconds() {
    require_link!();
    let mut pair = Pair::setup().start();
    let first = pair.drop_file("first", b"so that the channel is known");
    pair.wait_installed(&first);
    pair.stop_receiver();
    let gone = pair.drop_file("gone", &vec![7; 300_000]);
    pair.wait_sender_state(&gone, &["transmitted"]);
    pair.start_receiver();
    let begun = Instant::now();
    pair.wait_state(&gone, &["missing"]);
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());

    let said = words(&pair.receiver_command(&["ticket", "--all"]));
    assert!(ticket_lines(&said) <= 2, "{said}");
    let ticket: Vec<&str> = said.lines().filter(|line| !line.starts_with('#')).collect();
    words(&pair.sender_command(&["resend", "--ticket", &ticket.join(" ")]));
    pair.wait_installed(&gone);
    pair.assert_identical(&gone);
}

#[test]
fn alarms_come_before_what_they_warn_of() {
    require_link!();
    // The worst of about sixty blocks loses about four fifths of what its repair symbols can restore.
    let mut pair = Pair::setup().rate("200 Mbit/s").repair("20 %").gso(false).loss(Loss::Random(100)).start();
    let alarms = |pair: &Pair| -> Vec<String> {
        let alarms = pair.receiver_status().expect("the receiver answers").alarms();
        alarms.into_iter().map(|(code, text)| format!("{code}: {text}")).collect()
    };
    let alarm = |pair: &Pair, about: &str| {
        pair.wait_for(about, || alarms(pair).iter().any(|alarm| alarm.contains(about)).then_some(()));
    };
    tree::large(&pair.place("image"), 20 * MIB, 1);
    let image = pair.drop("image");
    pair.wait_installed(&image);
    alarm(&pair, "nearly what `fec.repair` mends");
    // One in ten is lost, and only two came beside the bundle.
    pair.wait_for("a beacon", || {
        let said = json(&pair.receiver_command(&["--json", "status"]));
        said["sender"]["last_beacon_at"].as_str().map(drop)
    });

    pair.link.set_loss(Loss::Random(1_000));
    alarm(&pair, "no beacon for");
    let gone = pair.drop_file("gone", b"nobody hears of it yet");
    pair.wait_sender_state(&gone, &["transmitted"]);
    pair.link.set_loss(Loss::None);
    alarm(&pair, "channel default: 2 never came");
    assert!(!alarms(&pair).iter().any(|alarm| alarm.contains("no beacon")));

    pair.link.set_loss(Loss::Random(400));
    tree::large(&pair.place("lost"), 4 * MIB, 2);
    let lost = pair.drop("lost");
    pair.wait_state(&lost, &["incomplete", "missing"]);
    alarm(&pair, "loses more than `fec.repair` mends");
    pair.stop_sender();
}

#[test]
fn symbols_of_unfinished_blocks_survive_a_restart() {
    require_link!();
    let mut pair = Pair::setup().rate("200 Mbit/s").gso(false).loss(Loss::Random(100)).start();
    tree::large(&pair.place("image"), 20 * MIB, 5);
    let image = pair.drop("image");
    pair.wait_sender_state(&image, &["transmitted"]);
    pair.wait_state(&image, &["incomplete"]);
    let before = lacking(&pair, &image);
    assert!(before > 100, "{before} symbols are lacking");
    pair.stop_receiver();
    pair.link.set_loss(Loss::None);
    pair.start_receiver();
    let after = pair.wait_for("the bundle to be incomplete again", || {
        let bundle = pair.receiver_status()?.find("default", "image")?;
        (bundle.state == "incomplete").then(|| lacking(&pair, &image))
    });
    assert_eq!(after, before, "a stop and a start lose nothing");
    let number = number(&pair, &image);
    let answer = json(&pair.receiver_command(&["--json", "ticket", &number]));
    assert_eq!(answer["tickets"][0]["symbols_lacking"].as_u64(), Some(before));
    let text = answer["tickets"][0]["text"].as_str().unwrap();
    let said = words(&pair.sender_command_with(&["resend", "--ticket", "-", "--wait"], text));
    assert!(said.contains("default/1 image"), "{said}");
    pair.wait_installed(&image);
    pair.assert_identical(&image);
}

#[test]
fn what_is_no_longer_retained_comes_from_elsewhere_once_it_is_proven() {
    require_link!();
    let mut pair = Pair::setup().sender("retain.size", "0 B").start();
    let first = pair.drop_file("first", b"so that the channel is known");
    pair.wait_installed(&first);
    pair.stop_receiver();
    tree::odd(&pair.place("tree"), 20, 3);
    let copy = pair.dir.path().join("copy");
    let cp = std::process::Command::new("cp").arg("-a").arg(pair.place("tree")).arg(&copy).status().unwrap();
    assert!(cp.success());
    let gone = pair.drop("tree");
    pair.wait_sender_state(&gone, &["transmitted"]);
    pair.start_receiver();
    pair.wait_state(&gone, &["missing"]);
    let said = words(&pair.receiver_command(&["ticket", "default/2"]));
    pair.wait_for("the sender to let go of it", || {
        let view = pair.sender_status()?.find("default", "tree")?;
        (view.all["retained"] == false).then_some(())
    });
    let refused = pair.sender_command_with(&["resend", "--ticket", "-"], &said);
    assert_eq!(refused.status.code(), Some(66));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("no longer retained"), "{refused:?}");
    let other = pair.dir.path().join("other");
    std::fs::write(&other, b"something else").unwrap();
    let refused = pair.sender_command_with(&["resend", "--from", other.to_str().unwrap(), "--ticket", "-"], &said);
    assert_eq!(refused.status.code(), Some(65), "{refused:?}");
    words(&pair.sender_command_with(&["resend", "--from", copy.to_str().unwrap(), "--ticket", "-"], &said));
    pair.wait_installed(&gone);
    pair.assert_identical(&gone);
}

/// 2 GB, or as many as `CHECKVALVE_LARGE_GB` says.
#[test]
fn a_large_bundle_that_lost_three_blocks_needs_a_thousandth() {
    require_link!();
    let gigabytes: u64 = std::env::var("CHECKVALVE_LARGE_GB").ok().and_then(|n| n.parse().ok()).unwrap_or(2);
    let size = gigabytes * 1_000_000_000;
    let pair = Pair::setup().rate("900 Mbit/s").sender("fec.burst", "0 ms").start();
    let free = rustix::fs::statvfs(pair.dir.path()).map_or(0, |fs| fs.f_bavail * fs.f_frsize);
    if free < size * 5 / 4 + (1 << 30) {
        return skip::note(function_name!(), "there is no room for the bundle");
    }
    // The file is sparse on the disk, but every byte of it is sent.
    let file = std::fs::File::create(pair.place("image")).unwrap();
    file.set_len(size).unwrap();
    let sequence = 1;
    std::fs::rename(pair.place("image"), pair.low.spool.join("default/image")).unwrap();
    let find = |state: &str| {
        let status = pair.receiver_status()?;
        status.find("default", "image").filter(|bundle| bundle.state == state)
    };
    pair.wait_for("the first blocks", || find("receiving").filter(|b| b.all["received"].as_u64() > Some(50_000_000)));
    pair.link.set_loss(Loss::Burst { every: 2_000_000_000, length: 12 });
    let patience = Duration::from_secs(60 + 20 * gigabytes).max(PATIENCE);
    let begun = Instant::now();
    while find("incomplete").is_none() {
        assert!(begun.elapsed() < patience, "{}", pair.describe());
        std::thread::sleep(Duration::from_millis(500));
    }
    pair.link.set_loss(Loss::None);
    let said = words(&pair.receiver_command(&["ticket", &format!("default/{sequence}")]));
    let answer = json(&pair.receiver_command(&["--json", "ticket", "default/1"]));
    let view = &answer["tickets"][0];
    eprintln!("{said}");
    assert!(ticket_lines(&said) <= 3, "{said}");
    assert!(view["symbols_lacking"].as_u64().unwrap() > 100, "{view}");
    let plan = json(&pair.sender_command_with(&["--json", "resend", "--ticket", "-", "--wait"], &said));
    let bytes = plan["bundles"][0]["wire_bytes"].as_u64().unwrap();
    eprintln!("{plan}");
    assert!(bytes * 1_000 < size, "{plan}");
    pair.wait_for("the bundle", || find("installed"));
    let landed = pair.high.inbox.join("default/00000001/image");
    assert_eq!(landed.metadata().unwrap().len(), size);
}

/// Drops a bundle and loses a few of its blocks in the middle.
fn lose_some(pair: &Pair, name: &str, size: u64) -> Dropped {
    tree::large(&pair.place(name), size, 4);
    let bundle = pair.drop(name);
    pair.wait_state(&bundle, &["receiving"]);
    std::thread::sleep(Duration::from_millis(700));
    // With segmentation offload, one datagram on the link holds several of ours.
    pair.link.set_loss(Loss::Burst { every: 2_000_000_000, length: 20 });
    pair.wait_sender_state(&bundle, &["transmitted"]);
    pair.link.set_loss(Loss::None);
    pair.wait_state(&bundle, &["incomplete"]);
    bundle
}

fn number(pair: &Pair, bundle: &Dropped) -> String {
    let found = pair.receiver_status().unwrap().find(&bundle.channel, &bundle.name).unwrap();
    format!("{}/{}", found.channel, found.sequence)
}

fn lacking(pair: &Pair, bundle: &Dropped) -> u64 {
    let found = pair.receiver_status().unwrap().find(&bundle.channel, &bundle.name).unwrap();
    found.all["lacking"]["symbols"].as_u64().unwrap_or_else(|| panic!("{:#}", found.all))
}

fn ticket_lines(said: &str) -> usize {
    said.lines().filter(|line| !line.starts_with('#') && !line.trim().is_empty()).count()
}

fn words(output: &std::process::Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn json(output: &std::process::Output) -> Value {
    let text = words(output);
    serde_json::from_str(text.lines().next().unwrap_or_default()).unwrap()
}
