//! The end of a run: everything is repaired, tickets are carried until nothing is missing, and every drop is accounted for.

use checkvalve_protocol::ticket::Ticket;
use checkvalve_receiver::delivery::status::Status;
use checkvalve_receiver::delivery::ticket::TicketError;
use checkvalve_receiver::ledger::State;
use checkvalve_sender::engine::{BundleState, ResendError, View};

use super::book::Held;
use super::high::SILENCE_MS;
use super::play::{CHANNELS, MS, World};
use crate::simdisk::SimDisk;

/// How many rounds of waiting and carrying tickets there are at most.
const ROUNDS: usize = 12;
/// The round from which on the line is perfect.
const PERFECT: usize = 3;

impl World<'_> {
    pub(super) fn settle(&mut self) -> Held {
        self.note(|| "all is mended".to_owned());
        self.mend_all();
        self.peer.stop();
        for round in 0..ROUNDS {
            if round == PERFECT {
                self.mend_wire();
            }
            self.wait_for_sender()?;
            self.advance(self.now + (SILENCE_MS + 8_000) * MS)?;
            let (Some(view), Some(status)) = (self.view(), self.status()) else { continue };
            self.is_true(&status)?;
            let lacking = self.lacking(&view, &status);
            if lacking.is_empty() {
                self.sums(&view, &status)?;
                return self.nothing_is_left();
            }
            // A carousel or a late hook may still be running.
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

    /// Carries the receiver's tickets for what it reports as missing: all at once, or each ticket that `status` suggests. With
    /// `give_up`, the operator also gives up what the sender cannot send any more, and drops it again.
    pub(super) fn carry_tickets(&mut self, give_up: bool) -> Held {
        let Some(status) = self.status() else { return Ok(()) };
        let (ours, others): (Vec<_>, Vec<_>) = status.bundles.iter().partition(|row| is_ours(&row.channel));
        let commands = ours.iter().filter_map(|row| row.ticket.clone());
        let named: Vec<String> = commands.map(|c| c.split(' ').next_back().unwrap_or_default().to_owned()).collect();
        let asked = match named.is_empty() {
            // `ticket --all` would also cover the peer's bundles, which the sender does not know.
            false if self.tickets.is_multiple_of(2) && others.is_empty() => vec![Vec::new()],
            _ => named.into_iter().map(|name| vec![name]).collect(),
        };
        for which in asked {
            for text in self.tickets_of(&which)? {
                self.tickets += 1;
                self.carry(&text, give_up)?;
            }
        }
        Ok(())
    }

    /// Asks for a resend that nobody needs.
    pub(super) fn resend_any(&mut self, pick: u64) -> Held {
        let Some(view) = self.view() else { return Ok(()) };
        let sent: Vec<_> = view.bundles.iter().filter(|b| b.state == BundleState::Transmitted).collect();
        if sent.is_empty() {
            return Ok(());
        }
        let bundle = sent[usize::try_from(pick % sent.len() as u64).expect("small")];
        let (which, clock) = (bundle.id.to_string(), self.low_clock());
        let Some(process) = &mut self.low.process else { return Ok(()) };
        let did = SimDisk::until_power_cut(|| process.engine.resend(&which, &[], clock).map(drop));
        self.low_survived(did).map(drop)
    }

    /// Waits until the sender has sent everything.
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
        for row in status.bundles.iter().filter(|row| is_ours(&row.channel)) {
            let what = format!("{}/{} ({:?}: {:?})", row.channel, row.sequence, row.state, row.reason);
            match row.state {
                State::Incomplete | State::Missing => lacking.push(Lacking::Reported(what)),
                // The line repeats old datagrams, so something of a reported bundle came again.
                State::Receiving
                    if row.changed_at.is_some_and(|at| status.now_at.0.saturating_sub(at.0) < SILENCE_MS) =>
                {
                    lacking.push(Lacking::Waiting(what));
                }
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

    /// The tickets that the receiver prints.
    fn tickets_of(&mut self, which: &[String]) -> Result<Vec<String>, String> {
        let Some(process) = &mut self.high.process else { return Ok(Vec::new()) };
        let printed = SimDisk::until_power_cut(|| process.tickets(which));
        match self.high_survived(printed)? {
            None | Some(Err(TicketError::Complete(..) | TicketError::Disk(..))) => Ok(Vec::new()),
            Some(Err(error)) => Err(format!("no ticket: {error}")),
            Some(Ok(views)) => Ok(views.into_iter().map(|view| view.text).collect()),
        }
    }

    fn carry(&mut self, text: &str, give_up: bool) -> Held {
        let ticket = Ticket::parse(text).map_err(|error| format!("a ticket cannot be read: {error}"))?;
        self.note(|| format!("carries {ticket:?}"));
        let clock = self.low_clock();
        let Some(process) = &mut self.low.process else { return Ok(()) };
        let did = SimDisk::until_power_cut(|| process.engine.resend_ticket(&ticket, false, clock));
        for (which, answer) in self.low_survived(did)?.into_iter().flatten() {
            match answer {
                Err(ResendError::Failed(..) | ResendError::NotRetained(_)) if give_up => self.give_up(&which)?,
                Err(error @ (ResendError::Unknown(_) | ResendError::Ambiguous(..) | ResendError::Blocks(..))) => {
                    return Err(format!("the sender refuses a ticket: {error}"));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Gives up a bundle that the sender cannot send any more: rejects it at the receiver, and drops it again.
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

    /// Checks that everything that was dropped is where it belongs.
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
                // A bundle that was refused before it had a sequence may be forgotten, but it is in `.failed`.
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

/// Whether a channel is one of the sender's.
pub(super) fn is_ours(channel: &str) -> bool {
    CHANNELS.contains(&channel)
}

/// A bundle that has not arrived yet.
#[derive(Debug)]
enum Lacking {
    /// The receiver reports it as missing or incomplete.
    Reported(#[allow(dead_code, reason = "for Debug")] String),
    /// It was sent, and the receiver does not report that it lacks anything.
    Unreported(String),
    /// It waits for its hook, or for more of it to arrive.
    Waiting(#[allow(dead_code, reason = "for Debug")] String),
}
