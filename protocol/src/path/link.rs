//! Where a symlink may point.

use std::fmt;

use super::{PathError, PathRef, SafePath};
use crate::limits::MAX_PATH_LEN;

/// The target of a symlink, which stays inside the bundle: relative, under [`MAX_PATH_LEN`] bytes, no NUL, and `..` only
/// before the first name and too few of them to leave the bundle's own directory.
///
/// `..` after a name is refused because that name may be a symlink itself. Since the directories above a symlink are real
/// ones (the manifest's rules see to it), a chain of such targets stays inside too. Bytes are kept as they are,
/// `./` and `//` included.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct LinkTarget(Box<[u8]>);

/// A [`LinkTarget`] that somebody else holds.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct TargetRef<'a>(&'a [u8]);

impl LinkTarget {
    /// Checks where the symlink `link` may point. Errors: `Empty`, `Absolute`, `TooLong`, `Nul`, and `Outside` (always when
    /// `link` is the bundle itself, which has no directory of its own to stay in).
    pub fn new(link: &SafePath, target: impl Into<Vec<u8>>) -> Result<Self, PathError> {
        let target = target.into();
        check(link.view(), &target)?;
        Ok(Self(target.into_boxed_slice()))
    }

    /// The bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The same target, borrowed.
    #[must_use]
    pub fn view(&self) -> TargetRef<'_> {
        TargetRef(&self.0)
    }
}

impl<'a> TargetRef<'a> {
    /// Checks where the symlink `link` may point. Errors as [`LinkTarget::new`].
    pub fn new(link: PathRef<'_>, target: &'a [u8]) -> Result<Self, PathError> {
        check(link, target)?;
        Ok(Self(target))
    }

    /// Bytes that were checked before.
    pub(crate) fn of_checked(target: &'a [u8]) -> Self {
        Self(target)
    }

    /// A target of its own.
    #[must_use]
    pub fn to_target(self) -> LinkTarget {
        LinkTarget(self.0.into())
    }

    /// The bytes.
    #[must_use]
    pub fn as_bytes(self) -> &'a [u8] {
        self.0
    }

    /// The same check again, for another link or because the two came together later.
    pub(crate) fn check_for(self, link: PathRef<'_>) -> Result<(), PathError> {
        check(link, self.0)
    }
}

fn check(link: PathRef<'_>, target: &[u8]) -> Result<(), PathError> {
    if target.is_empty() {
        return Err(PathError::Empty);
    }
    if target.first() == Some(&b'/') {
        return Err(PathError::Absolute);
    }
    // PATH_MAX counts the NUL at a target's end.
    if target.len() >= MAX_PATH_LEN {
        return Err(PathError::TooLong);
    }
    if target.contains(&0) {
        return Err(PathError::Nul);
    }
    // Directories between the link and the bundle's root directory; none for the root itself.
    let mut up = link.depth().checked_sub(2).ok_or(PathError::Outside)?;
    let mut named = false;
    for component in target.split(|&b| b == b'/') {
        match component {
            b"" | b"." => {}
            b".." if named => return Err(PathError::Outside),
            b".." => up = up.checked_sub(1).ok_or(PathError::Outside)?,
            _ => named = true,
        }
    }
    Ok(())
}

impl fmt::Debug for LinkTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.view().fmt(f)
    }
}

impl fmt::Debug for TargetRef<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.0.escape_ascii())
    }
}
