//! What the caller is asked about objects: whether they are wanted, and what of them is stored already.
//!
//! 1. [`Reassembly::poll_question`] gives a question out. The caller finds the answer without any lock of this machine.
//! 2. [`Reassembly::handle_answer`] takes the answer. Symbols that came meanwhile have waited for it here.
//!
//! What the caller says may become wrong on its way: then it tells so with [`Reassembly::forget`],
//! [`Reassembly::ask_again`] or [`Reassembly::vouch`], and an answer that is on its way counts no more.

use std::collections::{HashMap, VecDeque};

use super::lobby::Waiting;
use super::objects::{Handle, Key, key};
use super::vouch::Unplaced;
use super::{DropReason, Drops, Reassembly, Wanted};
use crate::id::BundleId;
use crate::time::Time;
use crate::wire::Symbol;

/// Questions that wait at once. Every thread that receives answers what its own datagrams brought up, so there are few.
const MOST: usize = 1_024;

/// A question about an object: is it wanted?
#[derive(Debug, PartialEq, Eq)]
pub struct Question {
    /// A symbol of the object; its place does not matter.
    pub symbol: Symbol,
    /// Tells it from earlier ones about the same object.
    number: u64,
}

#[derive(Default)]
pub(super) struct Questions {
    asked: HashMap<Key, Asked>,
    /// Not given out yet. What is not in `asked` under this number any more is skipped.
    due: VecDeque<(Key, u64)>,
    next: u64,
}

/// A question without an answer.
pub(super) struct Asked {
    number: u64,
    /// Only whether the object must go is asked; all else that is known of it stays.
    confirms: bool,
    /// In the order in which they came.
    waiting: Vec<Waiting>,
}

impl Questions {
    /// Asks about the object of a symbol, unless that was done. False: too many questions wait.
    pub(super) fn ask(&mut self, symbol: &Symbol) -> bool {
        self.add(symbol, false)
    }

    /// Asks whether an object must go; until there is an answer it stays. False: too many questions wait.
    pub(super) fn ask_to_confirm(&mut self, symbol: &Symbol) -> bool {
        self.add(symbol, true)
    }

    fn add(&mut self, symbol: &Symbol, confirms: bool) -> bool {
        let key = key(symbol);
        if let Some(asked) = self.asked.get_mut(&key) {
            asked.confirms &= confirms;
            return true;
        }
        if self.asked.len() >= MOST {
            return false;
        }
        let number = self.number();
        self.asked.insert(key, Asked { number, confirms, waiting: Vec::new() });
        self.due.push_back((key, number));
        true
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// Answers about a bundle that are on their way do not count: the questions are due again.
    pub(super) fn renew(&mut self, bundle: BundleId) {
        let keys: Vec<Key> = self.asked.keys().filter(|key| key.0 == bundle).copied().collect();
        for key in keys {
            let number = self.number();
            if let Some(asked) = self.asked.get_mut(&key) {
                asked.number = number;
                self.due.push_back((key, number));
            }
        }
    }

    /// The questions about a bundle are dropped. Gives how many symbols waited for the answers.
    pub(super) fn forget(&mut self, bundle: BundleId) -> u64 {
        let mut waited = 0;
        self.asked.retain(|key, asked| {
            waited += if key.0 == bundle { asked.waiting.len() as u64 } else { 0 };
            key.0 != bundle
        });
        waited
    }

    fn poll(&mut self) -> Option<Question> {
        while let Some((key, number)) = self.due.pop_front() {
            if self.asked.get(&key).is_some_and(|asked| asked.number == number) {
                let (bundle, kind, oti) = key;
                return Some(Question { symbol: Symbol { bundle, kind, sbn: 0, esi: 0, oti }, number });
            }
        }
        None
    }

    fn take(&mut self, question: &Question) -> Option<Asked> {
        let key = key(&question.symbol);
        self.asked.get(&key).filter(|asked| asked.number == question.number)?;
        self.asked.remove(&key)
    }
}

impl Reassembly {
    /// What to ask the caller. Report with [`Reassembly::handle_answer`].
    pub fn poll_question(&mut self) -> Option<Question> {
        self.questions.poll()
    }

    /// The caller's answer. Nothing happens if it is about something that has changed since the question was given out. Gives what
    /// was dropped of the symbols that waited for it.
    pub fn handle_answer(&mut self, now: Time, question: &Question, answer: Wanted) -> Drops {
        let mut drops = Drops::default();
        let Some(asked) = self.questions.take(question) else { return drops };
        let symbol = &question.symbol;
        let known = self.objects.find(symbol);
        let placed = match known {
            known if asked.confirms => {
                self.confirm(known, &answer);
                return drops;
            }
            Some(handle) => self.refresh(now, handle, symbol, answer),
            None => self.begin(now, symbol, answer),
        };
        for waiting in asked.waiting {
            let placed = placed.and_then(|handle| self.place_in(now, handle, &waiting.symbol, &waiting.payload));
            match placed {
                Ok(()) => {}
                Err(Unplaced::Dropped(reason)) => drops.add(reason),
                Err(Unplaced::Crowded) => self.wait_in_lobby(now, &waiting.symbol, &waiting.payload),
                Err(Unplaced::Asked) => drops.add(DropReason::Limit),
            }
        }
        self.answer_admitted(now, symbol, placed);
        self.take_admitted(now);
        drops
    }

    /// Answers every question at once: for those who have no threads.
    pub fn answer_all(&mut self, now: Time, mut want: impl FnMut(&Symbol) -> Wanted) -> Drops {
        let mut drops = Drops::default();
        while let Some(question) = self.poll_question() {
            let answer = want(&question.symbol);
            drops.merge(&self.handle_answer(now, &question, answer));
        }
        drops
    }

    /// Keeps a symbol until there is an answer about its object. Errors: too many wait.
    pub(super) fn wait_for_answer(&mut self, now: Time, symbol: &Symbol, payload: &[u8]) -> Result<(), DropReason> {
        let lease = self.buffers.asked(payload.len()).ok_or(DropReason::Memory)?;
        let asked = self.questions.asked.get_mut(&key(symbol)).ok_or(DropReason::Limit)?;
        asked.waiting.push(Waiting::new(now, *symbol, payload, lease));
        Ok(())
    }

    fn confirm(&mut self, known: Option<Handle>, answer: &Wanted) {
        if let Some(handle) = known
            && matches!(answer, Wanted::No(DropReason::Refused | DropReason::Done))
        {
            self.remove_object(handle, false);
        }
    }
}

#[cfg(test)]
impl Reassembly {
    /// Takes a datagram, and answers at once what it brings up.
    pub(super) fn handle_with(
        &mut self,
        now: Time,
        header: &crate::wire::Header,
        payload: &[u8],
        want: &mut dyn FnMut(&Symbol) -> Wanted,
    ) -> Result<(), DropReason> {
        self.handle(now, header, payload)?;
        let drops = self.answer_all(now, want);
        drops.iter().find(|(_, count)| *count > 0).map_or(Ok(()), |(reason, _)| Err(reason))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::partition::Oti;
    use crate::wire::ObjectKind;

    fn symbol(bundle: u64, length: u64) -> Symbol {
        let oti = Oti::new(length, 64, 8).unwrap();
        Symbol { bundle: BundleId(bundle), kind: ObjectKind::Data, sbn: 0, esi: 0, oti }
    }

    #[test]
    fn each_object_is_asked_about_once() {
        let mut questions = Questions::default();
        assert!(questions.ask(&symbol(1, 64)) && questions.ask(&symbol(1, 64)) && questions.ask(&symbol(1, 128)));
        let (first, second) = (questions.poll().unwrap(), questions.poll().unwrap());
        assert_eq!((first.symbol, second.symbol), (symbol(1, 64), symbol(1, 128)));
        assert_eq!(questions.poll(), None);
        assert!(questions.ask(&symbol(1, 64)), "while its answer is on its way");
        assert_eq!(questions.poll(), None);
        assert!(questions.take(&first).is_some() && questions.take(&first).is_none());
        assert!(questions.ask(&symbol(1, 64)));
        assert!(questions.take(&first).is_none(), "an answer to an older question");
        assert!(questions.poll().is_some());
    }

    #[test]
    fn an_answer_that_is_on_its_way_counts_no_more_once_things_have_changed() {
        let mut questions = Questions::default();
        questions.ask(&symbol(1, 64));
        questions.ask(&symbol(2, 64));
        let (first, second) = (questions.poll().unwrap(), questions.poll().unwrap());
        questions.renew(BundleId(1));
        assert!(questions.take(&first).is_none() && questions.take(&second).is_some());
        let again = questions.poll().unwrap();
        assert_eq!(again.symbol, symbol(1, 64));
        questions.forget(BundleId(1));
        assert!(questions.take(&again).is_none() && questions.asked.is_empty());
    }

    #[test]
    fn there_are_so_many_at_most() {
        let mut questions = Questions::default();
        assert!((0..MOST as u64).all(|bundle| questions.ask(&symbol(bundle, 64))));
        assert!(!questions.ask(&symbol(MOST as u64, 64)) && questions.ask(&symbol(0, 64)));
        let first = questions.poll().unwrap();
        questions.take(&first);
        assert!(questions.ask(&symbol(MOST as u64, 64)));
        (0..10_000).for_each(|_| questions.renew(BundleId(1)));
        while questions.poll().is_some() {}
        assert!(questions.due.is_empty());
    }
}
