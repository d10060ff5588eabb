//! Logs to standard error: for people on a terminal, for journald under systemd. One event is one line, whatever is in its
//! fields.

use std::fmt::Write as _;
use std::io::{self, IsTerminal};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use tracing::{Event, Level, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, FormattedFields};
use tracing_subscriber::registry::LookupSpan;

/// The environment variable that says what is logged, such as `debug` or `checkvalve_sender=debug,info`. Default: `info`.
pub const FILTER_VARIABLE: &str = "CHECKVALVE_LOG";

/// Why logging could not be set up. Each is one line.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The filter is none.
    #[error(
        "{FILTER_VARIABLE}: `{filter}` is not a filter ({problem}); write a level: error, warn, info, debug or trace"
    )]
    Filter {
        /// What was written.
        filter: String,
        /// What is wrong with it.
        problem: String,
    },
    /// Something in this process logs already.
    #[error("logging was set up twice")]
    Twice,
}

/// Sets up logging for this process, once, before the first thread is started.
///
/// Under systemd, where standard error is the journal, lines begin with the priority in angle brackets (sd-daemon(3)) and
/// carry no time. Elsewhere they begin with the time in UTC and the level, in colour on a terminal.
pub fn init() -> Result<(), LogError> {
    let filter = std::env::var(FILTER_VARIABLE).unwrap_or_default();
    let filter = parse_filter(&filter)?;
    let style = Style::of_stderr();
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(false)
        // Otherwise a broken pipe as standard error would panic.
        .log_internal_errors(false)
        .event_format(style)
        .finish();
    tracing::subscriber::set_global_default(subscriber).map_err(|_| LogError::Twice)
}

/// Bytes from outside (a name from the wire, of a file) as text that is safe in a log, on a terminal and in JSON: printable
/// characters as they are, all else as `\n`, `\x1b`, `\u{202e}`, a backslash as `\\`. Different bytes give different texts.
#[must_use]
pub fn escape_bytes(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for part in bytes.utf8_chunks() {
        for c in part.valid().chars() {
            if c == '\\' { text.push_str("\\\\") } else { push_safe(&mut text, c) }
        }
        for byte in part.invalid() {
            // Writing to a string does not fail.
            let _ = write!(text, "\\x{byte:02x}");
        }
    }
    text
}

/// [`escape_bytes`] of a path.
#[must_use]
pub fn escape_path(path: &Path) -> String {
    escape_bytes(path.as_os_str().as_bytes())
}

/// Text of ours that may hold text from outside: as [`escape_bytes`], but backslashes stay single.
#[must_use]
pub fn escape(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    text.chars().for_each(|c| push_safe(&mut safe, c));
    safe
}

fn push_safe(text: &mut String, c: char) {
    // Besides control characters: what reorders or hides its neighbours, and the separators of lines and paragraphs.
    let invisible = matches!(c, '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}' | '\u{180b}'..='\u{180f}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}' | '\u{3164}' | '\u{ffa0}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}');
    if invisible || c.is_control() {
        // Writing to a string does not fail.
        let _ = match c {
            '\n' => write!(text, "\\n"),
            '\r' => write!(text, "\\r"),
            '\t' => write!(text, "\\t"),
            '\0'..='\x7f' => write!(text, "\\x{:02x}", u32::from(c)),
            _ => write!(text, "{}", c.escape_unicode()),
        };
    } else {
        text.push(c);
    }
}

/// Lets a line that the wire can trigger through a few times per interval, and counts the rest.
///
/// ```
/// # let throttle = checkvalve_host::log::Throttle::new(5, 60_000);
/// # let now_ms = 0;
/// if let Some(suppressed) = throttle.allow(now_ms) {
///     tracing::warn!(suppressed, "datagram refused");
/// }
/// ```
#[derive(Debug)]
pub struct Throttle {
    limit: u32,
    interval_ms: u64,
    window: Mutex<Window>,
}

#[derive(Debug, Default)]
struct Window {
    start_ms: Option<u64>,
    allowed: u32,
    suppressed: u64,
}

impl Throttle {
    /// Lets `limit` through in every interval of `interval_ms` milliseconds.
    #[must_use]
    pub fn new(limit: u32, interval_ms: u64) -> Self {
        Self { limit, interval_ms, window: Mutex::default() }
    }

    /// Whether to log now (milliseconds of any clock; one that jumps back begins a new interval): `Some` of how many were
    /// suppressed since the last that was let through, or `None`, which counts as suppressed.
    pub fn allow(&self, now_ms: u64) -> Option<u64> {
        let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        let passed = window.start_ms.and_then(|start| now_ms.checked_sub(start));
        if passed.is_none_or(|passed| passed >= self.interval_ms) {
            window.start_ms = Some(now_ms);
            window.allowed = 0;
        }
        if window.allowed >= self.limit {
            window.suppressed = window.suppressed.saturating_add(1);
            return None;
        }
        window.allowed += 1;
        Some(std::mem::take(&mut window.suppressed))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Style {
    Journal,
    Plain,
    Colour,
}

impl Style {
    fn of_stderr() -> Self {
        let stream = std::env::var("JOURNAL_STREAM").ok();
        let ours = rustix::fs::fstat(io::stderr()).ok().map(|stat| format!("{}:{}", stat.st_dev, stat.st_ino));
        // systemd.exec(5): a process must compare, since children whose stderr goes elsewhere inherit the variable.
        if stream.is_some() && stream == ours {
            Self::Journal
        } else if io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none() {
            Self::Colour
        } else {
            Self::Plain
        }
    }

    fn head(self, level: Level, line: &mut String) -> std::fmt::Result {
        if self == Self::Journal {
            return write!(line, "<{}>", priority(level));
        }
        SystemTime.format_time(&mut Writer::new(line))?;
        let colour = match level {
            Level::ERROR => 31,
            Level::WARN => 33,
            Level::INFO => 32,
            Level::DEBUG => 34,
            Level::TRACE => 35,
        };
        if self == Self::Colour {
            write!(line, " \x1b[{colour}m{level:>5}\x1b[0m ")
        } else {
            write!(line, " {level:>5} ")
        }
    }
}

/// The priority of syslog(3).
fn priority(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        Level::DEBUG | Level::TRACE => 7,
    }
}

fn parse_filter(filter: &str) -> Result<EnvFilter, LogError> {
    let filter = if filter.trim().is_empty() { "info" } else { filter };
    EnvFilter::builder()
        .parse(filter)
        .map_err(|error| LogError::Filter { filter: escape(filter), problem: escape(&error.to_string()) })
}

impl<S, N> FormatEvent<S, N> for Style
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, ctx: &FmtContext<'_, S, N>, mut out: Writer<'_>, event: &Event<'_>) -> std::fmt::Result {
        let mut line = String::new();
        self.head(*event.metadata().level(), &mut line)?;
        let mut rest = String::new();
        for span in ctx.event_scope().into_iter().flat_map(tracing_subscriber::registry::Scope::from_root) {
            rest.push_str(span.name());
            let extensions = span.extensions();
            match extensions.get::<FormattedFields<N>>() {
                Some(fields) if !fields.is_empty() => write!(rest, "{{{fields}}}: ")?,
                _ => rest.push_str(": "),
            }
        }
        ctx.format_fields(Writer::new(&mut rest), event)?;
        line.push_str(&escape(&rest));
        writeln!(out, "{line}")
    }
}

#[cfg(test)]
mod tests;
