//! A path that somebody else holds.

use std::cmp::Ordering;
use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::{PathError, SafePath, check};

/// A [`SafePath`] that somebody else holds: in the same order, and under the same rules.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct PathRef<'a>(pub(super) &'a [u8]);

impl<'a> PathRef<'a> {
    /// Checks `path`. Errors as [`SafePath::new`].
    pub fn new(path: &'a [u8]) -> Result<Self, PathError> {
        check(path)?;
        Ok(Self(path))
    }

    /// Bytes that were checked before.
    pub(crate) fn of_checked(path: &'a [u8]) -> Self {
        Self(path)
    }

    /// A path of its own.
    #[must_use]
    pub fn to_path(self) -> SafePath {
        SafePath(self.0.into())
    }

    /// The bytes.
    #[must_use]
    pub fn as_bytes(self) -> &'a [u8] {
        self.0
    }

    /// The same as a path of the operating system.
    #[must_use]
    pub fn as_path(self) -> &'a Path {
        Path::new(OsStr::from_bytes(self.0))
    }

    /// The components, outermost first; at least one.
    pub fn components(self) -> impl DoubleEndedIterator<Item = &'a [u8]> {
        self.0.split(|&b| b == b'/')
    }

    /// How many components it has, at least 1.
    #[must_use]
    pub fn depth(self) -> usize {
        self.components().count()
    }

    /// All but the last component; `None` when there is but one.
    #[must_use]
    pub fn parent_bytes(self) -> Option<&'a [u8]> {
        let slash = self.0.iter().rposition(|&b| b == b'/')?;
        self.0.get(..slash)
    }

    /// The last component.
    #[must_use]
    pub fn file_name(self) -> &'a [u8] {
        self.components().next_back().unwrap_or_default()
    }

    /// The first component: the bundle's name.
    #[must_use]
    pub fn root(self) -> &'a [u8] {
        self.components().next().unwrap_or_default()
    }

    /// Whether `other` is inside the directory that this names; not so for itself.
    #[must_use]
    pub fn is_ancestor_of(self, other: PathRef<'_>) -> bool {
        other.0.strip_prefix(self.0).is_some_and(|rest| rest.first() == Some(&b'/'))
    }
}

impl Ord for PathRef<'_> {
    fn cmp(&self, other: &Self) -> Ordering {
        // NUL is in no path, so `/` may take its place before every byte of a name.
        let key = |&b: &u8| if b == b'/' { 0 } else { b };
        self.0.iter().map(key).cmp(other.0.iter().map(key))
    }
}

impl PartialOrd for PathRef<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl AsRef<Path> for PathRef<'_> {
    fn as_ref(&self) -> &Path {
        self.as_path()
    }
}

impl fmt::Debug for PathRef<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.0.escape_ascii())
    }
}
