//! The install hook: what it is given, how it is run, what its end means.
//!
//! `HOOK PATH` runs in the bundle's sequence directory with the environment of [`environment`], the manifest as JSON on
//! standard input, and its output in a log file. It has a process group of its own, which is ended as a whole when its
//! time is up.

pub mod input;
pub mod log;
pub mod process;

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use checkvalve_host::progress::human_duration;
use checkvalve_protocol::id::{BundleId, ChannelName};

use crate::ledger::Signer;

/// How a channel's hook is run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HookPolicy {
    /// The program.
    pub install: PathBuf,
    /// How long it may take.
    pub timeout: Duration,
    /// Pause after the first exit 75; each further one doubles it.
    pub backoff: Duration,
    /// Longest pause.
    pub backoff_max: Duration,
    /// How often it is started again at most. None: until it does not ask for it.
    pub retries: Option<u32>,
}

/// A hook that is to be run now.
#[derive(Clone, Debug)]
pub struct HookRun {
    /// How.
    pub policy: Arc<HookPolicy>,
    /// For which bundle.
    pub id: BundleId,
    /// Its channel.
    pub channel: ChannelName,
    /// Its number there.
    pub sequence: u64,
    /// Its name.
    pub name: Vec<u8>,
    /// Its sequence directory in the inbox: the working directory.
    pub directory: PathBuf,
    /// The bundle that was installed before it in this channel, if it is still in the inbox.
    pub previous: Option<PathBuf>,
    /// Who signed it.
    pub signer: Option<Signer>,
    /// How often it was started, this time included.
    pub attempt: u32,
}

/// How a hook ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Exit 0.
    Done,
    /// Exit 75.
    Again,
    /// Exit 65 or 77, which this is.
    Quarantine(i32),
    /// Another exit code, or a signal, in words.
    Failed(String),
    /// It and its children were ended after this time.
    TimedOut(Duration),
    /// It could not be started, in words.
    NotStarted(String),
    /// The daemon stopped and ended it.
    Interrupted,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Done => f.write_str("exit 0"),
            Self::Again => f.write_str("the hook asked to be run again (exit 75)"),
            Self::Quarantine(code) => write!(f, "the hook refused the bundle (exit {code})"),
            Self::Failed(how) => write!(f, "the hook failed ({how})"),
            Self::TimedOut(after) => {
                write!(f, "its time was up: the hook was ended after {}", human_duration(*after))
            }
            Self::NotStarted(why) => write!(f, "the hook cannot be started: {why}"),
            Self::Interrupted => f.write_str("the hook was interrupted when the daemon stopped"),
        }
    }
}

impl Outcome {
    /// What exit code `code` means.
    #[must_use]
    pub fn of_code(code: i32) -> Self {
        match code {
            0 => Self::Done,
            75 => Self::Again,
            65 | 77 => Self::Quarantine(code),
            other => Self::Failed(format!("exit {other}")),
        }
    }
}

impl HookPolicy {
    /// Pause after start number `attempt` (from 1) asked for another, in milliseconds.
    #[must_use]
    pub fn backoff_ms(&self, attempt: u32) -> u64 {
        let doubled = self.backoff.saturating_mul(1_u32.checked_shl(attempt.saturating_sub(1)).unwrap_or(u32::MAX));
        u64::try_from(doubled.min(self.backoff_max).as_millis()).unwrap_or(u64::MAX)
    }

    /// Whether start number `attempt` (from 1) was the last one allowed.
    #[must_use]
    pub fn is_last(&self, attempt: u32) -> bool {
        self.retries.is_some_and(|retries| attempt > retries)
    }
}

/// The variables that a hook gets beside the daemon's own environment.
#[must_use]
pub fn environment(run: &HookRun) -> Vec<(&'static str, OsString)> {
    let mut variables: Vec<(&'static str, OsString)> = vec![
        ("CHECKVALVE_BUNDLE_ID", run.id.to_string().into()),
        ("CHECKVALVE_CHANNEL", run.channel.as_str().into()),
        ("CHECKVALVE_SEQUENCE", run.sequence.to_string().into()),
        ("CHECKVALVE_NAME", os_name(&run.name).into()),
        ("CHECKVALVE_PATH", path(run).into()),
        ("CHECKVALVE_STAGE", "install".into()),
        ("CHECKVALVE_ATTEMPT", run.attempt.to_string().into()),
        ("CHECKVALVE_SIGNER", run.signer.as_ref().map_or(String::new(), |s| s.key.to_string()).into()),
        ("CHECKVALVE_PREVIOUS_PATH", run.previous.clone().unwrap_or_default().into()),
    ];
    variables.retain(|(_, value)| !value.as_bytes().contains(&0));
    variables
}

/// The published bundle.
#[must_use]
pub fn path(run: &HookRun) -> PathBuf {
    run.directory.join(os_name(&run.name))
}

/// A bundle's name for the operating system.
#[must_use]
pub fn os_name(name: &[u8]) -> &OsStr {
    OsStr::from_bytes(name)
}

#[cfg(test)]
mod tests;
