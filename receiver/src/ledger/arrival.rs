//! How far a bundle has come: the state of its reception and, once it is in the inbox, of its installation. [`State`] is
//! what people see of the two.

use super::State;

/// The state of reception.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Arrival {
    Receiving,
    Incomplete,
    Missing,
    Withdrawn,
    /// It is not in the inbox, or not any more.
    Quarantined,
    /// It never came to the inbox, or was in quarantine.
    Rejected,
    Held,
    /// It is in the inbox.
    Published(Installation),
}

/// The state of installation of a bundle in the inbox.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Installation {
    /// Its hook's turn has not come, or its channel has no hook.
    Waiting,
    Installing,
    Installed,
    Failed,
    Superseded,
    /// It is about to be moved to quarantine.
    Refused,
    /// An operator gave it up; it stays where it is.
    GivenUp,
}

impl Arrival {
    /// The state of a bundle that is in the inbox or not. Those that only a bundle in the inbox can have imply that it is.
    pub(super) fn of(state: State, published: bool) -> Self {
        match state {
            State::Receiving => Self::Receiving,
            State::Incomplete => Self::Incomplete,
            State::Missing => Self::Missing,
            State::Withdrawn => Self::Withdrawn,
            State::Held => Self::Held,
            State::Quarantined if published => Self::Published(Installation::Refused),
            State::Quarantined => Self::Quarantined,
            State::Rejected if published => Self::Published(Installation::GivenUp),
            State::Rejected => Self::Rejected,
            State::Complete => Self::Published(Installation::Waiting),
            State::Installing => Self::Published(Installation::Installing),
            State::Installed => Self::Published(Installation::Installed),
            State::Failed => Self::Published(Installation::Failed),
            State::Superseded => Self::Published(Installation::Superseded),
        }
    }

    pub(super) fn state(self) -> State {
        match self {
            Self::Receiving => State::Receiving,
            Self::Incomplete => State::Incomplete,
            Self::Missing => State::Missing,
            Self::Withdrawn => State::Withdrawn,
            Self::Quarantined | Self::Published(Installation::Refused) => State::Quarantined,
            Self::Rejected | Self::Published(Installation::GivenUp) => State::Rejected,
            Self::Held => State::Held,
            Self::Published(Installation::Waiting) => State::Complete,
            Self::Published(Installation::Installing) => State::Installing,
            Self::Published(Installation::Installed) => State::Installed,
            Self::Published(Installation::Failed) => State::Failed,
            Self::Published(Installation::Superseded) => State::Superseded,
        }
    }

    pub(super) fn is_published(self) -> bool {
        matches!(self, Self::Published(_))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_saved_of_it_is_all_of_it() {
        let mut published = 0;
        for (state, in_inbox) in State::ALL.into_iter().flat_map(|state| [(state, false), (state, true)]) {
            let arrival = Arrival::of(state, in_inbox);
            assert_eq!(arrival.state(), state);
            assert_eq!(Arrival::of(state, arrival.is_published()), arrival);
            published += usize::from(arrival.is_published());
        }
        assert_eq!(published, 2 * 5 + 2, "five states are of the inbox alone, two are there and elsewhere");
    }
}
