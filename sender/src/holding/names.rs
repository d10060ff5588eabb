//! Names in `.failed`.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use checkvalve_protocol::limits::MAX_NAME_LEN;

/// The name for a refused bundle and that of the note beside it: `NAME` and `NAME.reason`, or with `.1`, `.2` … when those
/// are taken. A name that is too long for that loses its end.
pub(super) fn pair(name: &OsStr, number: u32) -> (OsString, OsString) {
    let suffix = if number == 0 { String::new() } else { format!(".{number}") };
    (with_suffix(name, &suffix), with_suffix(name, &format!("{suffix}.reason")))
}

fn with_suffix(name: &OsStr, suffix: &str) -> OsString {
    let mut bytes = name.as_bytes().to_vec();
    bytes.truncate(MAX_NAME_LEN - suffix.len());
    bytes.extend_from_slice(suffix.as_bytes());
    OsString::from_vec(bytes)
}
