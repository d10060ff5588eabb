//! The state transitions of a bundle: one method for each state that `status` shows, and no other way to set it.

use super::{Entry, Hold, State};

impl Entry {
    /// The bundle's state.
    #[must_use]
    pub fn state(&self) -> State {
        self.state
    }

    /// `receiving`: its datagrams are arriving, or are about to.
    pub fn receive(&mut self, reason: Option<String>) {
        (self.state, self.reason) = (State::Receiving, reason);
    }

    /// `incomplete`: its transmission ended or fell silent, and something is missing.
    pub fn lack(&mut self, reason: Option<String>) {
        (self.state, self.reason) = (State::Incomplete, reason);
    }

    /// `missing`: it was transmitted, and nothing of it arrived.
    pub fn miss(&mut self, reason: Option<String>) {
        (self.state, self.reason) = (State::Missing, reason);
    }

    /// `withdrawn`: the sender gave it up.
    pub fn withdraw(&mut self, reason: Option<String>) {
        (self.state, self.reason) = (State::Withdrawn, reason);
    }

    /// `rejected`: an operator gave it up.
    pub fn reject(&mut self, reason: Option<String>) {
        (self.state, self.hold, self.reason) = (State::Rejected, None, reason);
    }

    /// `held`: it is correctly signed, but its place in the channel is suspicious.
    pub fn hold_back(&mut self, hold: Hold) {
        (self.state, self.hold) = (State::Held, Some(hold));
    }

    /// `quarantined`: it is not what a trusted key signed, or its hook refused it.
    pub fn quarantine(&mut self, rule: Option<String>, reason: Option<String>) {
        (self.state, self.hold) = (State::Quarantined, None);
        (self.rule, self.reason) = (rule, reason);
    }

    /// `complete`: it is in the inbox and waits for its hook, if there is one.
    pub fn complete(&mut self) {
        (self.state, self.published, self.reason) = (State::Complete, true, None);
    }

    /// `superseded`: it is in the inbox, but a later bundle went to the hook before it.
    pub fn supersede(&mut self, reason: Option<String>) {
        (self.state, self.published, self.reason) = (State::Superseded, true, reason);
    }

    /// `installing`: its hook runs, or is to run again.
    pub fn install(&mut self) {
        (self.state, self.rule) = (State::Installing, None);
    }

    /// `installed`: its hook succeeded.
    pub fn installed(&mut self) {
        (self.state, self.rule, self.reason) = (State::Installed, None, None);
    }

    /// `failed`: its hook failed.
    pub fn fail(&mut self, reason: Option<String>) {
        (self.state, self.rule, self.reason) = (State::Failed, None, reason);
    }
}
