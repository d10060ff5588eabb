//! Exit codes of the daemons and their commands: sysexits(3), and what a hook may answer with.

use std::io;
use std::process::{ExitCode, Termination};

use serde::{Deserialize, Serialize};

use crate::version::Newer;

/// Why a process ended, from `sysexits.h`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "u8", try_from = "u8")]
#[repr(u8)]
pub enum Exit {
    /// Done.
    Ok = 0,
    /// The command line is wrong.
    Usage = 64,
    /// What was given to work on is wrong: a bundle, a ticket, a signature.
    DataErr = 65,
    /// What was named is not there: a path, a bundle.
    NoInput = 66,
    /// The daemon is not running.
    Unavailable = 69,
    /// A fault of this program.
    Software = 70,
    /// The system said no: no more files, threads, memory.
    OsErr = 71,
    /// A file could not be created.
    CantCreat = 73,
    /// Reading or writing failed.
    IoErr = 74,
    /// It may work later.
    TempFail = 75,
    /// The other side said something that it may not say.
    Protocol = 76,
    /// Not allowed.
    NoPerm = 77,
    /// The configuration is wrong, or a newer version of the program wrote the state: to start again does not help.
    Config = 78,
}

impl Exit {
    const ALL: [Self; 13] = [
        Self::Ok,
        Self::Usage,
        Self::DataErr,
        Self::NoInput,
        Self::Unavailable,
        Self::Software,
        Self::OsErr,
        Self::CantCreat,
        Self::IoErr,
        Self::TempFail,
        Self::Protocol,
        Self::NoPerm,
        Self::Config,
    ];

    /// The number that the process ends with.
    #[must_use]
    pub fn code(self) -> u8 {
        self as u8
    }

    /// The one that a process ended with `code`, if it is one of these.
    #[must_use]
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|exit| exit.code() == code)
    }

    /// What fits an I/O error.
    #[must_use]
    pub fn from_io(error: &io::Error) -> Self {
        if error.get_ref().is_some_and(|inner| inner.is::<Newer>()) {
            return Self::Config;
        }
        match error.kind() {
            io::ErrorKind::NotFound => Self::NoInput,
            io::ErrorKind::PermissionDenied => Self::NoPerm,
            io::ErrorKind::AlreadyExists | io::ErrorKind::ReadOnlyFilesystem => Self::CantCreat,
            io::ErrorKind::StorageFull
            | io::ErrorKind::QuotaExceeded
            | io::ErrorKind::TimedOut
            | io::ErrorKind::WouldBlock
            | io::ErrorKind::Interrupted => Self::TempFail,
            io::ErrorKind::OutOfMemory => Self::OsErr,
            _ => Self::IoErr,
        }
    }
}

impl From<Exit> for u8 {
    fn from(exit: Exit) -> Self {
        exit.code()
    }
}

impl TryFrom<u8> for Exit {
    type Error = String;
    fn try_from(code: u8) -> Result<Self, String> {
        Self::from_code(code).ok_or_else(|| format!("{code} is not an exit code of sysexits"))
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}

impl Termination for Exit {
    fn report(self) -> ExitCode {
        self.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_those_of_sysexits_and_back() {
        for exit in Exit::ALL {
            assert_eq!(Exit::from_code(exit.code()), Some(exit));
        }
        assert_eq!((Exit::Usage.code(), Exit::TempFail.code(), Exit::Config.code()), (64, 75, 78));
        assert_eq!(Exit::from_code(1), None);
        assert_eq!(serde_json::to_string(&Exit::Config).unwrap(), "78");
        assert!(serde_json::from_str::<Exit>("1").is_err());
    }

    #[test]
    fn io_errors_say_whether_to_try_again() {
        let exit = |code| Exit::from_io(&io::Error::from_raw_os_error(code));
        assert_eq!(exit(28), Exit::TempFail, "ENOSPC");
        assert_eq!(exit(13), Exit::NoPerm, "EACCES");
        assert_eq!(exit(2), Exit::NoInput, "ENOENT");
        assert_eq!(exit(5), Exit::IoErr, "EIO");
        let newer = Newer { path: "x".into(), program: String::new(), what: "lines", version: 2, known: 1 };
        assert_eq!(Exit::from_io(&io::Error::other(newer)), Exit::Config);
    }
}
