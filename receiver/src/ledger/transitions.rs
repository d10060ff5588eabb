//! The state transitions of a bundle: one method for each state that `status` shows, and no other way to set it.

use super::arrival::{Arrival, Installation};
use super::{Entry, Hold, State};

impl Entry {
    /// The bundle's state.
    #[must_use]
    pub fn state(&self) -> State {
        self.arrival.state()
    }

    /// Whether it is in the inbox.
    #[must_use]
    pub fn is_published(&self) -> bool {
        self.arrival.is_published()
    }

    /// `receiving`: its datagrams are arriving, or are about to.
    pub fn receive(&mut self, reason: Option<String>) {
        (self.arrival, self.reason) = (Arrival::Receiving, reason);
    }

    /// `incomplete`: its transmission ended or fell silent, and something is missing.
    pub fn lack(&mut self, reason: Option<String>) {
        (self.arrival, self.reason) = (Arrival::Incomplete, reason);
    }

    /// `missing`: it was transmitted, and nothing of it arrived.
    pub fn miss(&mut self, reason: Option<String>) {
        (self.arrival, self.reason) = (Arrival::Missing, reason);
    }

    /// `withdrawn`: the sender gave it up.
    pub fn withdraw(&mut self, reason: Option<String>) {
        (self.arrival, self.reason) = (Arrival::Withdrawn, reason);
    }

    /// `rejected`: an operator gave it up. What is in the inbox stays there.
    pub fn reject(&mut self, reason: Option<String>) {
        self.arrival = Arrival::of(State::Rejected, self.is_published());
        (self.hold, self.reason) = (None, reason);
    }

    /// `held`: it is correctly signed, but its place in the channel is suspicious.
    pub fn hold_back(&mut self, hold: Hold) {
        (self.arrival, self.hold) = (Arrival::Held, Some(hold));
    }

    /// `quarantined`: it is not what a trusted key signed, or its hook refused it. What is in the inbox is to be moved.
    pub fn quarantine(&mut self, rule: Option<String>, reason: Option<String>) {
        self.arrival = Arrival::of(State::Quarantined, self.is_published());
        (self.hold, self.rule, self.reason) = (None, rule, reason);
    }

    /// It was moved from the inbox to quarantine, which changes nothing that people see.
    pub fn moved_to_quarantine(&mut self) {
        if self.arrival == Arrival::Published(Installation::Refused) {
            self.arrival = Arrival::Quarantined;
        }
    }

    /// `complete`: it is in the inbox and waits for its hook, if there is one.
    pub fn complete(&mut self) {
        (self.arrival, self.reason) = (Arrival::Published(Installation::Waiting), None);
    }

    /// `superseded`: it is in the inbox, but a later bundle went to the hook before it.
    pub fn supersede(&mut self, reason: Option<String>) {
        (self.arrival, self.reason) = (Arrival::Published(Installation::Superseded), reason);
    }

    /// `installing`: its hook runs, or is to run again.
    pub fn install(&mut self) {
        (self.arrival, self.rule) = (Arrival::Published(Installation::Installing), None);
    }

    /// `installed`: its hook succeeded.
    pub fn installed(&mut self) {
        (self.arrival, self.rule, self.reason) = (Arrival::Published(Installation::Installed), None, None);
    }

    /// `failed`: its hook failed.
    pub fn fail(&mut self, reason: Option<String>) {
        (self.arrival, self.rule, self.reason) = (Arrival::Published(Installation::Failed), None, reason);
    }
}
