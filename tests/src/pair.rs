//! Both daemons on the two ends of a one-way link, with real config files, and the words a test tells its story in.
//!
//! ```no_run
//! use checkvalve_tests::{link::Loss, pair::Pair, tree};
//! let mut pair = Pair::setup().gso(false).loss(Loss::Random(50)).repair("15 %").start();
//! tree::odd(&pair.place("release"), 5_000, 1);
//! let release = pair.drop("release");
//! pair.wait_installed(&release);
//! pair.assert_identical(&release);
//! assert_eq!(pair.link.high_transmitted(), 0);
//! ```

pub mod forge;
pub mod hook;
pub mod rights;
pub mod setup;
pub mod status;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use crate::daemon::{Daemon, Ended, tail};
use crate::link::Link;
use crate::shell::wait_until;
use crate::snapshot::Snapshot;
use hook::HookRun;
use rights::Rights;
use setup::Setup;
use status::{Bundle, Status};

/// How long a test waits for things that should take a second or two, in case the machine is busy.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// A sender and a receiver with a link between them; everything is ended and removed when it is dropped.
#[derive(Debug)]
pub struct Pair {
    // In this order: daemons end first, then the link, then the files.
    sender: Option<Daemon>,
    receiver: Option<Daemon>,
    /// The link.
    pub link: Link,
    /// Files of the low side.
    pub low: Low,
    /// Files of the high side.
    pub high: High,
    bin: PathBuf,
    rights: Rights,
    /// Where both sides' files are.
    pub dir: TempDir,
}

/// Where the low side's files are.
#[derive(Clone, Debug)]
pub struct Low {
    /// `spool`.
    pub spool: PathBuf,
    /// `state`.
    pub state: PathBuf,
    /// Where bundles are made, on the file system of the spool.
    pub place: PathBuf,
    /// Keys: `link.key`, `signing.key`, `signing.key.pub`.
    pub keys: PathBuf,
    /// The config file.
    pub config: PathBuf,
    /// What the daemon printed.
    pub log: PathBuf,
}

/// Where the high side's files are.
#[derive(Clone, Debug)]
pub struct High {
    /// Where inbox, quarantine and state are.
    pub data: PathBuf,
    /// `inbox`.
    pub inbox: PathBuf,
    /// `quarantine`.
    pub quarantine: PathBuf,
    /// `state`.
    pub state: PathBuf,
    /// The install hook of channel `default`.
    pub hook: PathBuf,
    /// Keys: `link.key`, `trusted.d/`.
    pub keys: PathBuf,
    /// The config file.
    pub config: PathBuf,
    /// What the daemon printed.
    pub log: PathBuf,
    /// Where the test hook records its runs.
    pub runs: PathBuf,
}

/// A bundle that a test has put into the spool.
#[derive(Clone, Debug)]
pub struct Dropped {
    /// Its channel.
    pub channel: String,
    /// Its name.
    pub name: String,
    /// What it was.
    pub before: Snapshot,
}

impl Pair {
    /// Begins to describe a pair; [`Setup::start`] starts it.
    pub fn setup() -> Setup {
        Setup::default()
    }

    /// Keeps the sender from sending while `meanwhile` happens.
    ///
    /// # Panics
    /// When it does not run.
    pub fn with_sender_paused(&mut self, meanwhile: impl FnOnce(&mut Self)) {
        let sender = self.sender.take().expect("the sender runs");
        sender.pause();
        meanwhile(self);
        sender.resume();
        self.sender = Some(sender);
    }

    /// Where to make what is to be dropped under that name.
    pub fn place(&self, name: &str) -> PathBuf {
        self.low.place.join(name)
    }

    /// Renames what was made at [`Pair::place`] into the spool of channel `default`.
    pub fn drop(&self, name: &str) -> Dropped {
        self.drop_into("default", name)
    }

    /// Renames what was made at [`Pair::place`] into the spool of a channel.
    ///
    /// # Panics
    /// When it is not there.
    pub fn drop_into(&self, channel: &str, name: &str) -> Dropped {
        let from = self.place(name);
        let before = Snapshot::of(&from);
        let folder = self.low.spool.join(channel);
        std::fs::create_dir_all(&folder).expect("a spool folder can be made");
        std::fs::rename(&from, folder.join(name)).unwrap_or_else(|error| panic!("{from:?} into the spool: {error}"));
        Dropped { channel: channel.to_owned(), name: name.to_owned(), before }
    }

    /// Makes a small file bundle and drops it.
    pub fn drop_file(&self, name: &str, bytes: &[u8]) -> Dropped {
        crate::tree::file(&self.place(name), bytes, 0o644);
        self.drop(name)
    }

    /// Makes the directories of the high side anew, on what was just mounted at its `data`.
    ///
    /// # Panics
    /// When they are there.
    pub fn make_high(&self) {
        for directory in [&self.high.inbox, &self.high.quarantine, &self.high.state] {
            std::fs::create_dir(directory).expect("a directory can be made");
        }
    }

    /// Moves spool, state and the place where bundles are made to another directory, before the sender starts.
    ///
    /// # Panics
    /// When the directories cannot be made or the config cannot be written.
    pub fn move_low(&mut self, to: &Path) {
        let text = std::fs::read_to_string(&self.low.config).expect("the config can be read");
        let mut config: toml::Table = text.parse().expect("the config is TOML");
        for (key, path) in [("spool", &mut self.low.spool), ("state", &mut self.low.state)] {
            *path = to.join(key);
            std::fs::create_dir_all(&path).expect("a directory can be made");
            setup::set(&mut config, key, path.to_str().expect("test paths are plain text").into());
        }
        self.low.place = to.join("place");
        std::fs::create_dir_all(&self.low.place).expect("a directory can be made");
        std::fs::write(&self.low.config, config.to_string()).expect("the config can be written");
    }

    /// Starts a daemon (`sender` or `receiver`) that must fail to start. Returns how it ends, and what it says.
    ///
    /// # Panics
    /// When it comes up.
    pub fn refuses_to_start(&self, side: &str) -> (Option<i32>, String) {
        let (netns, config) = match side {
            "sender" => (&self.link.low, &self.low.config),
            _ => (&self.link.high, &self.high.config),
        };
        let program = self.bin.join(format!("checkvalve-{side}"));
        let mut command = netns.command("timeout");
        let out = command.args(["--signal=KILL", "20"]).arg(program).arg("run").arg("--config").arg(config).output();
        let out = out.expect("the program runs");
        assert_ne!(out.status.code(), Some(137), "the {side} runs");
        (out.status.code(), String::from_utf8_lossy(&out.stderr).into_owned())
    }

    /// All that a daemon printed.
    pub fn log_of(&self, side: &str) -> String {
        let log = if side == "sender" { &self.low.log } else { &self.high.log };
        String::from_utf8_lossy(&std::fs::read(log).unwrap_or_default()).into_owned()
    }

    /// Starts the sender and waits until it answers `status`.
    ///
    /// # Panics
    /// When it runs already, or does not come up.
    pub fn start_sender(&mut self) {
        assert!(self.sender.is_none(), "the sender runs already");
        let mut command = self.rights.sender(&self.link.low, &self.bin.join("checkvalve-sender"));
        command.arg("run").arg("--config").arg(&self.low.config);
        let mut daemon = Daemon::start(command, &self.low.log);
        self.wait_up(&mut daemon, &self.low.config.clone(), "checkvalve-sender");
        self.sender = Some(daemon);
    }

    /// Starts the receiver and waits until it answers `status`.
    ///
    /// # Panics
    /// When it runs already, or does not come up.
    pub fn start_receiver(&mut self) {
        assert!(self.receiver.is_none(), "the receiver runs already");
        let mut command = self.rights.receiver(&self.link.high, &self.bin.join("checkvalve-receiver"));
        command.arg("run").arg("--config").arg(&self.high.config);
        let mut daemon = Daemon::start(command, &self.high.log);
        self.wait_up(&mut daemon, &self.high.config.clone(), "checkvalve-receiver");
        self.receiver = Some(daemon);
    }

    /// The running sender.
    ///
    /// # Panics
    /// When it does not run.
    pub fn sender(&self) -> &Daemon {
        self.sender.as_ref().expect("the sender runs")
    }

    /// The running receiver.
    ///
    /// # Panics
    /// When it does not run.
    pub fn receiver(&self) -> &Daemon {
        self.receiver.as_ref().expect("the receiver runs")
    }

    /// Ends the sender with SIGTERM.
    ///
    /// # Panics
    /// When it does not run, or does not end with success.
    pub fn stop_sender(&mut self) -> Ended {
        let ended = self.sender.take().expect("the sender runs").stop();
        assert!(ended.status.success(), "the sender ended with {}:\n{}", ended.status, tail(&self.low.log));
        ended
    }

    /// Ends the receiver with SIGTERM.
    ///
    /// # Panics
    /// When it does not run, or does not end with success.
    pub fn stop_receiver(&mut self) -> Ended {
        let ended = self.receiver.take().expect("the receiver runs").stop();
        assert!(ended.status.success(), "the receiver ended with {}:\n{}", ended.status, tail(&self.high.log));
        ended
    }

    /// Ends the sender with SIGKILL.
    pub fn kill_sender(&mut self) {
        self.sender.take().expect("the sender runs").kill();
    }

    /// Ends the receiver with SIGKILL.
    pub fn kill_receiver(&mut self) {
        self.receiver.take().expect("the receiver runs").kill();
    }

    /// Runs a command of the sender's program: `checkvalve-sender WORDS… --config FILE`.
    pub fn sender_command(&self, words: &[&str]) -> Output {
        self.command("checkvalve-sender", words, &self.low.config)
    }

    /// Runs a command of the sender's program that needs no config.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn sender_command_bare(&self, words: &[&str]) -> Output {
        Command::new(self.bin.join("checkvalve-sender")).args(words).output().expect("the program runs")
    }

    /// Runs a command of the receiver's program: `checkvalve-receiver WORDS… --config FILE`.
    pub fn receiver_command(&self, words: &[&str]) -> Output {
        self.command("checkvalve-receiver", words, &self.high.config)
    }

    /// Starts `status --watch` of either program, with its output to be read.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn watch(&self, program: &str) -> Child {
        let config = if program == "checkvalve-sender" { &self.low.config } else { &self.high.config };
        let mut command = Command::new(self.bin.join(program));
        command
            .args(["status", "--watch", "--config"])
            .arg(config)
            .stdout(Stdio::piped())
            .spawn()
            .expect("the program runs")
    }

    /// As [`Pair::sender_command`], with a text on standard input.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn sender_command_with(&self, words: &[&str], input: &str) -> Output {
        self.command_with("checkvalve-sender", words, &self.low.config, input)
    }

    /// As [`Pair::receiver_command`], with a text on standard input.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn receiver_command_with(&self, words: &[&str], input: &str) -> Output {
        self.command_with("checkvalve-receiver", words, &self.high.config, input)
    }

    fn command_with(&self, program: &str, words: &[&str], config: &Path, input: &str) -> Output {
        let file = tempfile::NamedTempFile::new_in(self.dir.path()).expect("a file for the input");
        std::fs::write(file.path(), input).expect("the input is written");
        let stdin = std::fs::File::open(file.path()).expect("the input is read");
        let mut command = Command::new(self.bin.join(program));
        command.args(words).arg("--config").arg(config).stdin(stdin).output().expect("the program runs")
    }

    /// The sender's `status --json`, or `None` when it does not answer.
    pub fn sender_status(&self) -> Option<Status> {
        Status::from_output(&self.sender_command(&["status", "--json"]))
    }

    /// The receiver's `status --json`, or `None` when it does not answer.
    pub fn receiver_status(&self) -> Option<Status> {
        Status::from_output(&self.receiver_command(&["status", "--json"]))
    }

    /// Waits until the receiver says that the bundle's install hook is done.
    pub fn wait_installed(&self, bundle: &Dropped) -> Bundle {
        self.wait_state(bundle, &["installed"])
    }

    /// Waits until the receiver says one of these states of the bundle.
    ///
    /// # Panics
    /// When it does not within [`PATIENCE`].
    pub fn wait_state(&self, bundle: &Dropped, states: &[&str]) -> Bundle {
        self.wait_for(&format!("{} to be {states:?} on the high side", bundle.name), || {
            let found = self.receiver_status()?.find(&bundle.channel, &bundle.name)?;
            states.contains(&found.state.as_str()).then_some(found)
        })
    }

    /// Waits until the sender says one of these states of the bundle.
    ///
    /// # Panics
    /// When it does not within [`PATIENCE`].
    pub fn wait_sender_state(&self, bundle: &Dropped, states: &[&str]) -> Bundle {
        self.wait_for(&format!("{} to be {states:?} on the low side", bundle.name), || {
            let found = self.sender_status()?.find(&bundle.channel, &bundle.name)?;
            states.contains(&found.state.as_str()).then_some(found)
        })
    }

    /// Waits for anything.
    ///
    /// # Panics
    /// When it has not come within [`PATIENCE`], with a description of both sides.
    pub fn wait_for<T>(&self, what: &str, probe: impl FnMut() -> Option<T>) -> T {
        wait_until(PATIENCE, probe).unwrap_or_else(|| panic!("waited in vain for {what}\n{}", self.describe()))
    }

    /// Where a bundle with that sequence lands.
    pub fn landed(&self, bundle: &Dropped, sequence: u64) -> PathBuf {
        self.high.inbox.join(&bundle.channel).join(format!("{sequence:08}")).join(&bundle.name)
    }

    /// Checks that the bundle is in the inbox, the same in every respect as what was dropped.
    ///
    /// # Panics
    /// When it is not, with the first differences.
    pub fn assert_identical(&self, bundle: &Dropped) {
        let status = self.receiver_status().expect("the receiver answers");
        let found = status.find(&bundle.channel, &bundle.name).unwrap_or_else(|| panic!("{} in status", bundle.name));
        let differences = bundle.before.differences(&Snapshot::of(&self.landed(bundle, found.sequence)));
        assert!(differences.is_empty(), "{} did not arrive as it was dropped:\n{differences}", bundle.name);
    }

    /// What the test hook has recorded, in the order of its runs.
    pub fn hook_runs(&self) -> Vec<HookRun> {
        hook::runs(&self.high.runs)
    }

    /// All that is visible in the inbox, as paths relative to it; dot-files at the top are the receiver's own.
    pub fn inbox(&self) -> Vec<PathBuf> {
        let nodes = Snapshot::of(&self.high.inbox).0.into_keys();
        nodes.filter(|path| !path.as_os_str().is_empty() && !path.starts_with(".staging")).collect()
    }

    /// What both sides say of themselves, for a failing test.
    pub fn describe(&self) -> String {
        let status = |status: Option<Status>| status.map_or("no answer".to_owned(), |status| format!("{:#}", status.0));
        format!(
            "--- sender status\n{}\n--- sender log\n{}\n--- receiver status\n{}\n--- receiver log\n{}\n\
             --- link: {} frames out of it, {} lost by rule",
            status(self.sender_status()),
            tail(&self.low.log),
            status(self.receiver_status()),
            tail(&self.high.log),
            self.link.high_received(),
            self.link.lost(),
        )
    }

    fn command(&self, program: &str, words: &[&str], config: &Path) -> Output {
        let mut command = Command::new(self.bin.join(program));
        command.args(words).arg("--config").arg(config);
        command.output().unwrap_or_else(|error| panic!("cannot run {command:?}: {error}"))
    }

    fn wait_up(&self, daemon: &mut Daemon, config: &Path, program: &str) {
        let up = wait_until(Duration::from_secs(30), || {
            let answers = self.command(program, &["status", "--json"], config).status.success();
            (answers || !daemon.is_running()).then_some(answers)
        });
        assert!(up == Some(true) && daemon.is_running(), "{program} did not come up:\n{}", daemon.tail());
    }
}
