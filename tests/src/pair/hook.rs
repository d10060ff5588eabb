//! The install hook of the tests: records every run, then does what the test wants.

use std::collections::BTreeMap;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde_json::Value;

/// One run of the hook.
#[derive(Clone, Debug)]
pub struct HookRun {
    /// `CHECKVALVE_*` of its environment, without the prefix.
    pub env: BTreeMap<String, String>,
    /// Its first argument.
    pub argument: PathBuf,
    /// Its working directory.
    pub cwd: PathBuf,
    /// The manifest on its standard input.
    pub manifest: Value,
}

impl HookRun {
    /// A variable of the contract.
    ///
    /// # Panics
    /// When it was not set.
    pub fn var(&self, name: &str) -> &str {
        self.env.get(name).unwrap_or_else(|| panic!("CHECKVALVE_{name} was not set: {:?}", self.env))
    }

    /// `CHECKVALVE_SEQUENCE` as a number.
    ///
    /// # Panics
    /// When it is none.
    pub fn sequence(&self) -> u64 {
        self.var("SEQUENCE").parse().expect("a number")
    }
}

/// Writes at `path` a hook that records each run below `runs` and then goes on with `then`, lines of POSIX shell.
///
/// # Panics
/// When it cannot be written.
pub fn write(path: &Path, runs: &Path, then: &str) {
    let text = format!(
        r#"#!/bin/sh
set -u
PATH=/usr/local/bin:/usr/bin:/bin
export PATH
run=$(mktemp -d '{runs}/.run.XXXXXXXX') || exit 1
env -0 >"$run/env"
cat >"$run/stdin"
pwd -P >"$run/cwd"
printf '%s' "${{1-}}" >"$run/argument"
# Runs are numbered by who comes first; renaming onto a directory that is not empty fails.
n=1
until mv -T "$run" '{runs}/'"$(printf '%06d' "$n")" 2>/dev/null; do n=$((n + 1)); done
{then}
"#,
        runs = runs.display()
    );
    std::fs::write(path, text).expect("a hook can be written");
    std::fs::set_permissions(path, Permissions::from_mode(0o755)).expect("a hook can be made executable");
}

/// The runs recorded below `runs`, oldest first.
///
/// # Panics
/// When one is not recorded as [`write()`] does.
pub fn runs(runs: &Path) -> Vec<HookRun> {
    let entries = runs.read_dir().expect("the runs can be listed").map(|entry| entry.expect("an entry").path());
    let mut paths: Vec<PathBuf> = entries.filter(|path| !path.to_string_lossy().contains("/.run.")).collect();
    paths.sort();
    paths.iter().map(|path| read(path)).collect()
}

fn read(path: &Path) -> HookRun {
    let bytes = |name: &str| std::fs::read(path.join(name)).unwrap_or_else(|error| panic!("{path:?}/{name}: {error}"));
    let text = |name: &str| String::from_utf8(bytes(name)).expect("UTF-8");
    let env = bytes("env");
    let env = env.split(|byte| *byte == 0).filter_map(|line| {
        let line = String::from_utf8_lossy(line);
        let (name, value) = line.strip_prefix("CHECKVALVE_")?.split_once('=')?;
        Some((name.to_owned(), value.to_owned()))
    });
    let stdin = text("stdin");
    HookRun {
        env: env.collect(),
        argument: text("argument").into(),
        cwd: text("cwd").trim_end_matches('\n').into(),
        manifest: serde_json::from_str(&stdin).unwrap_or_else(|error| panic!("the hook's input: {error}: {stdin:?}")),
    }
}
