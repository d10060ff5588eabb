//! `--from`: content that the daemon no longer holds, given back to it.

use std::path::Path;
use std::time::Duration;

use checkvalve_host::disk::{Disk, OsDisk};
use checkvalve_host::exit::Exit;
use checkvalve_host::log::escape_path;

use super::{CommandError, ask, copy};
use crate::config::Config;
use crate::control::{Request, Restored};
use crate::engine::RESTORE_PREFIX;

const EVERY: Duration = Duration::from_millis(100);

/// Copies `path` to where the daemon takes it, and waits until that has proven it to be the content of `bundle`
/// (`CHANNEL/SEQUENCE`) and holds it.
pub(super) fn restore(config: &Config, bundle: &str, path: &Path, json: bool) -> Result<(), CommandError> {
    let channel = bundle.split_once('/').map_or(bundle, |(channel, _)| channel);
    let name = format!("{RESTORE_PREFIX}{}.tmp", std::process::id());
    let temporary = config.spool.join(channel).join(&name);
    if !json {
        eprintln!("copying {} and comparing it with what was sent as {bundle}", escape_path(path));
    }
    copy::tree(path, &temporary, false).map_err(|(at, error)| {
        drop(OsDisk.remove_tree(&temporary));
        CommandError::io(escape_path(&at), &error)
    })?;
    let begun = ask(config, &Request::Restore { bundle: bundle.to_owned(), name: Some(name) });
    let begun: Restored = begun.inspect_err(|_| drop(OsDisk.remove_tree(&temporary)))?;
    if begun != Restored::Proving {
        // It is held anyway.
        drop(OsDisk.remove_tree(&temporary));
        return Ok(());
    }
    loop {
        match ask(config, &Request::Restore { bundle: bundle.to_owned(), name: None })? {
            Restored::Held => return Ok(()),
            Restored::Proving => std::thread::sleep(EVERY),
            Restored::Refused { reason } => {
                let text = format!("{} is not what was sent as {bundle}: {reason}", escape_path(path));
                return Err(CommandError::new(Exit::DataErr, text));
            }
            Restored::Unknown => {
                let text = "the daemon was started anew meanwhile; try again";
                return Err(CommandError::new(Exit::TempFail, text));
            }
        }
    }
}
