//! What a hook reads on its standard input: the manifest as one JSON object.
//!
//! It is written through a pipe while the hook runs, entry by entry, so that a bundle of a million entries costs neither
//! disk nor memory. A hook need not read it: nobody waits for that.

use std::borrow::Cow;
use std::io::{self, BufWriter, PipeReader, PipeWriter, Write};
use std::thread::JoinHandle;

use checkvalve_host::json::{SCHEMA, Stamp, hex, hex_unless_utf8};
use checkvalve_protocol::manifest::{Announce, Entries, EntryKind, EntryRef};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{OFlags, fcntl_setfl};
use serde::Serialize;
use serde::ser::SerializeSeq;

use super::HookRun;

/// The object. Texts that are no UTF-8 have their bytes in a field that ends in `_hex` as well.
#[derive(Serialize)]
struct Input<'a> {
    schema: u32,
    bundle: String,
    channel: &'a str,
    sequence: u64,
    name: Cow<'a, str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    name_hex: Option<String>,
    bytes: u64,
    created_at: Stamp,
    signer: Option<SignerInput<'a>>,
    stage: &'a str,
    attempt: u32,
    path: String,
    previous_path: Option<String>,
    entries: Listed<'a>,
}

#[derive(Serialize)]
struct SignerInput<'a> {
    key: String,
    name: &'a str,
}

#[derive(Serialize)]
struct EntryInput<'a> {
    path: Cow<'a, str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    path_hex: Option<String>,
    kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    size: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mode: Option<String>,
    mtime: i64,
    mtime_nanos: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    blake3: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    target_hex: Option<String>,
}

struct Listed<'a> {
    entries: &'a Entries,
    digests: &'a [[u8; 32]],
}

impl Serialize for Listed<'_> {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        let mut list = s.serialize_seq(Some(self.entries.len()))?;
        let mut digests = self.digests.iter();
        for entry in self.entries {
            list.serialize_element(&entry_input(entry, &mut digests))?;
        }
        list.end()
    }
}

/// What the input is made from: the announce, and the hashes of its regular files in their order.
pub struct Manifest {
    /// The announce.
    pub announce: Announce,
    /// A BLAKE3 for each of [`Announce::files`].
    pub digests: Vec<[u8; 32]>,
}

/// Writes to a hook's standard input, from a thread of its own. Dropped, it ends within a moment, whatever the hook does.
pub(super) struct Feed {
    stop: Option<PipeWriter>,
    thread: Option<JoinHandle<()>>,
}

impl Feed {
    /// Begins to write to `pipe`, which the hook reads. Errors: there is no thread or no pipe to be had.
    pub(super) fn start(pipe: PipeWriter, run: &HookRun, manifest: Manifest) -> io::Result<Self> {
        fcntl_setfl(&pipe, OFlags::NONBLOCK)?;
        let (stopped, stop) = io::pipe()?;
        let run = run.clone();
        let feed = move || {
            let mut out = BufWriter::with_capacity(64 << 10, Stoppable { pipe, stopped });
            match write(&mut out, &run, &manifest).and_then(|()| out.flush()) {
                // The hook has read what it wanted, or has ended.
                Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                    tracing::warn!(bundle = %run.id, %error, "a hook's standard input cannot be written");
                }
                _ => {}
            }
            // What is left in the buffer is not for anybody.
            drop(out.into_parts());
        };
        let thread = std::thread::Builder::new().name("hook-input".into()).spawn(feed)?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }

    #[cfg(test)]
    pub(super) fn is_over(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        drop(self.stop.take());
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread of a hook's standard input panicked");
        }
    }
}

/// A pipe whose writer waits for room until it is told to stop.
struct Stoppable {
    pipe: PipeWriter,
    /// Closed at its other end when nobody is to wait any more.
    stopped: PipeReader,
}

impl Write for Stoppable {
    /// Errors: `BrokenPipe` when nobody reads any more, or it was stopped.
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        loop {
            let mut fds = [PollFd::new(&self.pipe, PollFlags::OUT), PollFd::new(&self.stopped, PollFlags::IN)];
            match poll(&mut fds, None) {
                Err(rustix::io::Errno::INTR) => continue,
                other => other?,
            };
            if !fds[1].revents().is_empty() {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            match self.pipe.write(buf) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                other => return other,
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes the input of a hook, entry by entry. Errors: those of `out`.
pub fn write(out: &mut dyn Write, run: &HookRun, manifest: &Manifest) -> io::Result<()> {
    let announce = &manifest.announce;
    let input = Input {
        schema: SCHEMA,
        bundle: run.id.to_string(),
        channel: run.channel.as_str(),
        sequence: run.sequence,
        name: String::from_utf8_lossy(&run.name),
        name_hex: hex_unless_utf8(&run.name),
        bytes: announce.data_len(),
        created_at: Stamp(announce.created_ms),
        signer: run.signer.as_ref().map(|s| SignerInput { key: s.key.to_string(), name: &s.name }),
        stage: "install",
        attempt: run.attempt,
        path: super::path(run).to_string_lossy().into_owned(),
        previous_path: run.previous.as_ref().map(|path| path.to_string_lossy().into_owned()),
        entries: Listed { entries: &announce.entries, digests: &manifest.digests },
    };
    serde_json::to_writer(&mut *out, &input)?;
    out.write_all(b"\n")
}

fn entry_input<'a>(entry: EntryRef<'a>, digests: &mut std::slice::Iter<'_, [u8; 32]>) -> EntryInput<'a> {
    let bytes = entry.path.as_bytes();
    let mut input = EntryInput {
        path: String::from_utf8_lossy(bytes),
        path_hex: hex_unless_utf8(bytes),
        kind: "directory",
        size: None,
        mode: None,
        mtime: entry.mtime.secs,
        mtime_nanos: entry.mtime.nanos,
        blake3: None,
        target: None,
        target_hex: None,
    };
    match entry.kind {
        EntryKind::File { size, mode } => {
            input.kind = "file";
            input.size = Some(size);
            input.mode = Some(format!("{mode:04o}"));
            input.blake3 = digests.next().map(|digest| hex(digest));
        }
        EntryKind::Directory { mode } => input.mode = Some(format!("{mode:04o}")),
        EntryKind::Symlink { target } => {
            input.kind = "symlink";
            input.target = Some(String::from_utf8_lossy(target.as_bytes()));
            input.target_hex = hex_unless_utf8(target.as_bytes());
        }
    }
    input
}
