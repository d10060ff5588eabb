//! The namespace link itself: that it is one-way in the kernel, and loses what it is told to lose.

use std::net::UdpSocket;
use std::time::Duration;

use checkvalve_tests::link::{INTERFACE, LOW, Link, Loss};
use checkvalve_tests::require_link;

#[test]
fn nothing_comes_back() {
    require_link!();
    let link = Link::new(1500, true);
    let (injector, recorder) = (link.injector(), link.recorder());
    assert_eq!(arrived(&injector, &recorder, 10), 10);
    // With a neighbour entry on the receiver's side too, only the one-way rule can stop an answer.
    link.high.run(&format!("ip neighbour replace {LOW} lladdr 02:00:00:00:00:01 dev {INTERFACE} nud permanent"));
    for _ in 0..5 {
        let _ = recorder.send_to(b"an answer", (LOW, injector.local_addr().unwrap().port()));
    }
    injector.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    assert!(injector.recv(&mut [0; 16]).is_err(), "an answer came back");
    assert_eq!(link.high_stopped(), 5, "the rule saw the answers");
    assert_eq!(link.high_transmitted(), 0, "the interface transmitted none");
}

#[test]
fn loses_at_random_and_in_bursts() {
    require_link!();
    let link = Link::new(1500, false);
    let (injector, recorder) = (link.injector(), link.recorder());
    link.set_loss(Loss::Random(50));
    let lost = 10_000 - arrived(&injector, &recorder, 10_000);
    assert!((400..=600).contains(&lost), "{lost} of 10,000 at 5 %");
    assert_eq!(link.lost(), lost as u64, "only the rule lost any");

    link.set_loss(Loss::Burst { every: 1000, length: 20 });
    let before = link.lost();
    assert_eq!(arrived(&injector, &recorder, 10_000), 9_800);
    assert_eq!(link.lost() - before, 200);

    link.set_loss(Loss::All);
    assert_eq!(arrived(&injector, &recorder, 100), 0);
    link.set_loss(Loss::None);
    assert_eq!(arrived(&injector, &recorder, 100), 100);
}

#[test]
fn goes_away_when_a_test_panics() {
    require_link!();
    let mut names = Vec::new();
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let link = Link::new(1500, true);
        names = vec![link.low.name().to_owned(), link.high.name().to_owned()];
        panic!("as a failing test would");
    }));
    assert!(result.is_err());
    for name in names {
        assert!(!std::path::Path::new("/run/netns").join(&name).exists(), "{name} is left over");
    }
}

/// Sends `count` small datagrams and counts those that arrive. Reads often, so that no kernel queue overflows.
fn arrived(injector: &UdpSocket, recorder: &UdpSocket, count: usize) -> usize {
    recorder.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    let mut buf = [0; 64];
    let mut arrived = 0;
    for number in 0..count {
        injector.send(&number.to_be_bytes()).unwrap();
        if number % 100 == 99 {
            recorder.set_nonblocking(true).unwrap();
            while recorder.recv(&mut buf).is_ok() {
                arrived += 1;
            }
        }
    }
    recorder.set_nonblocking(false).unwrap();
    while recorder.recv(&mut buf).is_ok() {
        arrived += 1;
    }
    arrived
}
