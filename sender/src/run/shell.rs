//! The engine's thread: what comes in is told to the engine, what it decides is done.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::Duration;

use checkvalve_host::control::Refusal;
use checkvalve_host::disk::Disk;
use checkvalve_host::notify::Notifier;
use checkvalve_protocol::id::BundleId;
use serde_json::Value;
use tokio::sync::oneshot;

use super::Clock;
use crate::control::{About, answer};
use crate::engine::{Actions, Engine};
use crate::pipeline::{Finished, Pipeline};
use crate::spool::{Told, Watcher};
use crate::work::{Done, Work};

/// What inotify may tell before the engine has listened; beyond that it scans instead.
const MOST_TOLD: usize = 1 << 16;
/// How often to look whether the data plane lives.
const CHECK_EVERY: Duration = Duration::from_secs(5);
/// How often systemd hears a new line at most.
const STATUS_EVERY_MS: u64 = 5_000;

/// What the engine's thread hears.
pub(super) enum Input {
    /// inotify told something.
    Told(Told),
    /// A worker is done.
    Done(Done),
    /// A worker or the pipeline died.
    Died,
    /// The pipeline is done with a bundle.
    Finished(BundleId, Finished),
    /// A command asks.
    Asked(Value, oneshot::Sender<Result<Value, Refusal>>),
    /// A signal came.
    Stop,
}

pub(super) struct Shell {
    engine: Engine,
    pipeline: Pipeline,
    disk: Arc<dyn Disk>,
    clock: Clock,
    about: About,
    inputs: Sender<Input>,
    watcher: Option<Watcher>,
    told: Arc<Backlog>,
    next_refresh_ms: u64,
    next_status_ms: u64,
    life: Life,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Life {
    Running,
    Stopping,
    Dead,
}

/// How much inotify told that the engine has not heard yet.
#[derive(Default)]
struct Backlog {
    waiting: AtomicUsize,
    lost: AtomicBool,
}

impl Shell {
    pub(super) fn new(
        engine: Engine,
        pipeline: Pipeline,
        disk: Arc<dyn Disk>,
        clock: Clock,
        about: About,
        inputs: Sender<Input>,
    ) -> Self {
        let told = Arc::default();
        Self {
            engine,
            pipeline,
            disk,
            clock,
            about,
            inputs,
            watcher: None,
            told,
            next_refresh_ms: 0,
            next_status_ms: 0,
            life: Life::Running,
        }
    }

    /// Runs until it is told to stop; gives whether it was, and nothing died.
    pub(super) fn run(mut self, inputs: &Receiver<Input>, notifier: &Notifier) -> bool {
        let watchdog = notifier.watchdog_interval().unwrap_or(CHECK_EVERY).min(CHECK_EVERY);
        let mut ready = false;
        while self.life == Life::Running {
            self.watch();
            if self.pipeline.is_broken() {
                self.life = Life::Dead;
            }
            if self.told.lost.swap(false, Ordering::Relaxed) {
                self.engine.lost(self.clock.now());
            }
            let actions = self.engine.step(self.clock.now());
            let wake_ms = actions.wake_ms.min(self.next_refresh_ms);
            self.act(actions);
            if !std::mem::replace(&mut ready, true) {
                notifier.ready();
            }
            notifier.watchdog();
            self.tell_status(notifier);
            let wait = Duration::from_millis(wake_ms.saturating_sub(self.clock.now().mono_ms)).min(watchdog);
            match inputs.recv_timeout(wait) {
                Ok(input) => self.hear(input),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => self.life = Life::Stopping,
            }
            // What came in the meantime is heard before the next decision, so that a burst costs one.
            inputs.try_iter().take(1_024).for_each(|input| self.hear(input));
        }
        notifier.stopping();
        self.watcher = None;
        self.pipeline.stop();
        self.life != Life::Dead
    }

    fn hear(&mut self, input: Input) {
        let now = self.clock.now();
        match input {
            Input::Told(told) => {
                self.told.waiting.fetch_sub(1, Ordering::Relaxed);
                match told {
                    Told::Seen(place, seen) => self.engine.seen(place, seen, now),
                    Told::Lost => {
                        self.next_refresh_ms = now.mono_ms;
                        self.engine.lost(now);
                    }
                }
            }
            Input::Done(done) => self.engine.done(done, now),
            Input::Died => self.life = Life::Dead,
            Input::Finished(id, finished) => self.engine.finished(id, finished, now),
            Input::Asked(body, reply) => {
                let answer = answer(body, &mut self.engine, &self.about, || self.pipeline.stats(), now);
                // The command may have gone.
                drop(reply.send(answer));
            }
            Input::Stop if self.life == Life::Running => self.life = Life::Stopping,
            Input::Stop => {}
        }
    }

    fn act(&mut self, actions: Actions) {
        if actions.beacon {
            self.pipeline.set_beacon(self.engine.beacon());
        }
        for job in actions.jobs {
            self.pipeline.submit(job);
        }
        for work in actions.work {
            self.start(work);
        }
    }

    /// A thread for each piece: the engine asks for few at a time, and a long one must not hold up the others.
    fn start(&self, work: Work) {
        let (disk, inputs) = (Arc::clone(&self.disk), self.inputs.clone());
        let spawned = std::thread::Builder::new().name("worker".into()).spawn(move || {
            let died = Died(Some(inputs));
            let done = work.run(&disk);
            died.disarm(Input::Done(done));
        });
        if let Err(error) = spawned {
            // Nobody would ever hear of this piece again.
            tracing::error!("the system lets no thread start: {error}");
            drop(self.inputs.send(Input::Died));
        }
    }

    /// Keeps the watches on the folders that are there now; without them, scans have to do.
    fn watch(&mut self) {
        let now = self.clock.now();
        if now.mono_ms < self.next_refresh_ms {
            return;
        }
        self.next_refresh_ms = now.mono_ms + 10_000;
        let watched = self.watcher().and_then(|watcher| watcher.refresh().map_err(|e| e.to_string()));
        self.engine.watching(watched.as_ref().err().cloned());
        if watched == Ok(true) {
            // What came before the watch did is only found by looking.
            self.engine.lost(now);
        }
    }

    fn watcher(&mut self) -> Result<&mut Watcher, String> {
        if self.watcher.is_none() {
            let (inputs, told) = (self.inputs.clone(), Arc::clone(&self.told));
            let tell = Box::new(move |what| {
                if told.waiting.fetch_add(1, Ordering::Relaxed) < MOST_TOLD {
                    drop(inputs.send(Input::Told(what)));
                } else {
                    told.waiting.fetch_sub(1, Ordering::Relaxed);
                    told.lost.store(true, Ordering::Relaxed);
                }
            });
            self.watcher = Some(Watcher::new(self.engine.folders(), tell).map_err(|e| e.to_string())?);
        }
        self.watcher.as_mut().ok_or_else(String::new)
    }

    fn tell_status(&mut self, notifier: &Notifier) {
        let now = self.clock.now().mono_ms;
        if now >= self.next_status_ms {
            self.next_status_ms = now + STATUS_EVERY_MS;
            notifier.status(&self.engine.summary());
        }
    }
}

/// Tells the engine's thread if its worker panics.
struct Died(Option<Sender<Input>>);

impl Died {
    fn disarm(mut self, last: Input) {
        if let Some(inputs) = self.0.take() {
            drop(inputs.send(last));
        }
    }
}

impl Drop for Died {
    fn drop(&mut self) {
        if let Some(inputs) = self.0.take() {
            drop(inputs.send(Input::Died));
        }
    }
}
