//! One daemon as a real process: started, watched, ended.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::shell::wait_until;

/// A running daemon; killed when dropped. Its standard output and error go to a log file.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    log: PathBuf,
}

/// How a daemon ended, and what it had used until just before.
#[derive(Clone, Copy, Debug)]
pub struct Ended {
    /// Its exit status.
    pub status: ExitStatus,
    /// What it had used.
    pub usage: Usage,
}

/// What a process has used so far.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Usage {
    /// Largest resident set so far, in bytes (`VmHWM`).
    pub peak_rss: u64,
    /// Resident set now, in bytes (`VmRSS`).
    pub rss: u64,
    /// Processor time so far, user and system, in seconds.
    pub cpu_seconds: f64,
}

impl Daemon {
    /// Starts `command`, appending what it prints to `log`.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn start(mut command: Command, log: &Path) -> Self {
        let out = File::options().append(true).create(true).open(log).expect("the log can be written");
        let err = out.try_clone().expect("a file handle can be cloned");
        command.stdin(Stdio::null()).stdout(out).stderr(err);
        let child = command.spawn().unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
        Self { child, log: log.to_owned() }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// What it has used so far.
    ///
    /// # Panics
    /// When it does not run any more.
    pub fn usage(&self) -> Usage {
        let proc = PathBuf::from(format!("/proc/{}", self.pid()));
        let status = std::fs::read_to_string(proc.join("status")).expect("a running process has a status");
        let kib = |key: &str| -> u64 {
            let line = status.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_default();
            line.trim_start_matches(':').trim().trim_end_matches(" kB").parse().unwrap_or(0)
        };
        let stat = std::fs::read_to_string(proc.join("stat")).expect("a running process has a stat");
        let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
        let ticks: u64 = fields[11..13].iter().map(|field| field.parse::<u64>().expect("ticks")).sum();
        #[expect(clippy::cast_precision_loss, reason = "a few thousand ticks")]
        let cpu_seconds = ticks as f64 / rustix::param::clock_ticks_per_second() as f64;
        Usage { peak_rss: kib("VmHWM") << 10, rss: kib("VmRSS") << 10, cpu_seconds }
    }

    /// Ends it as a service manager would (SIGTERM) and waits.
    ///
    /// # Panics
    /// When it has ended before, or has not ended 20 s later.
    pub fn stop(mut self) -> Ended {
        assert!(self.is_running(), "the daemon had ended by itself:\n{}", self.tail());
        let usage = self.usage();
        self.signal(Signal::TERM);
        let status = self.wait(Duration::from_secs(20));
        Ended { status: status.unwrap_or_else(|| panic!("still running 20 s after SIGTERM:\n{}", self.tail())), usage }
    }

    /// Ends it with SIGKILL, which looks like a power cut to the daemon.
    pub fn kill(mut self) {
        self.signal(Signal::KILL);
        self.child.wait().expect("a child can be waited for");
    }

    /// Stops it where it is (SIGSTOP), until [`Daemon::resume`].
    pub fn pause(&self) {
        self.signal(Signal::STOP);
    }

    /// Lets it go on.
    pub fn resume(&self) {
        self.signal(Signal::CONT);
    }

    /// Waits for it to end by itself.
    pub fn wait(&mut self, limit: Duration) -> Option<ExitStatus> {
        wait_until(limit, || self.child.try_wait().expect("a child can be waited for"))
    }

    /// The last 40 lines that it printed.
    pub fn tail(&self) -> String {
        tail(&self.log)
    }

    fn signal(&self, signal: Signal) {
        let _ = kill_process(Pid::from_child(&self.child), signal);
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The last 40 lines of a log.
pub fn tail(log: &Path) -> String {
    let text = String::from_utf8_lossy(&std::fs::read(log).unwrap_or_default()).into_owned();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(40)..].join("\n")
}
