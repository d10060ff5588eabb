//! The daemon: threads, sockets, signals and clocks around the [`Engine`].
//!
//! 1. Lock the state directory, open the engine, start the pipeline, bind the control socket.
//! 2. The engine's thread ([`shell`]) takes what inotify, workers, pipeline and control socket tell, one thing at a time, and
//!    does what the engine decides.
//! 3. The main thread serves the control socket and waits for a signal.
//! 4. Stop: the engine's thread ends, the pipeline is stopped; bundles that were on the wire go on with the next start.

mod shell;

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{self, Sender};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use aws_lc_rs::rand::{SecureRandom, SystemRandom};
use checkvalve_host::config::{ConfigError, list};
use checkvalve_host::control::{BindError, Refusal, Reply, Server};
use checkvalve_host::disk::{Disk, OsDisk};
use checkvalve_host::exit::Exit;
use checkvalve_host::json::Stamp;
use checkvalve_host::lock::{Lock, LockError};
use checkvalve_host::notify::Notifier;
use checkvalve_protocol::id::SessionId;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

use crate::config::{Checked, Config};
use crate::control::{About, LinkView};
use crate::engine::{Engine, Now, OpenError, Setup};
use crate::pipeline::{Keys, LinkStats, Pipeline, PipelineConfig, StartError};

use shell::{Input, Shell};

/// Why the daemon did not start, or ended by itself. Each is one line.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The configuration is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Another daemon has the state directory.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// Ledger, spool or holding area cannot be used.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The data plane cannot start.
    #[error("{0}")]
    Pipeline(#[from] StartError),
    /// The control socket cannot be bound.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// A thread, a signal handler or the runtime cannot be made.
    #[error("the system does not let the daemon start: {0}")]
    System(#[from] std::io::Error),
    /// The system gives no random numbers.
    #[error("the system gives no random numbers")]
    Random,
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
            Self::Lock(LockError::Io { error, .. }) | Self::Open(OpenError::Disk { error, .. }) => Exit::from_io(error),
            Self::Open(OpenError::Ledger(error)) => error.exit(),
            Self::Bind(_) => Exit::CantCreat,
            Self::Pipeline(_) | Self::System(_) | Self::Random => Exit::OsErr,
            Self::Failed => Exit::Software,
        }
    }
}

/// The clocks of the process.
#[derive(Debug, Clone, Copy)]
struct Clock(Instant);

impl Clock {
    fn now(self) -> Now {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Now { wall_ms: millis(wall), mono_ms: millis(self.0.elapsed()) }
    }
}

fn millis(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Runs the daemon with a config file until SIGTERM or SIGINT. Errors: [`RunError`].
pub fn run(config: &Path) -> Result<(), RunError> {
    let checked = Config::load(config)?;
    let lock = Lock::acquire(&checked.config.state.join("lock"))?;
    let disk: Arc<dyn Disk> = Arc::new(OsDisk);
    let clock = Clock(Instant::now());
    let keys = Keys { link: checked.link_key.clone(), signing: Arc::clone(&checked.signing_key) };
    let engine = Engine::open(setup(&checked, &disk, &keys), clock.now())?;
    let session = SessionId(random().ok_or(RunError::Random)?);
    let (epoch, number) = (engine.epoch().number, engine.session_number());
    let about = about(&checked, session, Stamp(clock.now().wall_ms));
    let (inputs, received) = mpsc::channel();
    let ended = inputs.clone();
    let when_done = Box::new(move |bundle, how| drop(ended.send(Input::Finished(bundle, how))));
    let pipeline = Pipeline::start(pipeline_config(&checked, session, &engine), keys, Arc::clone(&disk), when_done)?;
    let server = Server::bind(&checked.config.control)?;
    let notifier = Notifier::from_env();
    let shell = Shell::new(engine, pipeline, disk, clock, about, inputs.clone());
    tracing::info!(version = env!("CARGO_PKG_VERSION"), epoch, number, %session, destination = list(&checked.destinations),
        rate = %checked.config.link.rate, sealed = checked.link_key.is_some(), "started");
    let (ended, end) = oneshot::channel();
    let thread = std::thread::Builder::new().name("engine".into()).spawn(move || {
        // Without a word it is dropped if a part died or the thread panics.
        if shell.run(&received, &notifier) {
            let _ = ended.send(());
        }
    })?;
    let served =
        tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(serve(server, inputs, end));
    if served.is_ok() {
        drop(thread.join());
        tracing::info!("stopped");
    }
    drop(lock);
    served
}

/// Serves the control socket until a signal comes or the engine's thread ends.
async fn serve(server: Server, inputs: Sender<Input>, mut end: oneshot::Receiver<()>) -> Result<(), RunError> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let for_requests = inputs.clone();
    let serving = server.serve(move |request| {
        let (reply, replied) = oneshot::channel();
        let asked = for_requests.send(Input::Asked(request.body, reply));
        async move {
            let gone = || Refusal::new(Exit::TempFail, "the daemon is stopping");
            asked.map_err(|_| gone())?;
            replied.await.map_err(|_| gone())?.map(Reply::Value)
        }
    });
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        ended = &mut end => return if ended.is_ok() { Ok(()) } else { Err(RunError::Failed) },
        served = serving => return served.map(|never| match never {}).map_err(RunError::System),
    }
    drop(inputs.send(Input::Stop));
    // A second signal does not wait.
    tokio::select! {
        ended = end => ended.map_err(|_| RunError::Failed),
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
    }
}

fn setup(checked: &Checked, disk: &Arc<dyn Disk>, keys: &Keys) -> Setup {
    let config = &checked.config;
    Setup {
        disk: Arc::clone(disk),
        spool: config.spool.clone(),
        state: config.state.clone(),
        channels: checked.rules.clone(),
        settle_ms: config.settle.millis(),
        rescan_ms: config.rescan.millis(),
        retain_bytes: config.retain.size.bytes(),
        retain_ms: config.retain.age.millis(),
        key: Arc::clone(&keys.signing),
        parameters: checked.parameters,
        random: Box::new(|| random().unwrap_or_default()),
    }
}

fn pipeline_config(checked: &Checked, session: SessionId, engine: &Engine) -> PipelineConfig {
    PipelineConfig {
        destinations: checked.destinations.clone(),
        parameters: checked.parameters,
        session,
        session_number: engine.session_number(),
        epoch: engine.epoch(),
    }
}

fn about(checked: &Checked, session: SessionId, started_at: Stamp) -> About {
    let link = &checked.config.link;
    let link = LinkView {
        destination: list(&checked.destinations),
        lanes: checked.destinations.len(),
        mtu: link.mtu,
        rate_bits: link.rate.bits(),
        sealed: checked.link_key.is_some(),
        sent: LinkStats::default(),
    };
    About { started_at, session, link }
}

/// 64 random bits, not 0. None: the system gives none.
pub(crate) fn random() -> Option<u64> {
    let mut bytes = [0; 8];
    let filled = SystemRandom::new().fill(&mut bytes).is_ok();
    Some(u64::from_le_bytes(bytes)).filter(|&number| filled && number != 0)
}
