//! What commands print.

use std::fmt::Display;
use std::io::{self, Write};

use serde::Serialize;

use crate::json::SCHEMA;
use crate::log::escape;

/// Prints lines to standard output, safe for a terminal whatever names they hold; escaping a line again does not change it. A
/// reader that has gone is none of our business.
pub fn say(text: impl Display) {
    let text = text.to_string();
    let lines: String = text.split('\n').map(|line| escape(line) + "\n").collect();
    drop(io::stdout().write_all(lines.as_bytes()));
}

/// Prints a value as one line of JSON, whose fields come after the version of the format. Errors: it has no JSON.
pub fn json<T: Serialize>(value: &T) -> Result<(), serde_json::Error> {
    #[derive(Serialize)]
    struct Printed<'a, T> {
        schema: u32,
        #[serde(flatten)]
        value: &'a T,
    }
    let text = serde_json::to_string(&Printed { schema: SCHEMA, value })?;
    // Names in it were escaped when they became text.
    drop(writeln!(io::stdout(), "{text}"));
    Ok(())
}
