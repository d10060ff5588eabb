//! Tests that cannot run on this machine say so by name instead of failing or passing in silence.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::PathBuf;
use std::process::Command;

/// Returns from the calling test, noting it as skipped, unless this machine can make network namespaces with a one-way
/// veth link and the release binaries of the daemons are built.
#[macro_export]
macro_rules! require_link {
    () => {
        if let Err(reason) = $crate::skip::can_link() {
            $crate::skip::note($crate::function_name!(), &reason);
            return;
        }
    };
}

/// As [`require_link!`], and also skips unless this machine can mount and freeze an ext4 in an image file.
#[macro_export]
macro_rules! require_images {
    () => {
        $crate::require_link!();
        if let Err(reason) = $crate::mount::can_mount_images() {
            $crate::skip::note($crate::function_name!(), &reason);
            return;
        }
    };
}

/// The path of the function it stands in.
#[macro_export]
macro_rules! function_name {
    () => {{
        fn here() {}
        std::any::type_name_of_val(&here).trim_end_matches("::here")
    }};
}

/// Whether a namespace link can be made here, or why not.
pub fn can_link() -> Result<(), String> {
    if !rustix::process::geteuid().is_root() {
        return Err("network namespaces need root".to_owned());
    }
    for (tool, args) in [("ip", ["-Version"]), ("nft", ["--version"]), ("ethtool", ["--version"])] {
        if Command::new(tool).args(args).output().is_err() {
            return Err(format!("{tool} is not installed"));
        }
    }
    let probe = crate::netns::probe();
    if let Err(error) = probe {
        return Err(format!("this kernel or sandbox makes no one-way namespace link: {error}"));
    }
    Ok(())
}

/// Prints that the test `name` was skipped and why, and appends it to the file `tests/run.sh` counts from.
pub fn note(name: &str, reason: &str) {
    eprintln!("SKIPPED {name}: {reason}");
    let Some(path) = std::env::var_os("CHECKVALVE_SKIPPED") else { return };
    let line = format!("{name}: {reason}\n");
    let mut file = OpenOptions::new().append(true).create(true).open(path).expect("the skip list can be written");
    file.write_all(line.as_bytes()).expect("the skip list can be written");
}

/// The directory of the release binaries: `$CHECKVALVE_BIN_DIR`, else `target/release` of this workspace.
///
/// # Panics
/// When they are not built, with the command that builds them.
pub fn bin_dir() -> PathBuf {
    let dir = std::env::var_os("CHECKVALVE_BIN_DIR")
        .map_or_else(|| PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../target/release")), PathBuf::from);
    for program in ["checkvalve-sender", "checkvalve-receiver"] {
        assert!(
            dir.join(program).is_file(),
            "{} is missing: run `cargo build --release --workspace` first, or tests/run.sh",
            dir.join(program).display()
        );
    }
    dir
}
