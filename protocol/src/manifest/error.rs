//! Why a manifest is refused.

use crate::codec::CodecError;
use crate::extension::ExtensionError;
use crate::id::{ChannelName, KeyId, KeyTag};
use crate::limits::{MAX_ENTRIES, MAX_MANIFEST_LEN, MAX_SEQUENCE, MAX_TRANSFER_LENGTH};
use crate::partition::OtiError;
use crate::path::PathError;

/// Why signed bytes are not an announce or the hashes of one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// Longer than [`MAX_MANIFEST_LEN`]; the length in bytes.
    #[error("{0} bytes, more than the {MAX_MANIFEST_LEN} that a manifest may have")]
    TooLong(usize),
    /// No signed object at all: too short, or it begins otherwise.
    #[error("not a signed object")]
    Container,
    /// Nobody signed it.
    #[error("it is not signed")]
    Unsigned,
    /// A key signed it that is not trusted.
    #[error("signed by key {0}, which is not trusted")]
    UnknownKey(KeyId),
    /// The signature is not that of the key it names over these bytes in this role.
    #[error("the signature is wrong")]
    BadSignature,
    /// The content is not encoded as it should be.
    #[error("malformed: {0}")]
    Codec(#[from] CodecError),
    /// The channel's name is none.
    #[error("the channel's name is not one")]
    Channel,
    /// Sequence 0.
    #[error("the sequence is 0; the first is 1")]
    SequenceZero,
    /// A sequence over [`MAX_SEQUENCE`].
    #[error("the sequence is {0}; the last is {MAX_SEQUENCE}")]
    SequenceTooLarge(u64),
    /// T and B describe no object of the data's length.
    #[error("its data cannot be sent as it says: {0}")]
    Oti(#[from] OtiError),
    /// Its extensions are refused.
    #[error(transparent)]
    Extension(ExtensionError),
    /// No entries.
    #[error("there are no entries")]
    NoEntries,
    /// More than [`MAX_ENTRIES`] entries or hashes.
    #[error("more than {MAX_ENTRIES} entries")]
    TooManyEntries,
    /// The bundle's name is not one component, or not the path of the first entry.
    #[error("the bundle's name is not one component that is the path of the first entry")]
    Name,
    /// An entry breaks a rule.
    #[error("entry {index} {error}")]
    Entry {
        /// Which, from 0.
        index: usize,
        /// The rule.
        error: EntryError,
    },
    /// The files' sizes sum to more than [`MAX_TRANSFER_LENGTH`].
    #[error("the files have more than {MAX_TRANSFER_LENGTH} bytes in all")]
    DataTooLong,
    /// The reason of a withdrawal is longer than [`MAX_REASON_LEN`](super::MAX_REASON_LEN); its length in bytes.
    #[error("a reason of {0} bytes")]
    ReasonTooLong(usize),
    /// It came under the id of another bundle, or the hashes are those of another.
    #[error("it is of another bundle")]
    OtherBundle,
    /// The tag of the bundle's id is not that of the key that signed; the tag of the id.
    #[error("the bundle belongs to a key whose id begins with {0}, which did not sign")]
    ForeignBundle(KeyTag),
    /// The key that signed may not sign for the channel.
    #[error("key {key} may not sign for channel {channel}: `channel.{channel}.signers` does not name it")]
    NotForChannel {
        /// The key.
        key: KeyId,
        /// The channel.
        channel: ChannelName,
    },
    /// The hashes are those of another announce of the bundle.
    #[error("these are the hashes of another announce")]
    OtherAnnounce,
    /// Another key signed the hashes than the announce.
    #[error("the announce is not signed by key {0}, which signed the hashes")]
    OtherSigner(KeyId),
    /// Not as many hashes as files.
    #[error("{hashes} hashes for {files} files")]
    HashCount {
        /// What there is.
        hashes: usize,
        /// What there should be.
        files: usize,
    },
}

/// The rule that an entry breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EntryError {
    /// Its path is none.
    #[error("has a path that {0}")]
    Path(#[source] PathError),
    /// Its symlink's target is none, or leaves the bundle.
    #[error("is a symlink whose target {0}")]
    Target(#[source] PathError),
    /// Its mode has bits beyond `0o777`.
    #[error("has mode {0:o}; only permission bits up to 777 may be")]
    Mode(u16),
    /// 10⁹ nanoseconds or more.
    #[error("has a modification time with {0} nanoseconds")]
    Nanos(u32),
    /// Its path is there already.
    #[error("has the path of the one before it")]
    Duplicate,
    /// It should come earlier.
    #[error("is out of order")]
    Order,
    /// Its first component is not the bundle's name.
    #[error("is outside the bundle's directory")]
    OtherRoot,
    /// The directory that it is in is not an entry.
    #[error("is in a directory that is not listed")]
    ParentMissing,
    /// A file is named where a directory should be.
    #[error("is inside a file")]
    InsideFile,
    /// A symlink is named where a directory should be.
    #[error("goes through a symlink")]
    ThroughSymlink,
}

impl ManifestError {
    /// The rule's name, for `reason.json` and the test vectors: stable, lower case, words joined by `-`.
    #[must_use]
    pub fn rule(&self) -> &'static str {
        match self {
            Self::TooLong(_) => "too-long",
            Self::Container => "container",
            Self::Unsigned => "unsigned",
            Self::UnknownKey(_) => "unknown-key",
            Self::BadSignature => "bad-signature",
            Self::Codec(error) => error.rule(),
            Self::Channel => "channel",
            Self::SequenceZero => "sequence-zero",
            Self::SequenceTooLarge(_) => "sequence-too-large",
            Self::Oti(_) => "oti",
            Self::Extension(error) => error.rule(),
            Self::NoEntries => "no-entries",
            Self::TooManyEntries => "too-many-entries",
            Self::Name => "name",
            Self::Entry { error, .. } => error.rule(),
            Self::DataTooLong => "data-too-long",
            Self::ReasonTooLong(_) => "reason-too-long",
            Self::OtherBundle => "other-bundle",
            Self::ForeignBundle(_) => "foreign-bundle",
            Self::NotForChannel { .. } => "not-for-channel",
            Self::OtherAnnounce => "other-announce",
            Self::OtherSigner(_) => "other-signer",
            Self::HashCount { .. } => "hash-count",
        }
    }
}

impl From<ExtensionError> for ManifestError {
    fn from(error: ExtensionError) -> Self {
        match error {
            ExtensionError::Codec(error) => error.into(),
            error => Self::Extension(error),
        }
    }
}

impl EntryError {
    fn rule(self) -> &'static str {
        match self {
            Self::Path(error) => match error {
                PathError::Empty => "path-empty",
                PathError::Absolute => "path-absolute",
                PathError::EmptyComponent => "path-empty-component",
                PathError::Dot => "path-dot",
                PathError::DotDot => "path-dotdot",
                PathError::Nul => "path-nul",
                PathError::TooLong => "path-too-long",
                PathError::NameTooLong => "path-name-too-long",
                PathError::TooDeep => "path-too-deep",
                PathError::Outside => "path-outside",
            },
            Self::Target(error) => match error {
                PathError::Empty => "target-empty",
                PathError::Absolute => "target-absolute",
                PathError::Nul => "target-nul",
                PathError::TooLong => "target-too-long",
                _ => "target-outside",
            },
            Self::Mode(_) => "mode",
            Self::Nanos(_) => "nanoseconds",
            Self::Duplicate => "duplicate",
            Self::Order => "order",
            Self::OtherRoot => "other-root",
            Self::ParentMissing => "parent-missing",
            Self::InsideFile => "inside-file",
            Self::ThroughSymlink => "through-symlink",
        }
    }
}
