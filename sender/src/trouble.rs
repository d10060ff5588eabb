//! What a person should look at, as status says it.

use serde::{Deserialize, Serialize};

/// Something that a person should look at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trouble {
    /// What kind of thing it is, for programs: words joined by `-`, never changed.
    pub code: String,
    /// What it is, for people: one line.
    pub text: String,
}

impl Trouble {
    /// With a code of lower-case words joined by `-`, and one line for people.
    #[must_use]
    pub fn new(code: &str, text: impl Into<String>) -> Self {
        Self { code: code.to_owned(), text: text.into() }
    }
}
