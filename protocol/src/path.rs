//! Paths inside a bundle and the targets of its symlinks: bytes that cannot leave the bundle, checked once.
#![deny(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation
)]

mod link;
mod view;

use std::cmp::Ordering;
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::limits::{MAX_NAME_LEN, MAX_PATH_DEPTH, MAX_PATH_LEN};
pub use link::{LinkTarget, TargetRef};
pub use view::PathRef;

/// A relative path of 1 to [`MAX_PATH_DEPTH`] components joined by `/`, any bytes but NUL, none of them empty, `.` or
/// `..`; at most [`MAX_PATH_LEN`] bytes, each component at most [`MAX_NAME_LEN`].
///
/// Ordered as a tree is walked: a directory, then what is in it, each directory's names by their bytes.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct SafePath(Box<[u8]>);

/// Why a path or a symlink's target may not be in a bundle.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// No bytes.
    #[error("is empty")]
    Empty,
    /// Begins with `/`.
    #[error("is absolute")]
    Absolute,
    /// An empty component: `a//b`, or a `/` at the end.
    #[error("has an empty component")]
    EmptyComponent,
    /// A `.` component.
    #[error("has a `.` component")]
    Dot,
    /// A `..` component.
    #[error("has a `..` component")]
    DotDot,
    /// A NUL byte.
    #[error("has a NUL byte")]
    Nul,
    /// More than [`MAX_PATH_LEN`] bytes (for a symlink's target, that many or more).
    #[error("is longer than {MAX_PATH_LEN} bytes")]
    TooLong,
    /// A component of more than [`MAX_NAME_LEN`] bytes.
    #[error("has a component longer than {MAX_NAME_LEN} bytes")]
    NameTooLong,
    /// More than [`MAX_PATH_DEPTH`] components.
    #[error("is deeper than {MAX_PATH_DEPTH} components")]
    TooDeep,
    /// A symlink's target leaves the bundle, or might (`..` after a name).
    #[error("points outside the bundle")]
    Outside,
}

impl SafePath {
    /// Checks `path`. Errors: every [`PathError`] but `Outside`.
    pub fn new(path: impl Into<Vec<u8>>) -> Result<Self, PathError> {
        let path = path.into();
        check(&path)?;
        Ok(Self(path.into_boxed_slice()))
    }

    /// Checks the bytes of `path` as they are: nothing is normalised. Errors as [`SafePath::new`].
    pub fn from_path(path: &Path) -> Result<Self, PathError> {
        Self::new(path.as_os_str().as_bytes())
    }

    /// The same path, borrowed.
    #[must_use]
    pub fn view(&self) -> PathRef<'_> {
        PathRef(&self.0)
    }

    /// The bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The same as a path of the operating system.
    #[must_use]
    pub fn as_path(&self) -> &Path {
        self.view().as_path()
    }

    /// The components, outermost first; at least one.
    pub fn components(&self) -> impl DoubleEndedIterator<Item = &[u8]> {
        self.view().components()
    }

    /// How many components it has, at least 1.
    #[must_use]
    pub fn depth(&self) -> usize {
        self.view().depth()
    }

    /// All but the last component; `None` when there is but one.
    #[must_use]
    pub fn parent(&self) -> Option<Self> {
        self.parent_bytes().map(|bytes| Self(bytes.into()))
    }

    /// The bytes of [`SafePath::parent`], without a copy.
    #[must_use]
    pub fn parent_bytes(&self) -> Option<&[u8]> {
        self.view().parent_bytes()
    }

    /// The last component.
    #[must_use]
    pub fn file_name(&self) -> &[u8] {
        self.view().file_name()
    }

    /// The first component: the bundle's name.
    #[must_use]
    pub fn root(&self) -> &[u8] {
        self.view().root()
    }

    /// This path with `name` after it. Errors as [`SafePath::new`], of the whole.
    pub fn join(&self, name: &[u8]) -> Result<Self, PathError> {
        if name.is_empty() || name.contains(&b'/') {
            return Err(PathError::EmptyComponent);
        }
        Self::new([&self.0, b"/".as_slice(), name].concat())
    }

    /// Whether `other` is inside the directory that this names; not so for itself.
    #[must_use]
    pub fn is_ancestor_of(&self, other: &Self) -> bool {
        self.view().is_ancestor_of(other.view())
    }
}

fn check(path: &[u8]) -> Result<(), PathError> {
    if path.is_empty() {
        return Err(PathError::Empty);
    }
    if path.first() == Some(&b'/') {
        return Err(PathError::Absolute);
    }
    if path.len() > MAX_PATH_LEN {
        return Err(PathError::TooLong);
    }
    if path.contains(&0) {
        return Err(PathError::Nul);
    }
    let mut depth = 0_usize;
    for component in path.split(|&b| b == b'/') {
        match component {
            b"" => return Err(PathError::EmptyComponent),
            b"." => return Err(PathError::Dot),
            b".." => return Err(PathError::DotDot),
            name if name.len() > MAX_NAME_LEN => return Err(PathError::NameTooLong),
            _ => depth = depth.saturating_add(1),
        }
    }
    if depth > MAX_PATH_DEPTH { Err(PathError::TooDeep) } else { Ok(()) }
}

impl Ord for SafePath {
    fn cmp(&self, other: &Self) -> Ordering {
        self.view().cmp(&other.view())
    }
}

impl PartialOrd for SafePath {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl AsRef<Path> for SafePath {
    fn as_ref(&self) -> &Path {
        self.as_path()
    }
}

impl fmt::Debug for SafePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.view().fmt(f)
    }
}

#[cfg(test)]
mod tests;
