//! The hook as a process: started, watched, ended in time with all its children.

use std::fs::File;
use std::future::Future;
use std::io::{self, PipeWriter, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe::Receiver;
use tokio::process::{Child, Command};

use checkvalve_protocol::id::{BundleId, ChannelName};

use super::input::{Feed, Manifest};
use super::{HookRun, Outcome, environment, path};

/// Bytes of output that are kept per run.
pub const MAX_LOG: u64 = 1 << 20;
/// Runs of one bundle whose output is kept: the newest ones.
pub const KEPT_LOGS: u32 = 10;
/// How long a hook has between SIGTERM and SIGKILL.
pub const GRACE: Duration = Duration::from_secs(5);
/// How long output is still taken after the hook has ended, from children that it left behind.
const LINGER: Duration = Duration::from_millis(500);
/// Variables of the daemon that would mislead a hook.
const NOT_INHERITED: [&str; 6] =
    ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"];

/// `<logs>/<channel>/<sequence>-<id>.install.<attempt>.log`.
#[must_use]
pub fn log_path(logs: &Path, channel: &ChannelName, sequence: u64, id: BundleId, attempt: u32) -> PathBuf {
    logs.join(channel.as_str()).join(format!("{sequence:08}-{id}.install.{attempt}.log"))
}

/// Runs a hook to its end. Its standard input is made from `manifest` while it runs, its output goes to [`log_path`] in `logs`, [`MAX_LOG`]
/// bytes at most. When `stop` is ready the hook is ended, with all of its process group.
pub async fn run(run: &HookRun, manifest: Manifest, logs: &Path, stop: impl Future<Output = ()>) -> Outcome {
    if std::fs::symlink_metadata(path(run)).is_err() {
        return Outcome::Failed("the bundle is not in the inbox any more".into());
    }
    let mut log = match Log::create(logs, run) {
        Ok(log) => log,
        Err(error) => return Outcome::NotStarted(format!("its log cannot be written: {error}")),
    };
    let started = Instant::now();
    let outcome = match start(run) {
        Ok((child, output, input)) => match Feed::start(input, run, manifest) {
            Ok(feed) => watch(run, child, output, feed, &mut log, stop).await,
            Err(error) => {
                let mut child = child;
                end_group(&mut child).await;
                Outcome::NotStarted(format!("its input: {error}"))
            }
        },
        Err(error) => Outcome::NotStarted(format!("{}: {error}", run.policy.install.display())),
    };
    log.end(&outcome, started.elapsed());
    outcome
}

fn start(run: &HookRun) -> io::Result<(Child, Receiver, PipeWriter)> {
    let (output, writer) = io::pipe()?;
    let (stdin, input) = io::pipe()?;
    let mut command = Command::new(&run.policy.install);
    command
        .arg(path(run))
        .current_dir(&run.directory)
        .envs(environment(run))
        .stdin(Stdio::from(stdin))
        .stdout(Stdio::from(writer.try_clone()?))
        .stderr(Stdio::from(writer))
        .process_group(0);
    for name in NOT_INHERITED {
        command.env_remove(name);
    }
    let child = command.spawn()?;
    drop(command); // and with it the hook's ends of the pipes
    Ok((child, Receiver::from_owned_fd(OwnedFd::from(output))?, input))
}

async fn watch(
    run: &HookRun,
    mut child: Child,
    mut output: Receiver,
    feed: Feed,
    log: &mut Log,
    stop: impl Future<Output = ()>,
) -> Outcome {
    let mut buf = vec![0; 16 << 10];
    let mut open = true;
    let deadline = tokio::time::sleep(run.policy.timeout);
    tokio::pin!(deadline, stop);
    let ended = loop {
        tokio::select! {
            status = child.wait() => break status.map(outcome),
            () = &mut deadline => {
                end_group(&mut child).await;
                break Ok(Outcome::TimedOut(run.policy.timeout));
            }
            () = &mut stop => {
                end_group(&mut child).await;
                break Ok(Outcome::Interrupted);
            }
            read = output.read(&mut buf), if open => match read {
                Ok(n) if n > 0 => log.take(buf.get(..n).unwrap_or_default()),
                _ => open = false,
            },
        }
    };
    // Children that it left behind get no more of it.
    drop(feed);
    let rest = async {
        while let Ok(n @ 1..) = output.read(&mut buf).await {
            log.take(buf.get(..n).unwrap_or_default());
        }
    };
    // A child that it left behind may keep the pipe open for ever.
    drop(tokio::time::timeout(LINGER, rest).await);
    ended.unwrap_or_else(|error| Outcome::Failed(format!("cannot be waited for: {error}")))
}

fn outcome(status: ExitStatus) -> Outcome {
    match (status.code(), status.signal()) {
        (Some(code), _) => Outcome::of_code(code),
        (None, Some(signal)) => Outcome::Failed(format!("signal {signal}")),
        (None, None) => Outcome::Failed("unknown end".into()),
    }
}

/// Ends the hook and all of its process group: SIGTERM, and SIGKILL once the hook itself has gone or [`GRACE`] is over.
///
/// The hook is not reaped before that: until then its number, which is the group's too, belongs to nobody else.
async fn end_group(child: &mut Child) {
    let Some(group) = child.id().and_then(|id| Pid::from_raw(id.cast_signed())) else { return };
    signal(group, Signal::TERM);
    let exited = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    let until = Instant::now() + GRACE;
    while Instant::now() < until && !matches!(waitid(WaitId::Pid(group), exited), Ok(Some(_))) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    signal(group, Signal::KILL);
    if let Err(error) = child.wait().await {
        tracing::error!(%error, "a hook that was ended cannot be waited for");
    }
}

fn signal(group: Pid, signal: Signal) {
    match kill_process_group(group, signal) {
        Err(error) if error != rustix::io::Errno::SRCH => tracing::error!(%error, ?signal, "a hook cannot be ended"),
        _ => {}
    }
}

/// The log file of one run.
struct Log {
    file: File,
    left: u64,
    /// The last byte was a line feed, or there is none.
    at_line_start: bool,
}

impl Log {
    fn create(logs: &Path, run: &HookRun) -> io::Result<Self> {
        let of_attempt = |attempt: u32| log_path(logs, &run.channel, run.sequence, run.id, attempt);
        let path = of_attempt(run.attempt);
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir)?;
        }
        if let Some(old) = run.attempt.checked_sub(KEPT_LOGS) {
            match std::fs::remove_file(of_attempt(old)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(Self { file: File::create(path)?, left: MAX_LOG, at_line_start: true })
    }

    fn take(&mut self, bytes: &[u8]) {
        let len = usize::try_from(self.left).unwrap_or(usize::MAX).min(bytes.len());
        let kept = bytes.get(..len).unwrap_or_default();
        if let Some(last) = kept.last() {
            self.at_line_start = *last == b'\n';
        }
        self.left -= kept.len() as u64;
        // A full disk must not fail the hook.
        drop(self.file.write_all(kept));
        if self.left == 0 && !kept.is_empty() {
            drop(self.file.write_all(b"\n[checkvalve] the output after this is not kept\n"));
            self.at_line_start = true;
        }
    }

    fn end(&mut self, outcome: &Outcome, took: Duration) {
        let feed = if self.at_line_start { "" } else { "\n" };
        drop(writeln!(self.file, "{feed}[checkvalve] {outcome}, after {:.3} s", took.as_secs_f64()));
    }
}
