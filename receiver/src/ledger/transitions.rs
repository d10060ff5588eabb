//! How a bundle comes into each state that `status` shows: one method each, and no other way.

use super::{Entry, Hold, State};

impl Entry {
    /// What became of it.
    #[must_use]
    pub fn state(&self) -> State {
        self.state
    }

    /// `receiving`: datagrams of it arrive, or are about to.
    pub fn receive(&mut self, reason: Option<String>) {
        (self.state, self.reason) = (State::Receiving, reason);
    }

    /// `incomplete`: its transmission ended, or fell silent, and something is lacking.
    pub fn lack(&mut self, reason: Option<String>) {
        (self.state, self.reason) = (State::Incomplete, reason);
    }

    /// `missing`: it was transmitted, and nothing of it is here.
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

    /// `held`: rightly signed, but its place is not believed.
    pub fn hold_back(&mut self, hold: Hold) {
        (self.state, self.hold) = (State::Held, Some(hold));
    }

    /// `quarantined`: it is not what a trusted key signed, or its hook refused it.
    pub fn quarantine(&mut self, rule: Option<String>, reason: Option<String>) {
        (self.state, self.hold) = (State::Quarantined, None);
        (self.rule, self.reason) = (rule, reason);
    }

    /// `complete`: it is in the inbox, and waits for its turn with the hook, if there is one.
    pub fn complete(&mut self) {
        (self.state, self.published, self.reason) = (State::Complete, true, None);
    }

    /// `superseded`: it is in the inbox, and a later one went to the hook before it.
    pub fn supersede(&mut self, reason: Option<String>) {
        (self.state, self.published, self.reason) = (State::Superseded, true, reason);
    }

    /// `installing`: its hook runs, or is to run again.
    pub fn install(&mut self) {
        (self.state, self.rule) = (State::Installing, None);
    }

    /// `installed`: its hook is done with it.
    pub fn installed(&mut self) {
        (self.state, self.rule, self.reason) = (State::Installed, None, None);
    }

    /// `failed`: its hook failed.
    pub fn fail(&mut self, reason: Option<String>) {
        (self.state, self.rule, self.reason) = (State::Failed, None, reason);
    }
}
