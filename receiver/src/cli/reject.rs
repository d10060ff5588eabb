//! `reject`: gives a bundle up.

use std::path::Path;

use clap::Args as ClapArgs;
use serde_json::{Value, json};

use super::{CommandError, ask, say, say_json};
use crate::config::Config;
use crate::control::Request;

#[derive(Debug, ClapArgs)]
pub(super) struct Args {
    /// `CHANNEL/SEQUENCE`, or the first digits of the bundle's id, as in `status`.
    bundle: String,
}

pub(super) fn reject(args: &Args, config: &Path, json: bool) -> Result<(), CommandError> {
    let config = Config::peek(config)?;
    let _: Value = ask(&config, &Request::Reject { bundle: args.bundle.clone() })?;
    if json {
        return say_json(&json!({ "rejected": args.bundle }));
    }
    say(format_args!("{} is given up", args.bundle));
    Ok(())
}
