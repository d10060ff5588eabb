//! How many symbols to send so that enough of them arrive.

/// The fewest symbols to send so that at least `enough` of them arrive, except with a probability of `failure`. Each
/// symbol is lost independently with probability `loss` (0 to below 1).
///
/// At most 2¹⁴, which no block needs.
#[must_use]
pub fn symbols_to_send(enough: u32, loss: f64, failure: f64) -> u32 {
    const MOST: u32 = 1 << 14;
    let loss = loss.clamp(0.0, 0.99);
    if enough == 0 || loss == 0.0 {
        return enough.min(MOST);
    }
    let factorials = ln_factorials(MOST);
    let suffices = |sent| too_few(&factorials, sent, enough, loss) <= failure;
    let (mut low, mut high) = (enough.min(MOST), MOST);
    while low < high {
        let middle = low.midpoint(high);
        if suffices(middle) { high = middle } else { low = middle + 1 }
    }
    low
}

/// Probability that fewer than `enough` of `sent` symbols arrive.
fn too_few(ln_factorials: &[f64], sent: u32, enough: u32, loss: f64) -> f64 {
    let factorial = |n: u32| ln_factorials.get(n as usize).copied().unwrap_or_default();
    let of = |arrive: u32| {
        let ways = factorial(sent) - factorial(arrive) - factorial(sent - arrive);
        (ways + f64::from(arrive) * (1.0 - loss).ln() + f64::from(sent - arrive) * loss.ln()).exp()
    };
    (0..enough.min(sent + 1)).map(of).sum()
}

/// ln n! for n from 0 to `most`.
fn ln_factorials(most: u32) -> Vec<f64> {
    let mut sum = 0.0;
    let rest = (1..=most).map(|n| {
        sum += f64::from(n).ln();
        sum
    });
    std::iter::once(0.0).chain(rest).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_values() {
        assert_eq!(symbols_to_send(7, 0.0, 1e-5), 7);
        assert_eq!(symbols_to_send(0, 0.5, 1e-5), 0);
        // One symbol at 10 %: all of n are lost with 10^-n.
        assert_eq!(symbols_to_send(1, 0.1, 1.01e-5), 5);
        // Two of n at one half: (n + 1) / 2^n.
        assert_eq!(symbols_to_send(2, 0.5, 11.01 / 1024.0), 10);
        assert!(symbols_to_send(1_024, 0.999, 1e-9) <= 1 << 14);
    }

    #[test]
    fn it_is_enough_and_no_more() {
        // Drawn from a fixed sequence, so that a failure can be seen again.
        let mut state = 7_u64;
        let mut uniform = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 11) as f64 / (1_u64 << 53) as f64
        };
        for (enough, loss) in [(3, 0.01), (12, 0.1), (256, 0.05), (256, 0.5)] {
            let sent = symbols_to_send(enough, loss, 1e-3);
            let trials = 20_000;
            let short = |sent: u32, uniform: &mut dyn FnMut() -> f64| {
                let bad = (0..trials).filter(|_| ((0..sent).filter(|_| uniform() >= loss).count() as u32) < enough);
                bad.count()
            };
            assert!(short(sent, &mut uniform) <= 45, "{enough} at {loss}: {sent}");
            assert!(short(sent - 1, &mut uniform) >= 3, "{enough} at {loss}: {sent}");
        }
    }
}
