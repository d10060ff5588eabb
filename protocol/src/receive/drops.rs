//! Why datagrams are dropped, and how many were.

use crate::seal::OpenError;
use crate::wire::HeaderError;

macro_rules! drop_reasons {
    ($($(#[doc = $doc:literal])+ $name:ident = $text:literal,)+) => {
        /// Why a datagram was dropped.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum DropReason { $($(#[doc = $doc])+ $name,)+ }

        impl DropReason {
            /// All of them, in the order of [`Drops`].
            pub const ALL: &'static [Self] = &[$(Self::$name,)+];

            /// The name under which `status` counts it.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $(Self::$name => $text,)+ }
            }
        }
    };
}

drop_reasons! {
    /// Shorter than a header and its trailer.
    Short = "short",
    /// Not a datagram of ours.
    Magic = "magic",
    /// Another version of the format.
    Version = "version",
    /// An unknown kind.
    Kind = "kind",
    /// A length, SBN, ESI or OTI that cannot be.
    Place = "place",
    /// A kind or length that a later version gives a meaning.
    Reserved = "reserved",
    /// Tag or CRC-32 does not fit.
    Tag = "tag",
    /// Sealed under another link key.
    Key = "key",
    /// Too many unknown sessions at once.
    Session = "session",
    /// Sealed on an insecure link, or the other way round.
    Mode = "mode",
    /// A symbol that its block has.
    Duplicate = "duplicate",
    /// A symbol of a block that is whole already; repair that was not needed.
    Surplus = "surplus",
    /// A symbol of an object that is complete.
    Done = "done",
    /// A symbol of an object that is refused.
    Refused = "refused",
    /// Of a bundle whose id names no trusted key.
    Signer = "signer",
    /// Of a bundle that nobody signed for, while there are many of these; or a check of a signature for which there was no time.
    Limit = "limit",
    /// No memory was left for its block.
    Memory = "memory",
    /// No room was left on the disk for its bundle.
    Room = "room",
    /// A beacon that cannot be read.
    Beacon = "beacon",
}

impl From<OpenError> for DropReason {
    fn from(error: OpenError) -> Self {
        match error {
            OpenError::Header(HeaderError::Short) => Self::Short,
            OpenError::Header(HeaderError::Magic) => Self::Magic,
            OpenError::Header(HeaderError::Version(_)) => Self::Version,
            OpenError::Header(HeaderError::Kind) => Self::Kind,
            OpenError::Header(HeaderError::Place) => Self::Place,
            OpenError::Header(HeaderError::Reserved) => Self::Reserved,
            OpenError::Tag => Self::Tag,
            OpenError::Key => Self::Key,
            OpenError::Session => Self::Session,
            OpenError::Mode => Self::Mode,
        }
    }
}

/// Counts by reason.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Drops([u64; DropReason::ALL.len()]);

impl Drops {
    /// One more.
    pub fn add(&mut self, reason: DropReason) {
        self.add_many(reason, 1);
    }

    /// So many more.
    pub fn add_many(&mut self, reason: DropReason, count: u64) {
        self.0[reason as usize] = self.0[reason as usize].saturating_add(count);
    }

    /// How many for this reason.
    #[must_use]
    pub fn get(&self, reason: DropReason) -> u64 {
        self.0[reason as usize]
    }

    /// Adds another count to this one.
    pub fn merge(&mut self, other: &Self) {
        for (a, b) in self.0.iter_mut().zip(other.0) {
            *a = a.saturating_add(b);
        }
    }

    /// Each reason and its count.
    pub fn iter(&self) -> impl Iterator<Item = (DropReason, u64)> + '_ {
        DropReason::ALL.iter().copied().zip(self.0)
    }
}
