//! Which version of the program writes a file, and what a program says of one that is too new for it.

use std::path::PathBuf;

/// This program's version.
pub const PROGRAM: &str = env!("CARGO_PKG_VERSION");

/// A newer version of the program wrote a file, in a layout that this one does not know. It is left as it is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{}: written by {} ({what} of version {version}; this program reads up to {known}); run that version or a newer one",
    .path.display(), Writer(.program)
)]
pub struct Newer {
    /// The file.
    pub path: PathBuf,
    /// The version of the program that wrote it; empty where the file does not say.
    pub program: String,
    /// What in the file has a version, for people: `records`.
    pub what: &'static str,
    /// Its version there.
    pub version: u32,
    /// The highest that this program reads.
    pub known: u32,
}

struct Writer<'a>(&'a str);

impl std::fmt::Display for Writer<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            "" => f.write_str("a newer checkvalve"),
            // Whatever the file has there, it is one line.
            program => write!(f, "checkvalve {}", program.escape_debug()),
        }
    }
}
