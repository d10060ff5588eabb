//! Replay protection: each session's counters are taken once (the window of RFC 4303 section 3.4.3, made larger, since
//! several lanes may run apart).

use super::DropReason;
use crate::id::SessionId;

/// Counters behind the newest that are still told apart. At 800,000 datagrams a second, a third of a second.
const WINDOW: u64 = 1 << 18;
const WORDS: usize = (WINDOW / 64) as usize;
/// Sessions whose windows are kept.
const MAX_SESSIONS: usize = 8;

/// The windows, most recently used first.
#[derive(Default)]
pub(super) struct Sessions(Vec<Window>, Counted);

/// Datagrams of all sessions.
#[derive(Default)]
struct Counted {
    sent: u64,
    received: u64,
    longest: u64,
}

struct Window {
    session: SessionId,
    newest: u64,
    seen: Box<[u64; WORDS]>,
}

impl Sessions {
    /// Marks an authentic counter as seen. Errors: [`DropReason::Replay`].
    pub(super) fn admit(&mut self, session: SessionId, counter: u64) -> Result<(), DropReason> {
        match self.0.iter().position(|w| w.session == session) {
            Some(0) => {}
            Some(at) => self.0[..=at].rotate_right(1),
            None => {
                self.0.truncate(MAX_SESSIONS - 1);
                self.1.sent += 1;
                self.0.insert(0, Window { session, newest: counter, seen: Box::new([0; WORDS]) });
            }
        }
        let window = &mut self.0[0];
        let before = window.newest;
        if !window.admit(counter) {
            return Err(DropReason::Replay);
        }
        self.1.received += 1;
        if counter > before {
            self.1.sent += counter - before;
            self.1.longest = self.1.longest.max(counter - before - 1);
        } else if self.1.received > self.1.sent {
            // From before the first that came.
            self.1.sent = self.1.received;
        }
        Ok(())
    }

    /// Datagrams sent since the first that came, those received, and the most in a row that did not come since this was asked
    /// last.
    pub(super) fn tally(&mut self) -> (u64, u64, u64) {
        (self.1.sent, self.1.received, std::mem::take(&mut self.1.longest))
    }
}

impl Window {
    fn admit(&mut self, counter: u64) -> bool {
        if counter > self.newest {
            let ahead = counter - self.newest;
            if ahead >= WINDOW {
                self.seen.fill(0);
            } else {
                // Whole words that come into the window; the newest's own word keeps its older bits.
                let first = self.newest / 64 + 1;
                for word in first..=counter / 64 {
                    self.seen[(word % WORDS as u64) as usize] = 0;
                }
            }
            self.newest = counter;
        } else if self.newest - counter >= WINDOW - 64 {
            return false;
        }
        let (word, bit) = ((counter / 64 % WORDS as u64) as usize, counter % 64);
        let fresh = self.seen[word] & (1 << bit) == 0;
        self.seen[word] |= 1 << bit;
        fresh
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_counter_once_in_any_order() {
        let mut sessions = Sessions::default();
        let s = SessionId(1);
        for counter in [5, 3, 4, 0, 100, 99, 63, 64, 65] {
            assert_eq!(sessions.admit(s, counter), Ok(()), "{counter}");
            assert_eq!(sessions.admit(s, counter), Err(DropReason::Replay), "{counter}");
        }
        assert_eq!(sessions.admit(s, WINDOW * 3), Ok(()));
        assert_eq!(sessions.admit(s, 100), Err(DropReason::Replay), "far behind the newest");
        assert_eq!(sessions.admit(s, WINDOW * 3 - 1), Ok(()));
        assert_eq!(sessions.admit(s, u64::MAX), Ok(()));
        assert_eq!(sessions.admit(s, u64::MAX), Err(DropReason::Replay));
    }

    #[test]
    fn agrees_with_a_plain_set() {
        let mut sessions = Sessions::default();
        let mut plain = std::collections::HashSet::new();
        let (mut state, mut newest) = (1_u64, 0_u64);
        for _ in 0..300_000 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let step = (state >> 40) % 200;
            let counter = if state >> 63 == 0 { newest + step } else { newest.saturating_sub(step * 50) };
            newest = newest.max(counter);
            assert_eq!(sessions.admit(SessionId(1), counter).is_ok(), plain.insert(counter), "{counter}");
        }
    }

    #[test]
    fn sessions_do_not_mix() {
        let mut sessions = Sessions::default();
        assert!(sessions.admit(SessionId(1), 7).is_ok());
        assert!(sessions.admit(SessionId(2), 7).is_ok());
        assert!(sessions.admit(SessionId(1), 7).is_err());
    }
}
