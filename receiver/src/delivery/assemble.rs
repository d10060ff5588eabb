//! Makes the parts of [`Delivery`], and gives each what it may touch.

use std::sync::{Arc, Mutex};

use checkvalve_host::disk::Disk;
use checkvalve_host::log::Throttle;

use super::adopting::Adopting;
use super::advance::{Proving, Publishing};
use super::alarms::Alarms;
use super::beacons::{Hearing, NewestBeacons};
use super::forget::Forgetting;
use super::install::Installing;
use super::jobs::Jobs;
use super::manifests::Admission;
use super::named::Named;
use super::operator::Deciding;
use super::receive::Receiving;
use super::refusing::Refusing;
use super::shared::{Clock, CurrentTrust, Discards, Policies, Waker};
use super::shares::Shares;
use super::spoilt::Clearing;
use super::staging::Staging;
use super::status::Telling;
use super::telling::Words;
use super::ticket::Ticketing;
use super::trusting::Trusting;
use super::undo::Undoing;
use super::unknown::{Strangers, Unknown};
use super::watch::{Paths, Watching};
use super::{Delivery, Settings};
use crate::audit::Audit;
use crate::inbox::Inbox;
use crate::ledger::file::LedgerFile;
use crate::store::Store;

/// The span over which lines of the log are throttled, in milliseconds.
const MINUTE_MS: u64 = 60_000;

/// What is opened first.
pub(super) struct Base {
    pub(super) disk: Arc<dyn Disk>,
    pub(super) settings: Settings,
    pub(super) ledger: LedgerFile,
    pub(super) store: Store,
    pub(super) inbox: Inbox,
    pub(super) audit: Audit,
    pub(super) now_ms: u64,
}

impl Base {
    pub(super) fn assemble(self) -> Delivery {
        let Self { disk, settings, ledger, store, inbox, audit, now_ms } = self;
        let (ledger, store, inbox, audit) = (Arc::new(ledger), Arc::new(store), Arc::new(inbox), Arc::new(audit));
        let silence_ms = settings.silence_ms;
        let clock = Arc::new(Clock::new(now_ms));
        let log = Arc::new(Throttle::new(20, MINUTE_MS));
        let trust = Arc::new(CurrentTrust::default());
        let policies = Arc::new(Policies(settings.channels));
        let jobs = Arc::new(Jobs::default());
        let waker = Arc::new(Waker::default());
        let discards = Arc::new(Discards::default());
        let newest = Arc::new(NewestBeacons::default());
        let named = Arc::new(Named::open(disk.clone(), settings.state.join("named.json")));
        let alarms = Arc::new(Alarms::new(clock.clone(), log.clone()));
        let shares = Arc::new(Shares {
            ledger: ledger.clone(),
            store: store.clone(),
            trust: trust.clone(),
            policies: policies.clone(),
        });
        let staging = Arc::new(Staging {
            clock: clock.clone(),
            ledger: ledger.clone(),
            store: store.clone(),
            shares: shares.clone(),
            jobs: jobs.clone(),
            log: log.clone(),
        });
        let words = Arc::new(Words {
            clock: clock.clone(),
            trust: trust.clone(),
            ledger: ledger.clone(),
            newest: newest.clone(),
            alarms: alarms.clone(),
        });
        let refusing = Arc::new(Refusing {
            clock: clock.clone(),
            ledger: ledger.clone(),
            audit: audit.clone(),
            store: store.clone(),
            inbox: inbox.clone(),
            staging: staging.clone(),
            alarms: alarms.clone(),
            words: words.clone(),
            waker: waker.clone(),
            log: log.clone(),
        });
        let adopting = Arc::new(Adopting { ledger: ledger.clone(), store: store.clone(), refusing: refusing.clone() });
        let clearing = Arc::new(Clearing {
            clock: clock.clone(),
            ledger: ledger.clone(),
            store: store.clone(),
            staging: staging.clone(),
            audit: audit.clone(),
            alarms: alarms.clone(),
            words: words.clone(),
            silence_ms,
            log: log.clone(),
        });
        let undoing = Arc::new(Undoing {
            clock: clock.clone(),
            policies: policies.clone(),
            disk: disk.clone(),
            ledger: ledger.clone(),
            store: store.clone(),
            inbox: inbox.clone(),
            audit: audit.clone(),
            staging: staging.clone(),
            waker: waker.clone(),
        });
        let forgetting = Arc::new(Forgetting {
            clock: clock.clone(),
            disk: disk.clone(),
            ledger: ledger.clone(),
            inbox: inbox.clone(),
            state: settings.state.clone(),
            quarantine: settings.quarantine.clone(),
            log: log.clone(),
        });
        let proving = Proving {
            trust: trust.clone(),
            ledger: ledger.clone(),
            store: store.clone(),
            inbox: inbox.clone(),
            staging: staging.clone(),
            adopting: adopting.clone(),
            jobs: jobs.clone(),
            discards: discards.clone(),
        };
        Delivery {
            receiving: Receiving {
                clock: clock.clone(),
                trust: trust.clone(),
                disk: disk.clone(),
                ledger: ledger.clone(),
                store: store.clone(),
                staging: staging.clone(),
                adopting: adopting.clone(),
                jobs: jobs.clone(),
                log: Throttle::new(20, MINUTE_MS),
            },
            admission: Admission {
                clock: clock.clone(),
                trust: trust.clone(),
                ledger: ledger.clone(),
                staging: staging.clone(),
                refusing: refusing.clone(),
                jobs: jobs.clone(),
                alarms: alarms.clone(),
                discards: discards.clone(),
                unknown: Unknown::new(alarms.clone()),
                log: log.clone(),
                announced_log: Throttle::new(600, MINUTE_MS),
            },
            hearing: Hearing {
                trust: trust.clone(),
                ledger: ledger.clone(),
                newest: newest.clone(),
                named: named.clone(),
                staging: staging.clone(),
                jobs: jobs.clone(),
                alarms: alarms.clone(),
                strangers: Strangers::new(alarms.clone()),
                words: words.clone(),
                discards: discards.clone(),
                waker: waker.clone(),
                log: log.clone(),
            },
            publishing: Publishing {
                clock: clock.clone(),
                trust: trust.clone(),
                policies: policies.clone(),
                disk: disk.clone(),
                ledger: ledger.clone(),
                store: store.clone(),
                inbox: inbox.clone(),
                audit: audit.clone(),
                staging: staging.clone(),
                adopting: adopting.clone(),
                proving,
                refusing: refusing.clone(),
                clearing: clearing.clone(),
                waker: waker.clone(),
            },
            installing: Installing {
                policies: policies.clone(),
                trust: trust.clone(),
                ledger: ledger.clone(),
                audit: audit.clone(),
                inbox: inbox.clone(),
                disk: disk.clone(),
                refusing: refusing.clone(),
                waker: waker.clone(),
            },
            watching: Watching {
                disk: disk.clone(),
                alarms: alarms.clone(),
                paths: Paths { state: settings.state.clone(), staging: settings.staging },
                ledger: ledger.clone(),
                named: named.clone(),
                store: store.clone(),
                staging: staging.clone(),
                shares: shares.clone(),
                trust: trust.clone(),
                jobs: jobs.clone(),
                forgetting: forgetting.clone(),
                waker: waker.clone(),
                silence_ms,
                watched: Mutex::default(),
                log: log.clone(),
                states_log: Throttle::new(60, MINUTE_MS),
            },
            trusting: Trusting {
                disk: disk.clone(),
                path: settings.state.join("trust.json"),
                trust: trust.clone(),
                policies: policies.clone(),
                ledger: ledger.clone(),
                store: store.clone(),
                audit: audit.clone(),
                shares: shares.clone(),
                refusing: refusing.clone(),
                undoing: undoing.clone(),
            },
            deciding: Deciding {
                clock: clock.clone(),
                trust: trust.clone(),
                ledger: ledger.clone(),
                store: store.clone(),
                audit: audit.clone(),
                staging: staging.clone(),
                undoing: undoing.clone(),
                alarms: alarms.clone(),
                words: words.clone(),
                waker: waker.clone(),
            },
            telling: Telling {
                policies: policies.clone(),
                trust: trust.clone(),
                disk: disk.clone(),
                ledger: ledger.clone(),
                store: store.clone(),
                inbox: inbox.clone(),
                staging: staging.clone(),
                newest: newest.clone(),
                discards: discards.clone(),
                words: words.clone(),
                logs: settings.state.join("logs"),
            },
            ticketing: Ticketing {
                ledger: ledger.clone(),
                store: store.clone(),
                staging: staging.clone(),
                clearing: clearing.clone(),
                newest: newest.clone(),
            },
            clock,
            ledger,
            store,
            staging,
            alarms,
            newest,
            jobs,
            waker,
            adopting,
            refusing,
            clearing,
            forgetting,
        }
    }
}
