//! What a hook reads on its standard input: the manifest as one JSON object.
//!
//! It is a file, so that a hook that does not read it blocks nobody, and written entry by entry, so that a bundle of a
//! million entries costs no memory twice.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, BufWriter, Seek, Write};
use std::path::Path;

use checkvalve_protocol::manifest::{Announce, Entry, EntryKind};
use serde::Serialize;
use serde::ser::SerializeSeq;

use super::HookRun;

/// The object. Texts that are no UTF-8 have their bytes in a field that ends in `_hex` as well.
#[derive(Serialize)]
struct Input<'a> {
    bundle: String,
    channel: &'a str,
    sequence: u64,
    name: Cow<'a, str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    name_hex: Option<String>,
    bytes: u64,
    created_ms: u64,
    signer: Option<SignerInput<'a>>,
    stage: &'a str,
    attempt: u32,
    path: String,
    previous_path: Option<String>,
    entries: Entries<'a>,
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

struct Entries<'a> {
    entries: &'a [Entry],
    digests: &'a [[u8; 32]],
}

impl Serialize for Entries<'_> {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        let mut list = s.serialize_seq(Some(self.entries.len()))?;
        let mut digests = self.digests.iter();
        for entry in self.entries {
            list.serialize_element(&entry_input(entry, &mut digests))?;
        }
        list.end()
    }
}

/// Writes the input of a hook to `path` and opens it for reading; the caller may remove the name at once. `digests` are
/// the hashes of the announce's regular files in their order.
pub fn write(path: &Path, run: &HookRun, announce: &Announce, digests: &[[u8; 32]]) -> io::Result<File> {
    let file = File::options().read(true).write(true).create(true).truncate(true).open(path)?;
    let mut out = BufWriter::with_capacity(64 << 10, file);
    let input = Input {
        bundle: run.id.to_string(),
        channel: run.channel.as_str(),
        sequence: run.sequence,
        name: String::from_utf8_lossy(&run.name),
        name_hex: hex_unless_utf8(&run.name),
        bytes: announce.data_len(),
        created_ms: announce.created_ms,
        signer: run.signer.as_ref().map(|s| SignerInput { key: s.key.to_string(), name: &s.name }),
        stage: "install",
        attempt: run.attempt,
        path: super::path(run).to_string_lossy().into_owned(),
        previous_path: run.previous.as_ref().map(|path| path.to_string_lossy().into_owned()),
        entries: Entries { entries: &announce.entries, digests },
    };
    serde_json::to_writer(&mut out, &input)?;
    out.write_all(b"\n")?;
    let mut file = out.into_inner().map_err(io::IntoInnerError::into_error)?;
    file.rewind()?;
    Ok(file)
}

fn entry_input<'a>(entry: &'a Entry, digests: &mut std::slice::Iter<'_, [u8; 32]>) -> EntryInput<'a> {
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
    match &entry.kind {
        EntryKind::File { size, mode } => {
            input.kind = "file";
            input.size = Some(*size);
            input.mode = Some(format!("{mode:04o}"));
            input.blake3 = digests.next().map(|digest| blake3::Hash::from_bytes(*digest).to_hex().to_string());
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

fn hex_unless_utf8(bytes: &[u8]) -> Option<String> {
    if std::str::from_utf8(bytes).is_ok() {
        return None;
    }
    Some(bytes.iter().fold(String::new(), |mut hex, byte| {
        _ = write!(hex, "{byte:02x}");
        hex
    }))
}
