//! `approve` and `retry`: what an operator decides of a bundle that is held, refused, or whose hook failed.

use std::path::Path;

use clap::Args as ClapArgs;
use serde_json::json;

use super::{CommandError, ask, say, say_json};
use crate::config::Config;
use crate::control::Request;

#[derive(Debug, ClapArgs)]
pub(super) struct Args {
    /// `CHANNEL/SEQUENCE`, or the first digits of the bundle's id, as in `status`.
    bundle: String,
}

pub(super) fn approve(args: &Args, config: &Path, json: bool) -> Result<(), CommandError> {
    decide(&Request::Approve { bundle: args.bundle.clone() }, args, config, json)
}

pub(super) fn retry(args: &Args, config: &Path, json: bool) -> Result<(), CommandError> {
    decide(&Request::Retry { bundle: args.bundle.clone() }, args, config, json)
}

fn decide(request: &Request, args: &Args, config: &Path, json: bool) -> Result<(), CommandError> {
    let config = Config::peek(config)?;
    let now: String = ask(&config, request)?;
    if json {
        return say_json(&json!({ "bundle": args.bundle, "now": now }));
    }
    say(now);
    Ok(())
}
