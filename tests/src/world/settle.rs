//! The end of a run: all is mended, tickets are carried until nothing is lacking, and the sums must come out.

use std::ops::Range;

use checkvalve_protocol::id::{BundleId, ChannelName};
use checkvalve_protocol::partition::Oti;
use checkvalve_protocol::ticket::{Data, Loss, Need, Subject, Ticket};
use checkvalve_protocol::wire::ObjectKind;
use checkvalve_receiver::delivery::status::{BundleStatus, Status};
use checkvalve_receiver::ledger::State;
use checkvalve_receiver::sink::{Sink, Want};
use checkvalve_sender::engine::{BundleState, ResendError, View};

use super::book::Held;
use super::high::SILENCE_MS;
use super::low::parameters;
use super::play::{MS, World};
use crate::simdisk::SimDisk;

/// Rounds of waiting and carrying tickets.
const ROUNDS: usize = 12;
/// From this one on the line is perfect.
const PERFECT: usize = 3;

impl World<'_> {
    pub(super) fn settle(&mut self) -> Held {
        self.note(|| "all is mended".to_owned());
        self.mend_all();
        for round in 0..ROUNDS {
            if round == PERFECT {
                self.mend_wire();
            }
            self.wait_for_sender()?;
            self.advance(self.now + (SILENCE_MS + 8_000) * MS)?;
            let (Some(view), Some(status)) = (self.view(), self.status()) else { continue };
            let lacking = self.lacking(&view, &status);
            if lacking.is_empty() {
                return self.sums(&view, &status);
            }
            // A carousel or a late hook may still be at it.
            let unreported = lacking.iter().find(|what| matches!(what, Lacking::Unreported(_)));
            if let (Some(Lacking::Unreported(what)), false) = (unreported, self.script.options.carousel) {
                return Err(format!("{what} is neither published nor reported"));
            }
            let text: Vec<String> = lacking.iter().map(|l| format!("{l:?}")).collect();
            self.note(|| format!("round {round}: lacking {}", text.join(", ")));
            self.carry_tickets(true)?;
        }
        let (Some(view), Some(status)) = (self.view(), self.status()) else {
            return Err("a process does not stay up although nothing is wrong".to_owned());
        };
        Err(format!("after {ROUNDS} rounds of tickets: {:?}", self.lacking(&view, &status)))
    }

    /// Carries a ticket for each bundle that is reported as lacking. With `give_up`, the person also gives up what the
    /// sender cannot send any more, and drops it again.
    pub(super) fn carry_tickets(&mut self, give_up: bool) -> Held {
        let Some(status) = self.status() else { return Ok(()) };
        for row in status.bundles.iter().filter(|row| matches!(row.state, State::Incomplete | State::Missing)) {
            if self.low.process.is_none() || self.high.process.is_none() {
                return Ok(());
            }
            let Some(ticket) = self.ticket(row)? else { continue };
            self.tickets += 1;
            self.carry(row, &ticket, give_up)?;
        }
        Ok(())
    }

    /// A person asks for something that nobody needs.
    pub(super) fn resend_any(&mut self, pick: u64) -> Held {
        let Some(view) = self.view() else { return Ok(()) };
        let sent: Vec<_> = view.bundles.iter().filter(|b| b.state == BundleState::Transmitted).collect();
        if sent.is_empty() {
            return Ok(());
        }
        let bundle = sent[usize::try_from(pick % sent.len() as u64).expect("small")];
        self.resend(&bundle.id.to_string(), &[]).map(drop)
    }

    /// Waits until the sender has sent all that it has.
    fn wait_for_sender(&mut self) -> Held {
        for _ in 0..300 {
            self.advance(self.now + 1_000 * MS)?;
            let Some(view) = self.view() else { continue };
            let over = |b: &checkvalve_sender::engine::BundleView| {
                matches!(b.state, BundleState::Transmitted | BundleState::Failed) && b.resends == 0
            };
            let idle = self.low.process.as_ref().is_some_and(super::low::Low::is_idle) || self.script.options.carousel;
            if view.spool.waiting.is_empty() && view.bundles.iter().all(over) && idle {
                return Ok(());
            }
        }
        let view = self.view().map(|view| (view.spool, view.bundles, view.troubles));
        Err(format!("the sender is not done in five minutes: {view:?}"))
    }

    fn view(&self) -> Option<View> {
        Some(self.low.process.as_ref()?.engine.view())
    }

    fn status(&self) -> Option<Status> {
        let wall = self.high_wall_ms();
        let process = self.high.process.as_ref()?;
        Some(self.high.disk.outside(|| process.delivery.status(wall)))
    }

    fn lacking(&self, view: &View, status: &Status) -> Vec<Lacking> {
        let mut lacking = Vec::new();
        for row in &status.bundles {
            let what = format!("{}/{} ({:?}: {:?})", row.channel, row.sequence, row.state, row.reason);
            match row.state {
                State::Incomplete | State::Missing => lacking.push(Lacking::Reported(what)),
                State::Receiving => lacking.push(Lacking::Unreported(what)),
                State::Complete if self.script.options.hook.is_some() => lacking.push(Lacking::Waiting(what)),
                State::Installing => lacking.push(Lacking::Waiting(what)),
                _ => {}
            }
        }
        for bundle in view.bundles.iter().filter(|b| b.state == BundleState::Transmitted) {
            let known = status.bundles.iter().any(|row| {
                let same = row.channel == bundle.channel.as_str() && bundle.sequence.is_some_and(|n| n >= row.sequence);
                row.id == bundle.id.to_string() || same && bundle.sequence <= Some(row.through.unwrap_or(row.sequence))
            });
            if !known {
                lacking.push(Lacking::Unreported(format!("{}/{:?}", bundle.channel, bundle.sequence)));
            }
        }
        lacking
    }

    /// What the receiver would print, through text and back.
    fn ticket(&mut self, row: &BundleStatus) -> Result<Option<Ticket>, String> {
        let channel = ChannelName::new(&row.channel).ok();
        let subject = match (row.id.parse().ok(), channel) {
            (Some(bundle), _) => {
                let data = self.data_lacking(bundle, row)?;
                let Some(data) = data else { return Ok(None) };
                Subject::Bundle { bundle, announce: true, hashes: true, data }
            }
            (None, Some(channel)) => {
                let count = row.through.unwrap_or(row.sequence) - row.sequence + 1;
                Subject::Sequences { channel, first: row.sequence, count }
            }
            (None, None) => return Err(format!("a row of status is about nothing: {row:?}")),
        };
        let ticket = Ticket::new(subject, Loss::of(1, 100)).map_err(|error| format!("no ticket: {error}"))?;
        let (ticket, _) = match self.oti(row.bytes) {
            Some(oti) => ticket.fit(&oti, 40),
            None => (ticket, checkvalve_protocol::ticket::Cost { lacking: 0, asked: 0 }),
        };
        let text = ticket.to_text().ok_or("a ticket of more than 40 lines")?;
        let read = Ticket::parse(&text).map_err(|error| format!("the ticket cannot be read: {error}"))?;
        if read == ticket { Ok(Some(read)) } else { Err("the ticket is read as another one".to_owned()) }
    }

    fn data_lacking(&mut self, bundle: BundleId, row: &BundleStatus) -> Result<Option<Data>, String> {
        let (Some(oti), true) = (self.oti(row.bytes), row.received > 0) else { return Ok(Some(Data::All)) };
        let Some(process) = &self.high.process else { return Ok(None) };
        let want = SimDisk::until_power_cut(|| process.delivery.want(bundle, ObjectKind::Data, &oti));
        Ok(match self.high_survived(want)? {
            None => None,
            Some(Want::Yes { have }) => {
                let lacking = (0..oti.blocks()).filter(|&sbn| !have.contains(sbn));
                Some(Data::of_blocks(lacking.map(|sbn| (sbn, Need::Whole))))
            }
            Some(Want::Done) => Some(Data::Nothing),
            Some(Want::Refuse(_)) => Some(Data::All),
        })
    }

    fn oti(&self, bytes: u64) -> Option<Oti> {
        let parameters = parameters(&self.script.options);
        Oti::new(bytes, parameters.symbol_size(), parameters.block_symbols()).ok()
    }

    fn carry(&mut self, row: &BundleStatus, ticket: &Ticket, give_up: bool) -> Held {
        let mut asked: Vec<(String, Ranges)> = Vec::new();
        match ticket.subject() {
            Subject::Bundle { bundle, .. } => {
                let mut ranges = Vec::new();
                if let Some(oti) = self.oti(row.bytes) {
                    let blocks = ticket.blocks(&oti).map_err(|error| format!("ticket of {bundle}: {error}"))?;
                    ranges.extend(blocks.into_iter().map(|(range, need)| match need {
                        Need::Whole => (range, None),
                        Need::Symbols(n) => (range, Some(u32::from(n))),
                    }));
                }
                asked.push((bundle.to_string(), ranges));
            }
            Subject::Sequences { channel, first, count } => {
                asked.extend((*first..first + count).map(|n| (format!("{channel}/{n}"), Vec::new())));
            }
        }
        for (which, ranges) in asked {
            self.note(|| format!("ticket for {which}: {ranges:?}"));
            match self.resend(&which, &ranges)? {
                Some(Err(ResendError::Failed(..) | ResendError::NotRetained(_))) if give_up => self.give_up(&which)?,
                Some(Err(error @ (ResendError::Unknown(_) | ResendError::Ambiguous(..) | ResendError::Blocks(..)))) => {
                    return Err(format!("the sender refuses a ticket: {error}"));
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn resend(&mut self, which: &str, ranges: &[Asked]) -> Result<Option<Result<(), ResendError>>, String> {
        let clock = self.low_clock();
        let Some(process) = &mut self.low.process else { return Ok(None) };
        let did = SimDisk::until_power_cut(|| process.engine.resend(which, ranges, clock).map(drop));
        self.low_survived(did)
    }

    /// The sender cannot send it any more: the receiver need not wait for it, and it is dropped again.
    fn give_up(&mut self, which: &str) -> Held {
        let Some(record) = self.low.process.as_ref().and_then(|p| p.engine.choose(which).ok().cloned()) else {
            return Ok(());
        };
        let meant = format!("{}/{}", record.channel, record.sequence.unwrap_or_default());
        self.note(|| format!("{meant} is given up"));
        let Some(process) = &self.high.process else { return Ok(()) };
        let which = meant.parse().map_err(|error| format!("{meant}: {error}"))?;
        let did = SimDisk::until_power_cut(|| process.delivery.reject(&which));
        if let Some(Ok(())) = self.high_survived(did)? {
            self.book.rejected.insert(record.id);
            if let Some(&number) = self.book.by_id.get(&record.id) {
                self.drop_again(number);
            }
        }
        Ok(())
    }

    /// Everything that was dropped is where it belongs.
    fn sums(&mut self, view: &View, status: &Status) -> Held {
        let disk = self.high.disk.clone();
        self.book.inbox(&disk, Some(status))?;
        self.book.holds(&self.low.disk)?;
        for number in 0..self.book.drops.len() {
            let drop = &self.book.drops[number];
            let (name, channel) = (drop.name.clone(), drop.channel.clone());
            let shown = checkvalve_host::log::escape_path(name.as_ref());
            let bundle = view.bundles.iter().find(|b| b.name == shown && b.channel.as_str() == channel);
            let Some(bundle) = bundle else {
                // What was refused before it had a sequence may be forgotten; the folder tells.
                if self.book.is_failed(&self.low.disk, number) {
                    continue;
                }
                return Err(format!("the sender does not know of {name:?}"));
            };
            let row = status.bundles.iter().find(|row| row.id == bundle.id.to_string());
            match (bundle.state, row.map(|row| row.state)) {
                (BundleState::Failed, _) if !self.book.is_failed(&self.low.disk, number) => {
                    return Err(format!("{name:?} failed ({:?}) and is not in .failed", bundle.reason));
                }
                (BundleState::Failed, _) => {}
                (_, Some(State::Quarantined)) if self.book.is_refused(bundle.id) => {}
                // The sender gave it up on the wire, died before it could write that down, and sent it after all.
                (_, Some(State::Withdrawn)) if self.book.withdrawn.contains(&bundle.id) => {}
                (_, Some(State::Rejected)) if self.book.rejected.contains(&bundle.id) => {}
                (_, Some(State::Complete | State::Installed | State::Failed | State::Superseded)) => {
                    if !self.book.is_published(&channel, bundle.sequence.unwrap_or_default()) {
                        return Err(format!("{name:?} is said to be published and is not in the inbox"));
                    }
                }
                (state, got) => {
                    let why = row.and_then(|row| row.reason.clone());
                    return Err(format!("{name:?} is {state:?} at the sender and {got:?} at the receiver: {why:?}"));
                }
            }
        }
        Ok(())
    }
}

type Asked = (Range<u32>, Option<u32>);
type Ranges = Vec<Asked>;

/// What is not over yet.
#[derive(Debug)]
enum Lacking {
    /// The receiver says so.
    Reported(#[allow(dead_code, reason = "for Debug")] String),
    /// It was sent, and the receiver says nothing.
    Unreported(String),
    /// For its hook.
    Waiting(#[allow(dead_code, reason = "for Debug")] String),
}
