//! As whom, and with which capabilities, the daemons run.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::netns::Netns;
use crate::shell::sh;

/// The user and group of [`Rights::Units`]: nobody's.
const USER: u32 = 65_534;

/// What the daemons may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rights {
    /// Everything that root may do.
    Root,
    /// As root, but the sender may not read files whose mode forbids it.
    SenderObeysModes,
    /// As a user of their own, the sender with `CAP_DAC_OVERRIDE` and the receiver with nothing.
    Units,
}

impl Rights {
    /// The sender's program, to be run in `netns`.
    pub(super) fn sender(self, netns: &Netns, program: &Path) -> std::process::Command {
        match self {
            Self::Root => netns.command(program),
            Self::SenderObeysModes => {
                let mut command = netns.command("setpriv");
                command.arg("--bounding-set=-dac_override,-dac_read_search").arg(program);
                command
            }
            Self::Units => as_user(netns, "-all,+dac_override", program),
        }
    }

    /// The receiver's program, to be run in `netns`.
    pub(super) fn receiver(self, netns: &Netns, program: &Path) -> std::process::Command {
        if self == Self::Units { as_user(netns, "-all", program) } else { netns.command(program) }
    }
}

fn as_user(netns: &Netns, capabilities: &str, program: &Path) -> std::process::Command {
    let mut command = netns.command("setpriv");
    command.arg(format!("--reuid={USER}")).arg(format!("--regid={USER}")).args(["--clear-groups", "--no-new-privs"]);
    for set in ["inh-caps", "ambient-caps", "bounding-set"] {
        command.arg(format!("--{set}={capabilities}"));
    }
    command.arg(program);
    command
}

/// Gives all below `root` to the user, with copies of the programs that it may run; returns where these are.
pub(super) fn hand_over(root: &Path, bin: &Path) -> PathBuf {
    let own = root.join("bin");
    std::fs::create_dir(&own).expect("a directory can be made");
    for program in ["checkvalve-sender", "checkvalve-receiver"] {
        std::fs::copy(bin.join(program), own.join(program)).expect("a program can be copied");
    }
    sh(&format!("chown -R {USER}:{USER} {}", root.display()));
    std::fs::set_permissions(root, Permissions::from_mode(0o755)).expect("a mode can be set");
    own
}
