//! Several senders, each with its key: none speaks for another.

use super::*;

fn neighbour() -> SigningKey {
    SigningKey::from_seed([9; 32])
}

fn both() -> Trust {
    let mut keys = trust();
    assert!(keys.insert(neighbour().public(), "neighbour"));
    let signers = BTreeMap::from([(default_channel(), BTreeSet::from([key().public().id()]))]);
    Trust { keys, signers }
}

/// The neighbour's sender says that it lives.
fn hear_neighbour(delivery: &Delivery, now_ms: u64) {
    let mut says = Beacon { channel: None, session_number: 7, rate_bits: u64::MAX, ..beacon(0, Vec::new(), None) };
    says.epoch.id = EpochId(99);
    assert!(hear_of(delivery, now_ms, &says, &neighbour()));
}

fn silent(delivery: &Delivery, now_ms: u64) -> Vec<(String, bool)> {
    delivery.status(now_ms).senders.into_iter().map(|sender| (sender.name, sender.silent)).collect()
}

#[test]
fn the_beacons_of_one_hide_no_other_s_silence() {
    let bench = Bench::new();
    let delivery = bench.open();
    delivery.set_trust(both(), 1_000).unwrap();
    hear(&delivery, 2_000, 0, Vec::new(), None);
    hear_neighbour(&delivery, 2_100);
    assert!(!delivery.is_silent(2_500));
    for now_ms in (3_000..20_000).step_by(500) {
        hear_neighbour(&delivery, now_ms);
    }
    let mine = trust().iter().next().unwrap().2.to_owned();
    assert_eq!(silent(&delivery, 20_000), [(mine.clone(), true), ("neighbour".to_owned(), false)]);
    assert!(delivery.is_silent(20_000) && delivery.status(20_000).sender.silent);
    // It is still waited for after a restart, and no more when nobody trusts its key.
    delivery.tick(20_000);
    drop(delivery);
    let delivery = bench.try_open(1).unwrap();
    delivery.set_trust(both(), 21_000).unwrap();
    hear_neighbour(&delivery, 21_000);
    assert_eq!(silent(&delivery, 21_100), [(mine, true), ("neighbour".to_owned(), false)]);
    let mut keys = checkvalve_protocol::crypto::TrustStore::new();
    keys.insert(neighbour().public(), "neighbour");
    delivery.set_trust(Trust::new(keys), 22_000).unwrap();
    assert_eq!(silent(&delivery, 22_000), [("neighbour".to_owned(), false)]);
}

#[test]
fn a_ticket_states_the_loss_and_the_rate_of_its_own_sender() {
    let bench = Bench::new().with_hook(None);
    let delivery = bench.open();
    delivery.set_trust(both(), 1_000).unwrap();
    send(&delivery, &Sample::file(1, 1, 100));
    let says = Beacon { rate_bits: 5_000, ..beacon(3, vec![recent(3, 3, RecentState::Transmitted)], None) };
    assert!(hear_of(&delivery, 2_000, &says, &key()));
    hear_neighbour(&delivery, 2_000);
    delivery.tick(20_000);
    let tag = key().public().id().tag();
    let loss = |key| if key == Some(tag) { Loss::of(0, 1_000_000) } else { Loss::of(999, 1_000) };
    let tickets = delivery.tickets(&[], &loss, 40, &|_| Vec::new()).unwrap();
    assert!(!tickets.is_empty());
    for ticket in tickets {
        assert_eq!((ticket.rate_bits, ticket.loss), (5_000, Loss::of(0, 1_000_000).to_string()), "{}", ticket.bundle);
    }
}

#[test]
fn a_clock_at_its_extremes_is_shown_as_far_as_it_can_be() {
    let delivery = Bench::new().open();
    for (clock_ms, shown) in [(u64::MAX, i64::MAX), (0, -2_000)] {
        let says = Beacon { clock_ms, ..beacon(0, Vec::new(), None) };
        assert!(hear_of(&delivery, 2_000, &says, &key()));
        assert_eq!(delivery.status(2_000).sender.clock_offset_ms, shown);
    }
}
