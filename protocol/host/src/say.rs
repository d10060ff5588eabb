//! What commands print.

use std::fmt::Display;
use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};

use serde::Serialize;

use crate::json::SCHEMA;
use crate::log::escape;

static IS_UNREAD: AtomicBool = AtomicBool::new(false);

/// Whether something that was printed could not be written: nobody reads it any more. Whoever prints for ever should end then.
#[must_use]
pub fn is_unread() -> bool {
    IS_UNREAD.load(Ordering::Relaxed)
}

fn print(text: &str) {
    let mut out = io::stdout();
    if out.write_all(text.as_bytes()).and_then(|()| out.flush()).is_err() {
        IS_UNREAD.store(true, Ordering::Relaxed);
    }
}

/// Prints lines to standard output, safe for a terminal whatever names they hold; escaping a line again does not change it. A
/// reader that has gone is no error: see [`is_unread`].
pub fn say(text: impl Display) {
    let text = text.to_string();
    let lines: String = text.split('\n').map(|line| escape(line) + "\n").collect();
    print(&lines);
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
    print(&format!("{text}\n"));
    Ok(())
}
