//! The log file of one run of a hook. A thread of its own writes it: a disk that stands still holds up the hook, when more than
//! [`AHEAD`] waits, and nobody else.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use checkvalve_protocol::id::{BundleId, ChannelName};
use tokio::sync::{mpsc, oneshot};

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

/// The logs of a bundle's runs that are kept, the newest of which was start number `newest`.
pub fn kept_logs(
    logs: &Path,
    channel: &ChannelName,
    sequence: u64,
    id: BundleId,
    newest: u32,
) -> impl Iterator<Item = PathBuf> {
    let first = newest.saturating_sub(KEPT_LOGS - 1).max(1);
    (first..=newest).map(move |attempt| log_path(logs, channel, sequence, id, attempt))
}

/// Where the output of a run goes.
pub(super) struct HookLog {
    pieces: mpsc::Sender<Piece>,
    written: oneshot::Receiver<()>,
}

enum Piece {
    Output(Vec<u8>),
    /// The last line.
    End(String),
}

/// Room for one more piece of output.
pub(super) struct Room<'a>(mpsc::Permit<'a, Piece>);

struct LogFile {
    file: File,
    left: u64,
    /// The last byte was a line feed, or there is none.
    at_line_start: bool,
}

impl HookLog {
    /// Makes the log of this run, and removes the one that is too many. None: the bundle is not there. Errors: the disk's.
    pub(super) async fn create(logs: &Path, run: &HookRun) -> io::Result<Option<Self>> {
        let of_attempt = |attempt: u32| log_path(logs, &run.channel, run.sequence, run.id, attempt);
        let (path, old) = (of_attempt(run.attempt), run.attempt.checked_sub(KEPT_LOGS).map(of_attempt));
        let bundle = super::path(run);
        let (pieces, received) = mpsc::channel(AHEAD);
        let (tell, made) = oneshot::channel();
        let (done, written) = oneshot::channel();
        std::thread::Builder::new().name("hook-log".into()).spawn(move || {
            if std::fs::symlink_metadata(bundle).is_err() {
                return drop(tell.send(Ok(None)));
            }
            let file = match create(&path, old.as_deref()) {
                Ok(file) => file,
                Err(error) => return drop(tell.send(Err(error))),
            };
            drop(tell.send(Ok(Some(()))));
            write(file, received);
            // Nobody waits for it if the run was given up.
            let _ = done.send(());
        })?;
        let made = made.await.map_err(io::Error::other)??;
        Ok(made.map(|()| Self { pieces, written }))
    }

    /// Waits until there is room for a piece of output. None: nothing is written any more.
    pub(super) async fn room(&self) -> Option<Room<'_>> {
        self.pieces.reserve().await.ok().map(Room)
    }

    /// Writes what is there, and how the run ended.
    pub(super) async fn end(self, outcome: &Outcome, took: Duration) {
        let Self { pieces, written } = self;
        let line = format!("[checkvalve] {outcome}, after {:.3} s\n", took.as_secs_f64());
        drop(pieces.send(Piece::End(line)).await);
        drop(pieces);
        drop(written.await);
    }
}

impl Room<'_> {
    pub(super) fn take(self, bytes: &[u8]) {
        self.0.send(Piece::Output(bytes.to_vec()));
    }
}

fn write(file: File, mut pieces: mpsc::Receiver<Piece>) {
    let mut log = LogFile { file, left: MAX_LOG, at_line_start: true };
    while let Some(piece) = pieces.blocking_recv() {
        match piece {
            Piece::Output(bytes) => log.take(&bytes),
            Piece::End(line) => log.end(&line),
        }
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

    fn end(&mut self, line: &str) {
        let feed = if self.at_line_start { "" } else { "\n" };
        drop(self.file.write_all(format!("{feed}{line}").as_bytes()));
    }
}
