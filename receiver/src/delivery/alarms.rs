//! What a person should look at that no state shows: noted when it happens, gone when it has not for a while.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use checkvalve_host::log::Throttle;
use serde::{Deserialize, Serialize};

use super::shared::Clock;

/// How long an alarm stands after it was noted last, in milliseconds.
const STANDS_MS: u64 = 300_000;
/// Alarms that stand at once.
const MOST: usize = 64;
/// Of one code.
const MOST_OF_CODE: usize = 8;

/// What an alarm is about, for programs. Names are never changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Code {
    /// No beacon was heard yet.
    NoBeaconYet,
    /// Beacons stopped.
    Silent,
    /// Bundles never came.
    Missing,
    /// Bundles lack something.
    Incomplete,
    /// Bundles are held.
    Held,
    /// The hook of a bundle failed for good.
    Failed,
    /// The hook of a bundle asks to be run again and again, or cannot be started.
    HookAgain,
    /// A bundle is in quarantine.
    Quarantined,
    /// Bundles that came cannot be stored or published.
    CannotPublish,
    /// A bundle finds no room in staging.
    NoRoom,
    /// An announce by a key that is not trusted, or that may not sign for its channel.
    UnknownKey,
    /// Two senders have one key.
    TwoSenders,
    /// A sender came back with an older copy of its state.
    OlderState,
    /// A sender has another state under the same epoch number.
    AnotherState,
    /// A sender goes on in an epoch that is over.
    OldEpoch,
    /// A beacon says that a channel is far ahead of what is known.
    SequenceJump,
    /// A bundle's content did not match its hashes.
    Spoilt,
    /// The link loses more than its repair mends.
    Repair,
    /// The link loses nearly as much as its repair mends.
    RepairLow,
    /// The kernel dropped datagrams.
    KernelDrops,
    /// Datagrams found no memory.
    Memory,
    /// The quarantine is full.
    QuarantineFull,
    /// Too many bundles are held.
    HeldFull,
    /// Too many bundles of a channel are under way.
    ManyOpen,
    /// No key is trusted.
    NoTrust,
    /// Keys, or a config that says what they may sign, were not read again.
    TrustNotRead,
    /// The ledger was lost or damaged, and was made again.
    LedgerRebuilt,
    /// Lines of the audit trail cannot be read.
    TrailUnreadable,
}

/// An alarm.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alarm {
    /// For programs.
    pub code: Code,
    /// For people: what happened, and the command or setting that mends it.
    pub text: String,
}

impl Code {
    /// As JSON has it.
    fn as_str(self) -> String {
        serde_json::to_value(self).ok().and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
    }
}

impl Alarm {
    /// An alarm.
    #[must_use]
    pub fn new(code: Code, text: impl Into<String>) -> Self {
        Self { code, text: text.into() }
    }
}

/// Alarms that stand, by what they are about.
#[derive(Default)]
struct Noted(BTreeMap<(Code, String), (u64, String)>);

impl Noted {
    fn stand(&self, now_ms: u64) -> Vec<Alarm> {
        let standing = self.0.iter().filter(|(_, (since, _))| stands(*since, now_ms));
        standing.map(|((code, _), (_, text))| Alarm::new(*code, text.clone())).collect()
    }

    /// True: it is new.
    fn note(&mut self, code: Code, about: &str, text: &str, now_ms: u64) -> bool {
        self.0.retain(|_, (since, _)| stands(*since, now_ms));
        let known = self.0.contains_key(&(code, about.to_owned()));
        let of_code = self.0.keys().filter(|(other, _)| *other == code).count();
        if known || self.0.len() < MOST && of_code < MOST_OF_CODE {
            self.0.insert((code, about.to_owned()), (now_ms, text.to_owned()));
        }
        !known
    }
}

fn stands(since_ms: u64, now_ms: u64) -> bool {
    now_ms.saturating_sub(since_ms) < STANDS_MS
}

/// Raises alarms, and says which stand.
pub(super) struct Alarms {
    clock: Arc<Clock>,
    log: Arc<Throttle>,
    noted: Mutex<Noted>,
}

impl Alarms {
    pub(super) fn new(clock: Arc<Clock>, log: Arc<Throttle>) -> Self {
        Self { clock, log, noted: Mutex::default() }
    }

    /// Something happened that a person should look at, `about` this.
    pub(super) fn raise(&self, code: Code, about: &str, text: &str) {
        let now = self.clock.now();
        let new = self.lock().note(code, about, text, now);
        if new && let Some(suppressed) = self.log.allow(now) {
            tracing::warn!(code = code.as_str(), about, text, suppressed, "alarm");
        }
    }

    /// The same, and it stands until it is cleared or the process ends.
    pub(super) fn raise_for_good(&self, code: Code, about: &str, text: &str) {
        self.raise(code, about, text);
        if let Some((since, _)) = self.lock().0.get_mut(&(code, about.to_owned())) {
            *since = u64::MAX;
        }
    }

    /// It goes on, as it was told. False: it does not stand.
    pub(super) fn still(&self, code: Code, about: &str) -> bool {
        let now = self.clock.now();
        let mut noted = self.lock();
        let standing = noted.0.get_mut(&(code, about.to_owned())).filter(|(since, _)| stands(*since, now));
        let stood = standing.is_some();
        standing.into_iter().for_each(|(since, _)| *since = now.max(*since));
        stood
    }

    /// Those of a code are over of which this is true.
    pub(super) fn end(&self, code: Code, is_over: impl Fn(&str) -> bool) {
        self.lock().0.retain(|(of, about), _| *of != code || !is_over(about));
    }

    /// Whether it stands.
    pub(super) fn is_raised(&self, code: Code, about: &str) -> bool {
        let now = self.clock.now();
        self.lock().0.get(&(code, about.to_owned())).is_some_and(|(since, _)| stands(*since, now))
    }

    /// It is over.
    pub(super) fn clear(&self, code: Code, about: &str) {
        self.lock().0.remove(&(code, about.to_owned()));
    }

    /// The alarms that still stand.
    pub(super) fn stand(&self, now_ms: u64) -> Vec<Alarm> {
        self.lock().stand(now_ms)
    }

    fn lock(&self) -> MutexGuard<'_, Noted> {
        self.noted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
