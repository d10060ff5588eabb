//! How many lines the log gets where something fails for very many bundles at once.

use super::*;
use crate::testing::warnings;

const ENOSPC: i32 = 28;
const MANY: u64 = 100;
/// Lines of a minute that the wire can trigger, and some for what is said once.
const FEW: usize = 20 + 4;

fn announced(bench: &Bench) -> (Delivery, Vec<Sample>) {
    let delivery = bench.open();
    let samples: Vec<Sample> = (1..=MANY).map(|n| Sample::file(n, n, 5_000)).collect();
    for sample in &samples {
        announce(&delivery, sample).unwrap();
    }
    (delivery, samples)
}

#[test]
fn what_is_not_kept_at_the_end_is_one_line() {
    let bench = Bench::new();
    let (delivery, _) = announced(&bench);
    bench.disk.fail_from(0, ENOSPC);
    let lines = warnings(|| delivery.tick_last(2_000));
    assert!((1..=4).contains(&lines), "{lines}");
}

#[test]
fn what_does_not_count_at_the_start_is_few_lines() {
    let bench = Bench::new();
    let (delivery, samples) = announced(&bench);
    delivery.tick_last(2_000);
    drop(delivery);
    for sample in &samples {
        std::fs::write(bench.settings.staging.join(sample.id().to_string()).join("announce"), b"junk").unwrap();
    }
    let lines = warnings(|| drop(bench.open()));
    assert!((1..=FEW).contains(&lines), "{lines}");
}

#[test]
fn what_cannot_be_removed_is_few_lines() {
    let bench = Bench::new();
    let (delivery, samples) = announced(&bench);
    bench.disk.fail_from(0, ENOSPC);
    let lines = warnings(|| samples.iter().for_each(|sample| delivery.staging.clean_up(sample.id())));
    assert!((1..=FEW).contains(&lines), "{lines}");
}
