//! What the caller is asked, and what happens before it has answered.

use super::*;

const BUNDLE: BundleId = BundleId(7);

fn symbol(esi: u32) -> Symbol {
    let oti = crate::partition::Oti::new(64 * 16, 64, 8).unwrap();
    Symbol { bundle: BUNDLE, kind: ObjectKind::Data, sbn: 0, esi, oti }
}

fn put(reassembly: &mut Reassembly, symbol: Symbol) -> Result<(), DropReason> {
    let content = Content::Symbol(symbol);
    let header = Header { sealed: true, session: SessionId(1), counter: symbol.esi.into(), content };
    reassembly.handle(Time(1), &header, &vec![symbol.esi as u8; symbol.oti.symbol_size().into()])
}

fn yes(origin: Origin, have: std::ops::Range<u32>) -> Wanted {
    Wanted::Yes { have: std::iter::once(have).collect(), parked: Vec::new(), origin }
}

#[test]
fn symbols_wait_for_the_answer_in_the_order_in_which_they_came() {
    let mut reassembly = Reassembly::new(limits(1 << 20));
    (0..8).for_each(|esi| put(&mut reassembly, symbol(esi)).unwrap());
    let question = reassembly.poll_question().unwrap();
    assert!(reassembly.poll_question().is_none() && reassembly.poll_block().is_none());
    assert!(reassembly.memory() > 8 * 64, "they are counted");
    assert_eq!(reassembly.handle_answer(Time(2), &question, yes(Origin::Signed, 1..2)), Drops::default());
    let block = reassembly.poll_block().unwrap();
    assert!(block.is_whole() && block.received() == 8);
    reassembly.stored(block);
    assert_eq!(reassembly.handle_answer(Time(2), &question, Wanted::No(DropReason::Done)), Drops::default());
    assert_eq!(
        put(&mut reassembly, Symbol { sbn: 1, ..symbol(0) }),
        Err(DropReason::Surplus),
        "as the first answer says"
    );
}

#[test]
fn symbols_of_what_is_not_wanted_are_counted_as_dropped() {
    let mut reassembly = Reassembly::new(limits(1 << 20));
    (0..3).for_each(|esi| put(&mut reassembly, symbol(esi)).unwrap());
    let question = reassembly.poll_question().unwrap();
    let drops = reassembly.handle_answer(Time(2), &question, Wanted::No(DropReason::Done));
    assert_eq!(drops.get(DropReason::Done), 3);
    assert_eq!(put(&mut reassembly, symbol(3)), Err(DropReason::Done), "the answer is remembered");
}

/// The caller gave up what it had, or a key signed for the bundle, while its answer was on its way.
#[test]
fn an_answer_from_before_a_change_is_not_believed() {
    let changes: [fn(&mut Reassembly); 2] =
        [|reassembly| reassembly.ask_again(BUNDLE), |reassembly| reassembly.vouch(Time(1), BUNDLE)];
    for change in changes {
        let mut reassembly = Reassembly::new(limits(1 << 20));
        put(&mut reassembly, symbol(0)).unwrap();
        let before = reassembly.poll_question().unwrap();
        change(&mut reassembly);
        reassembly.handle_answer(Time(2), &before, yes(Origin::Named, 0..2));
        assert!(reassembly.progress().next().is_none());
        let after = reassembly.poll_question().unwrap();
        reassembly.handle_answer(Time(2), &after, yes(Origin::Signed, 0..0));
        assert_eq!(reassembly.lacking(BUNDLE), [(0, 7)], "the symbol has waited");
        assert_eq!(reassembly.usage().unsigned_objects, 0);
    }
}

#[test]
fn nothing_waits_for_an_answer_about_a_bundle_that_is_forgotten() {
    let mut reassembly = Reassembly::new(limits(1 << 20));
    put(&mut reassembly, symbol(0)).unwrap();
    let before = reassembly.poll_question().unwrap();
    reassembly.forget(BUNDLE);
    assert_eq!((reassembly.memory(), reassembly.given_up().get(DropReason::Limit)), (0, 1));
    put(&mut reassembly, symbol(1)).unwrap();
    reassembly.handle_answer(Time(2), &before, yes(Origin::Signed, 0..2));
    assert!(reassembly.poll_question().is_some(), "the bundle began anew");
    assert!(reassembly.progress().next().is_none());
}

#[test]
fn what_waits_for_answers_is_bounded() {
    let mut reassembly = Reassembly::new(limits(1 << 20));
    let many = (0..1_000).map(|esi| put(&mut reassembly, symbol(esi))).filter(Result::is_ok).count();
    assert!((32..1_000).contains(&many), "{many}");
    assert!(reassembly.memory() <= (1 << 20) / 32, "{}", reassembly.memory());
    for bundle in 0..10_000 {
        let drop = put(&mut reassembly, Symbol { bundle: BundleId(100 + bundle), ..symbol(0) });
        assert!(drop.is_err());
    }
    let mut asked = 0;
    reassembly.answer_all(Time(1), |_| {
        asked += 1;
        Wanted::No(DropReason::Refused)
    });
    assert!(asked <= 1_024, "{asked}");
    reassembly.handle_timeout(Time(1 << 40));
    assert_eq!(reassembly.usage(), Usage::default());
}
