//! A hook that costs next to nothing: a copy of this program, which notes the time as the first thing it does.

use std::fs::{File, OpenOptions, Permissions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// What the copy is called; the program knows by it what it is to do.
const NAME: &str = "hook";

/// Where the hook's runs are noted.
#[derive(Clone, Debug)]
pub struct Stopwatch {
    hook: PathBuf,
}

/// If this process is the hook: notes that it was started at `now`, and returns true.
///
/// # Panics
/// When it cannot be noted.
pub fn run_as_hook(now: SystemTime) -> bool {
    let (Ok(program), Some(name)) = (std::env::current_exe(), std::env::var_os("CHECKVALVE_NAME")) else {
        return false;
    };
    if program.file_name() != Some(NAME.as_ref()) {
        return false;
    }
    let line = format!("{} {}\n", nanos(now), name.to_string_lossy());
    let mut file = OpenOptions::new().append(true).create(true).open(times(&program)).expect("runs can be noted");
    file.write_all(line.as_bytes()).expect("runs can be noted");
    true
}

impl Stopwatch {
    /// Puts the hook at `path`, whose last component must be `hook`. Works only in `checkvalve-bench`.
    ///
    /// # Panics
    /// When it cannot be put there.
    pub fn install(path: &Path) -> Self {
        assert_eq!(path.file_name(), Some(NAME.as_ref()), "the program knows the hook by its name");
        let _ = std::fs::remove_file(path);
        std::fs::copy(std::env::current_exe().expect("a program has a file"), path).expect("the hook can be copied");
        std::fs::set_permissions(path, Permissions::from_mode(0o755)).expect("a mode can be set");
        File::create(times(path)).expect("runs can be noted");
        Self { hook: path.to_owned() }
    }

    /// When the hook was started for the bundle of that name; None if it was not yet.
    pub fn started(&self, name: &str) -> Option<SystemTime> {
        let noted = std::fs::read_to_string(times(&self.hook)).unwrap_or_default();
        let mut lines = noted.lines().filter_map(|line| line.split_once(' '));
        let at = lines.find_map(|(at, of)| (of == name).then_some(at))?;
        Some(UNIX_EPOCH + Duration::from_nanos(at.parse().ok()?))
    }

    /// How long the start of the hook takes by itself: from before the fork to its first instruction of ours.
    ///
    /// # Panics
    /// When it does not start.
    pub fn cost(&self) -> Duration {
        let name = format!("by-itself-{}", nanos(SystemTime::now()));
        let mut command = Command::new(&self.hook);
        command.env_clear().env("CHECKVALVE_NAME", &name).stdin(Stdio::null());
        let before = SystemTime::now();
        let status = command.status().expect("the hook starts");
        assert!(status.success(), "the hook ended with {status}");
        let started = self.started(&name).expect("the hook noted its start");
        started.duration_since(before).unwrap_or_default()
    }
}

fn times(hook: &Path) -> PathBuf {
    hook.with_extension("times")
}

fn nanos(time: SystemTime) -> u128 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos()
}
