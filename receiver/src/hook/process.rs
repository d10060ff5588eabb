//! The hook as a process: started, watched, ended in time with all its children.

use std::future::Future;
use std::io::{self, PipeWriter};
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe::Receiver;
use tokio::process::{Child, Command};

use super::input::{Feed, Manifest};
use super::log::{HookLog, MAX_LOG};
use super::{HookRun, Outcome, environment, path};

/// How long a hook has between SIGTERM and SIGKILL.
pub const GRACE: Duration = Duration::from_secs(5);
/// How long output is still taken after the hook has ended, from children that it left behind.
const LINGER: Duration = Duration::from_millis(500);
/// Variables of the daemon that would mislead a hook.
const NOT_INHERITED: [&str; 6] =
    ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"];

/// Runs a hook to its end. Its standard input is made from `manifest` while it runs, its output goes to [`log_path`](super::log::log_path) in
/// `logs`, [`MAX_LOG`] bytes at most. Waits for a disk in another thread only. When `stop` is ready the
/// hook is ended, with all of its process group.
pub async fn run(run: &HookRun, manifest: Manifest, logs: &Path, stop: impl Future<Output = ()>) -> Outcome {
    let log = match HookLog::create(logs, run).await {
        Ok(Some(log)) => log,
        Ok(None) => return Outcome::Failed("the bundle is not in the inbox any more".into()),
        Err(error) => return Outcome::NotStarted(format!("its log cannot be written: {error}")),
    };
    let started = Instant::now();
    let outcome = match start(run) {
        Ok((child, output, input)) => match Feed::start(input, run, manifest) {
            Ok(feed) => watch(run, child, output, feed, &log, stop).await,
            Err(error) => {
                let mut child = child;
                end_group(&mut child).await;
                Outcome::NotStarted(format!("its input: {error}"))
            }
        },
        Err(error) => Outcome::NotStarted(format!("{}: {error}", run.policy.install.display())),
    };
    log.end(&outcome, started.elapsed()).await;
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
    log: &HookLog,
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
            more = piece(log, &mut output, &mut buf), if open => open = more,
        }
    };
    // Children that it left behind get no more of it.
    drop(feed);
    rest(log, &mut output, &mut buf).await;
    ended.unwrap_or_else(|error| Outcome::Failed(format!("cannot be waited for: {error}")))
}

/// One piece of output, to the log. False: there is no more. Nothing is lost if it is given up while it waits.
async fn piece(log: &HookLog, output: &mut Receiver, buf: &mut [u8]) -> bool {
    let Some(room) = log.room().await else { return false };
    match output.read(buf).await {
        Ok(n @ 1..) => {
            room.take(buf.get(..n).unwrap_or_default());
            true
        }
        _ => false,
    }
}

/// Reads what is left in the pipe after the hook has ended, however slow the log's disk is. Time and bytes are limited,
/// since a child that the hook left behind may keep the pipe open, or write, for ever.
async fn rest(log: &HookLog, output: &mut Receiver, buf: &mut [u8]) {
    let (mut left, mut bytes) = (LINGER, 0);
    while let Some(room) = log.room().await {
        let asked = Instant::now();
        let Ok(Ok(n @ 1..)) = tokio::time::timeout(left, output.read(buf)).await else { return };
        room.take(buf.get(..n).unwrap_or_default());
        left = left.saturating_sub(asked.elapsed());
        bytes += n as u64;
        if bytes > MAX_LOG {
            return;
        }
    }
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
        Err(error) if error != rustix::io::Errno::SRCH => {
            tracing::error!(%error, signal = signal.as_raw(), "a hook cannot be ended");
        }
        _ => {}
    }
}
