//! Problems that need an operator.

use std::fmt;

use checkvalve_protocol::id::ChannelName;

use super::Engine;
use crate::trouble::Trouble;

/// What a problem is about. There is at most one problem per topic.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Topic {
    /// A bundle, `CHANNEL/SEQUENCE`, that cannot be sent again.
    Bundle(String),
    /// Moving to `.failed`.
    Failed,
    Ledger,
    Loading,
    Planning,
    /// Removing what is no longer retained.
    Retain,
    /// Something in the spool that is in no channel's folder.
    Spool,
    /// A channel's folder.
    Folder(ChannelName),
    /// inotify.
    Watch,
}

impl Topic {
    /// See [`Trouble::code`].
    fn code(&self) -> &'static str {
        match self {
            Self::Bundle(_) => "cannot-send-again",
            Self::Failed => "cannot-move-to-failed",
            Self::Ledger => "ledger-not-written",
            Self::Loading => "held-not-readable",
            Self::Planning => "claim-not-readable",
            Self::Retain => "cannot-remove",
            Self::Spool => "in-no-channel",
            Self::Folder(_) => "folder-not-readable",
            Self::Watch => "no-inotify",
        }
    }
}

impl fmt::Display for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bundle(bundle) => f.write_str(bundle),
            Self::Failed => f.write_str("failed"),
            Self::Ledger => f.write_str("ledger"),
            Self::Loading => f.write_str("loading"),
            Self::Planning => f.write_str("planning"),
            Self::Retain => f.write_str("retain"),
            Self::Spool => f.write_str("spool"),
            Self::Folder(channel) => write!(f, "spool/{channel}"),
            Self::Watch => f.write_str("watch"),
        }
    }
}

impl Engine {
    /// Logs a problem once and keeps it for status.
    pub(super) fn trouble(&mut self, about: Topic, what: String) {
        if self.troubles.get(&about) != Some(&what) {
            tracing::warn!(%about, "{what}");
            self.troubles.insert(about, what);
        }
    }

    pub(super) fn untrouble(&mut self, about: &Topic) {
        if self.troubles.remove(about).is_some() {
            tracing::info!(%about, "works again");
        }
    }

    /// All current problems, by topic.
    pub(super) fn all_troubles(&self) -> Vec<Trouble> {
        self.troubles.iter().map(|(about, what)| Trouble::new(about.code(), format!("{about}: {what}"))).collect()
    }
}
