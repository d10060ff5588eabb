//! Running the system's own tools (`ip`, `nft`, `mount`) and saying what went wrong when they fail.

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Runs a command given as words separated by blanks; returns its standard output.
///
/// # Panics
/// When it cannot be started or exits non-zero, with what it said.
pub fn sh(line: &str) -> String {
    let mut words = line.split_whitespace();
    let mut command = Command::new(words.next().expect("a command line has a program"));
    command.args(words);
    output(&mut command)
}

/// Runs `command`; returns its standard output.
///
/// # Panics
/// When it cannot be started or exits non-zero, with what it said.
pub fn output(command: &mut Command) -> String {
    let out = command.stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("cannot run {command:?}: {error}"));
    let stdout = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(out.status.success(), "{command:?}: {}\n{stdout}{}", out.status, String::from_utf8_lossy(&out.stderr));
    stdout
}

/// Runs `command` with `input` on its standard input; returns its standard output.
///
/// # Panics
/// When it cannot be started or exits non-zero, with what it said.
pub fn feed(command: &mut Command, input: &str) -> String {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("cannot run {command:?}: {error}"));
    child.stdin.take().expect("piped").write_all(input.as_bytes()).expect("the command reads its input");
    let out = child.wait_with_output().expect("a child can be waited for");
    let stdout = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(
        out.status.success(),
        "{command:?}: {}\n{stdout}{}\ninput:\n{input}",
        out.status,
        String::from_utf8_lossy(&out.stderr)
    );
    stdout
}

/// Asks `probe` every 20 ms until it answers or `limit` has passed.
pub fn wait_until<T>(limit: Duration, mut probe: impl FnMut() -> Option<T>) -> Option<T> {
    let end = Instant::now() + limit;
    loop {
        if let Some(found) = probe() {
            return Some(found);
        }
        if Instant::now() >= end {
            return None;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}
