//! The daemon: threads, sockets, signals and clocks around [`Delivery`] and [`Pipeline`].
//!
//! 1. Lock the state directory, open the deliveries, bind the control socket, start the pipeline.
//! 2. Three threads do what may take long: moving, hashing, publishing ([`Delivery::work`]).
//! 3. The main thread runs tokio: hooks, control socket, signals, watchdog.
//! 4. Stop: hooks are ended, the pipeline stores what is whole, the workers finish what they have begun.

mod hooks;

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use checkvalve_host::config::{ConfigError, list};
use checkvalve_host::control::{BindError, Refusal, Reply, Server};
use checkvalve_host::disk::{Disk, OsDisk};
use checkvalve_host::exit::Exit;
use checkvalve_host::lock::{Lock, LockError};
use checkvalve_host::notify::Notifier;
use checkvalve_host::progress::human_bytes;
use checkvalve_protocol::admit::Trust;
use checkvalve_protocol::id::BundleId;
use checkvalve_protocol::receive::Limits;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, watch};

use crate::config::{Checked, Config};
use crate::control::{About, answer, reload_trust};
use crate::delivery::{Delivery, OpenError, Policy, Settings, THREADS};
use crate::hook::HookPolicy;
use crate::pipeline::{LinkStats, Pipeline, PipelineConfig};
use crate::store::StoreOpenError;
use crate::store::log::BootId;
use crate::store::space;

/// Most files that the daemon asks to have open. What it starts inherits the limit, and some programs close as many at
/// their start.
const OPEN_FILES: u64 = 65_536;
/// Most files of staging that stay open between blocks: each is some KiB of the kernel's memory.
const OPEN_IN_STAGING: u64 = 4_096;
/// How often the daemon looks after itself.
const ROUND: Duration = Duration::from_millis(200);
/// How often systemd hears a new line, in rounds.
const STATUS_ROUNDS: u32 = 25;

/// Why the daemon did not start, or ended by itself. Each is one line.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The configuration is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Another daemon has the state directory.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// Ledger, staging or state cannot be used.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// A socket of the link cannot be opened, or a thread of the data plane not be started.
    #[error("{0}")]
    Pipeline(std::io::Error),
    /// The control socket cannot be bound.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// A thread, a signal handler or the runtime cannot be made.
    #[error("the system does not let the daemon start: {0}")]
    System(#[from] std::io::Error),
    /// A part of the daemon failed; its last words are above.
    #[error("a part of the daemon failed")]
    Failed,
}

impl RunError {
    /// What the process exits with.
    #[must_use]
    pub fn exit(&self) -> Exit {
        match self {
            Self::Config(_) => Exit::Config,
            Self::Lock(LockError::Held { .. }) | Self::Bind(BindError::Running { .. }) => Exit::TempFail,
            Self::Lock(LockError::Io { error, .. }) | Self::Open(OpenError::State(error)) => Exit::from_io(error),
            Self::Open(OpenError::Ledger(error) | OpenError::Store(StoreOpenError::Journal(error))) => error.exit(),
            Self::Open(OpenError::Store(StoreOpenError::Disk(_))) => Exit::IoErr,
            Self::Bind(_) => Exit::CantCreat,
            Self::Pipeline(_) | Self::System(_) => Exit::OsErr,
            Self::Failed => Exit::Software,
        }
    }
}

/// Runs the daemon with a config file until SIGTERM or SIGINT. Errors: [`RunError`].
pub fn run(config: &Path) -> Result<(), RunError> {
    let checked = Config::load(config)?;
    let lock = Lock::acquire(&checked.config.state.join("lock"))?;
    let disk: Arc<dyn Disk> = Arc::new(OsDisk);
    let boot = boot_id()?;
    let open_files = raise_open_files();
    let trust = Trust { keys: checked.trusted.clone(), signers: checked.config.signers() };
    let delivery = Delivery::open(disk, settings(&checked, open_files), trust, boot, now_ms())?;
    let delivery = Arc::new(delivery);
    let server = Server::bind(&checked.config.control)?;
    let pipeline = start_pipeline(&checked, boot, &delivery)?;
    let workers = Workers::start(&delivery)?;
    if checked.trusted.is_empty() {
        tracing::warn!(directory = %checked.config.keys.trusted.display(), "no key is trusted: nothing counts");
    }
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        listen = list(&checked.listen),
        lanes = checked.listen.len(),
        sealed = checked.link_key.is_some(),
        workers = checked.workers,
        open_files,
        "started"
    );
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let pipeline = Arc::new(Mutex::new(Some(pipeline)));
    let served = runtime.block_on(serve(config, &checked, server, &delivery, &pipeline, &workers));
    runtime.shutdown_timeout(Duration::from_secs(1));
    if let Some(pipeline) = pipeline.lock().unwrap_or_else(PoisonError::into_inner).take() {
        pipeline.stop();
    }
    workers.stop();
    delivery.tick_last(now_ms());
    if served.is_ok() {
        tracing::info!("stopped");
    }
    drop(lock);
    served
}

type SharedPipeline = Arc<Mutex<Option<Pipeline>>>;

/// Hooks, control socket, signals and watchdog, until a signal comes or something dies.
async fn serve(
    config: &Path,
    checked: &Checked,
    server: Server,
    delivery: &Arc<Delivery>,
    pipeline: &SharedPipeline,
    workers: &Workers,
) -> Result<(), RunError> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let notifier = Notifier::from_env();
    let about = Arc::new(about(checked));
    let (stats_of, for_requests, told) = (Arc::clone(pipeline), Arc::clone(delivery), Arc::clone(&about));
    let serving = server.serve(move |request| {
        let (delivery, about, pipeline) = (Arc::clone(&for_requests), Arc::clone(&told), Arc::clone(&stats_of));
        async move {
            let work = move || {
                answer(request.body, &delivery, &about, || stats(&pipeline), &|id| lacking(&pipeline, id), now_ms())
            };
            let answered = tokio::task::spawn_blocking(work).await;
            answered.map_err(|_| Refusal::new(Exit::Software, "the daemon failed; see its log"))?.map(Reply::Value)
        }
    });
    let (stop, stopped) = watch::channel(false);
    let due = Arc::new(Notify::new());
    let wake = Arc::clone(&due);
    delivery.set_waker(Box::new(move || wake.notify_one()));
    let hooks = hooks::run(Arc::clone(delivery), checked.config.state.clone(), due, stopped);
    tokio::pin!(hooks, serving);
    notifier.ready();
    let mut round = 0_u32;
    let ended = loop {
        tokio::select! {
            _ = terminate.recv() => break Ok(()),
            _ = interrupt.recv() => break Ok(()),
            _ = hangup.recv() => {
                let (delivery, about) = (Arc::clone(delivery), Arc::clone(&about));
                let config = config.to_owned();
                tokio::task::spawn_blocking(move || reload(&config, &delivery, &about));
            }
            served = &mut serving => break served.map(|never| match never {}).map_err(RunError::System),
            () = &mut hooks => break Err(RunError::Failed),
            () = tokio::time::sleep(ROUND) => {
                let broken = pipeline.lock().unwrap_or_else(PoisonError::into_inner).as_ref().is_none_or(Pipeline::is_broken);
                if broken || workers.are_broken() {
                    break Err(RunError::Failed);
                }
                notifier.watchdog();
                if round.is_multiple_of(STATUS_ROUNDS) {
                    notifier.status(&delivery.summary());
                }
                round = round.wrapping_add(1);
            }
        }
    };
    notifier.stopping();
    _ = stop.send(true);
    if ended.is_ok() {
        // A second signal does not wait for hooks to end.
        tokio::select! {
            () = &mut hooks => {}
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    }
    ended
}

/// The threads that do what may take long.
struct Workers {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Workers {
    fn start(delivery: &Arc<Delivery>) -> Result<Self, RunError> {
        let stop = Arc::new(AtomicBool::new(false));
        let mut threads = Vec::new();
        for n in 0..THREADS {
            let (delivery, stop) = (Arc::clone(delivery), Arc::clone(&stop));
            threads.push(std::thread::Builder::new().name(format!("publish-{n}")).spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    if delivery.wait_for_work(ROUND) {
                        delivery.work();
                    }
                }
            })?);
        }
        Ok(Self { stop, threads })
    }

    fn are_broken(&self) -> bool {
        self.threads.iter().any(JoinHandle::is_finished)
    }

    fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            if thread.join().is_err() {
                tracing::error!("a thread that publishes panicked");
            }
        }
    }
}

fn start_pipeline(checked: &Checked, boot: BootId, delivery: &Arc<Delivery>) -> Result<Pipeline, RunError> {
    let link = &checked.config.link;
    let wanted = usize::try_from(link.receive_buffer.bytes()).unwrap_or(usize::MAX);
    let config = PipelineConfig {
        listen: checked.listen.clone(),
        link_key: checked.link_key.as_ref().map(|key| *key.as_bytes()),
        limits: limits(checked),
        kernel_buffer: wanted,
        workers: checked.workers,
        lasting: Some(checked.config.control.with_extension("blocks")),
        boot,
    };
    let pipeline = Pipeline::start(&config, Arc::clone(delivery) as _).map_err(RunError::Pipeline)?;
    if let Some(buffer) = pipeline.receive_buffers().iter().find(|buffer| buffer.got < buffer.wanted) {
        tracing::warn!(
            wanted = human_bytes(buffer.wanted as u64),
            got = human_bytes(buffer.got as u64),
            "the kernel gives less receive buffer than `link.receive_buffer`: `sysctl net.core.rmem_max={wanted}`, and \
             restart"
        );
    }
    Ok(pipeline)
}

/// Reads the trusted keys, and which of them may sign for which channel, again.
fn reload(config: &Path, delivery: &Delivery, about: &About) {
    let read = Config::peek(config).map_err(|error| error.to_string()).and_then(|config| {
        reload_trust(delivery, about, Some(config.signers()), now_ms()).map_err(|refusal| refusal.to_string())
    });
    match read {
        Ok(judged) => tracing::info!(
            trusted = judged.trusted,
            refused = judged.refused.len(),
            admitted = judged.admitted.len(),
            "trusted keys were read again"
        ),
        Err(error) => {
            delivery.trust_is_read(Some(&error));
            tracing::error!(error, "trusted keys cannot be read again; those from before stay");
        }
    }
}

fn limits(checked: &Checked) -> Limits {
    let limits = &checked.config.limits;
    Limits {
        objects: limits.objects,
        open_blocks: limits.open_blocks,
        unsigned_objects: limits.unannounced,
        announces: limits.unannounced.div_ceil(4),
        // Sooner than a bundle is called incomplete, so that a resend is not met with an old answer.
        ask_again: Duration::from_millis(500),
        signatures: limits.signatures,
        ..Limits::new(checked.block_memory)
    }
}

/// Raises how many files the daemon may have open as far as the system lets it. Gives how many these are.
fn raise_open_files() -> u64 {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let (current, most) = (current.unwrap_or(u64::MAX), maximum.unwrap_or(u64::MAX).min(OPEN_FILES));
    if current >= most {
        return current;
    }
    match setrlimit(Resource::Nofile, Rlimit { current: Some(most), maximum }) {
        Ok(()) => most,
        Err(error) => {
            tracing::warn!(%error, current, wanted = most, "the limit on open files cannot be raised");
            current
        }
    }
}

/// Files of staging that stay open: half of what may be, so that the rest is there for what is opened and closed again.
fn open_in_staging(open_files: u64) -> usize {
    usize::try_from((open_files / 2).clamp(16, OPEN_IN_STAGING)).unwrap_or(usize::MAX)
}

fn settings(checked: &Checked, open_files: u64) -> Settings {
    let config = &checked.config;
    let channels = config.channels.iter().map(|(name, channel)| {
        let hook = channel.hook.as_ref().map(|hook| {
            Arc::new(HookPolicy {
                install: hook.install.clone(),
                timeout: hook.timeout.duration(),
                backoff: hook.backoff.duration(),
                backoff_max: hook.backoff_max.duration(),
                retries: hook.retries,
            })
        });
        let wait = channel.wait_for_missing.and_then(|wait| wait.duration());
        let wait_for_missing_ms = wait.map(|wait| u64::try_from(wait.as_millis()).unwrap_or(u64::MAX));
        let quota = channel.quota.map(|quota| quota.bytes());
        (name.clone(), Policy { hook, wait_for_missing_ms, quota })
    });
    Settings {
        inbox: config.inbox.clone(),
        quarantine: config.quarantine.clone(),
        state: config.state.clone(),
        staging: checked.staging.clone(),
        durability: config.durability,
        channels: channels.collect(),
        silence_ms: config.silence.millis(),
        space: space::Limits {
            files: config.limits.files,
            unsigned_bytes: config.limits.unannounced_bytes.bytes(),
            unsigned_files: config.limits.files / 4,
            unsigned_bundles: config.limits.unannounced_bundles as u64,
            ..space::Limits::new(config.reserve.bytes(), config.quota.map_or(u64::MAX, |quota| quota.bytes()))
        },
        crowd: crate::store::CROWD,
        open_files: open_in_staging(open_files),
    }
}

fn about(checked: &Checked) -> About {
    About {
        started_ms: now_ms(),
        listen: list(&checked.listen),
        lanes: checked.listen.len(),
        sealed: checked.link_key.is_some(),
        trusted: checked.config.keys.trusted.clone(),
        signers: Arc::new(Mutex::new(checked.config.signers())),
    }
}

fn stats(pipeline: &SharedPipeline) -> LinkStats {
    pipeline.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map(Pipeline::stats).unwrap_or_default()
}

fn lacking(pipeline: &SharedPipeline, bundle: BundleId) -> Vec<(u32, u32)> {
    let pipeline = pipeline.lock().unwrap_or_else(PoisonError::into_inner);
    pipeline.as_ref().map(|pipeline| pipeline.lacking(bundle)).unwrap_or_default()
}

/// Which run of the kernel this is.
fn boot_id() -> Result<BootId, RunError> {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    let digits: String = text.chars().filter(char::is_ascii_hexdigit).collect();
    u128::from_str_radix(&digits, 16)
        .map(u128::to_be_bytes)
        .map_err(|error| RunError::System(std::io::Error::new(std::io::ErrorKind::InvalidData, error)))
}

/// Unix time in milliseconds.
pub(crate) fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX))
}
