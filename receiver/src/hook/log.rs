//! The log file of one run of a hook. A thread of its own writes it: a disk that stands still holds up the hook, when more than
//! [`AHEAD`] waits, and nobody else.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use checkvalve_protocol::id::{BundleId, ChannelName};
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, spawn_blocking};

use super::{HookRun, Outcome};

/// Bytes of output that are kept per run.
pub const MAX_LOG: u64 = 1 << 20;
/// Runs of one bundle whose output is kept: the newest ones.
pub const KEPT_LOGS: u32 = 10;
/// Pieces of output that wait to be written.
const AHEAD: usize = 16;

/// `<logs>/<channel>/<sequence>-<id>.install.<attempt>.log`.
#[must_use]
pub fn log_path(logs: &Path, channel: &ChannelName, sequence: u64, id: BundleId, attempt: u32) -> PathBuf {
    logs.join(channel.as_str()).join(format!("{sequence:08}-{id}.install.{attempt}.log"))
}

/// Where the output of a run goes.
pub(super) struct Log {
    output: mpsc::Sender<Vec<u8>>,
    writer: JoinHandle<LogFile>,
}

/// Room for one more piece of output.
pub(super) struct Room<'a>(mpsc::Permit<'a, Vec<u8>>);

struct LogFile {
    file: File,
    left: u64,
    /// The last byte was a line feed, or there is none.
    at_line_start: bool,
}

impl Log {
    /// Makes the log of this run, and removes the one that is too many. Errors: the disk's.
    pub(super) async fn create(logs: &Path, run: &HookRun) -> io::Result<Self> {
        let of_attempt = |attempt: u32| log_path(logs, &run.channel, run.sequence, run.id, attempt);
        let (path, old) = (of_attempt(run.attempt), run.attempt.checked_sub(KEPT_LOGS).map(of_attempt));
        let file = spawn_blocking(move || create(&path, old.as_deref())).await.map_err(io::Error::other)??;
        let (output, mut pieces) = mpsc::channel::<Vec<u8>>(AHEAD);
        let writer = spawn_blocking(move || {
            let mut log = LogFile { file, left: MAX_LOG, at_line_start: true };
            while let Some(piece) = pieces.blocking_recv() {
                log.take(&piece);
            }
            log
        });
        Ok(Self { output, writer })
    }

    /// Waits until there is room for a piece of output. None: nothing is written any more.
    pub(super) async fn room(&self) -> Option<Room<'_>> {
        self.output.reserve().await.ok().map(Room)
    }

    /// Writes what is there, and how the run ended.
    pub(super) async fn end(self, outcome: &Outcome, took: Duration) {
        let Self { output, writer } = self;
        drop(output);
        let line = format!("[checkvalve] {outcome}, after {:.3} s\n", took.as_secs_f64());
        let Ok(log) = writer.await else { return };
        drop(spawn_blocking(move || log.end(&line)).await);
    }
}

impl Room<'_> {
    pub(super) fn take(self, bytes: &[u8]) {
        self.0.send(bytes.to_vec());
    }
}

fn create(path: &Path, old: Option<&Path>) -> io::Result<File> {
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir)?;
    }
    match old.map_or(Ok(()), std::fs::remove_file) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    File::create(path)
}

impl LogFile {
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

    fn end(mut self, line: &str) {
        let feed = if self.at_line_start { "" } else { "\n" };
        drop(self.file.write_all(format!("{feed}{line}").as_bytes()));
    }
}
