//! The keys that were trusted when the daemon ran last, in `trust.json` in the state directory: what has changed since goes to
//! the audit trail.
//!
//! Version 2 is an object with `schema`, `program` and `keys`. Version 1 was the map of keys alone.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use checkvalve_host::disk::{Disk, read_all, write_atomic};
use checkvalve_host::version::{Newer, PROGRAM};
use checkvalve_protocol::id::KeyId;
use serde::{Deserialize, Serialize};

/// Of what is written.
const SCHEMA: u32 = 2;
/// Longest file that is read, in bytes.
const MAX_LEN: u64 = 16 << 20;

/// What keys are called.
type Keys = BTreeMap<KeyId, String>;

#[derive(Serialize, Deserialize)]
struct Trusted {
    schema: u32,
    program: String,
    keys: Keys,
}

/// What every version but the first has.
#[derive(Deserialize)]
struct Head {
    #[serde(default)]
    schema: u32,
    #[serde(default)]
    program: String,
}

/// Reads the list. One that is missing or damaged is empty. Errors: of the disk; a [`Newer`] program wrote it.
pub(super) fn read(disk: &dyn Disk, path: &Path) -> io::Result<Keys> {
    let bytes = match read_all(disk, path, MAX_LEN) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Keys::new()),
        bytes => bytes?,
    };
    let keys = match serde_json::from_slice::<Head>(&bytes) {
        Ok(Head { schema: version, program }) if version > SCHEMA => {
            let path = path.to_owned();
            return Err(io::Error::other(Newer { path, program, what: "a list", version, known: SCHEMA }));
        }
        Ok(Head { schema: SCHEMA, .. }) => serde_json::from_slice::<Trusted>(&bytes).map(|trusted| trusted.keys),
        _ => serde_json::from_slice(&bytes),
    };
    Ok(keys.unwrap_or_else(|error| {
        tracing::warn!(%error, path = %path.display(), "not readable: every key counts as new");
        Keys::new()
    }))
}

/// Replaces the list.
pub(super) fn write(disk: &dyn Disk, path: &Path, keys: Keys) -> io::Result<()> {
    let trusted = Trusted { schema: SCHEMA, program: PROGRAM.to_owned(), keys };
    let json = serde_json::to_vec(&trusted).map_err(io::Error::other)?;
    write_atomic(disk, path, &json, 0o640)
}

#[cfg(test)]
mod tests {
    use super::*;
    use checkvalve_host::disk::OsDisk;

    #[test]
    fn every_version_is_read_and_a_newer_one_refused() {
        let dir = crate::testing::dir();
        let path = dir.path().join("trust.json");
        let keys = Keys::from([(KeyId([1; 8]), "ci \"x\"".to_owned()), (KeyId([0xfe; 8]), String::new())]);
        assert_eq!(read(&OsDisk, &path).unwrap(), Keys::new());
        let one = r#"{"0101010101010101":"ci \"x\"","fefefefefefefefe":""}"#;
        std::fs::write(&path, one).unwrap();
        assert_eq!(read(&OsDisk, &path).unwrap(), keys);
        write(&OsDisk, &path, keys.clone()).unwrap();
        let two = format!(r#"{{"schema":2,"program":"{PROGRAM}","keys":{one}}}"#);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), two, "a version is never changed");
        assert_eq!(read(&OsDisk, &path).unwrap(), keys);
        std::fs::write(&path, &two[..40]).unwrap();
        assert_eq!(read(&OsDisk, &path).unwrap(), Keys::new());
        let newer = r#"{"schema":3,"program":"0.4.0","keys":[]}"#;
        std::fs::write(&path, newer).unwrap();
        let expected = format!(
            "{}: written by checkvalve 0.4.0 (a list of version 3; this program reads up to 2); run that version or a newer one",
            path.display()
        );
        assert_eq!(read(&OsDisk, &path).unwrap_err().to_string(), expected);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), newer);
    }
}
