//! `adopt`: going on when the sender's state was lost, restored or cloned.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use checkvalve_host::disk::{Disk, OsDisk};
use checkvalve_host::exit::Exit;
use checkvalve_host::json::hex_unless_utf8;
use checkvalve_host::lock::{Lock, LockError};
use checkvalve_host::log::{escape_bytes, escape_path};
use checkvalve_host::progress::{counted, human_bytes};
use checkvalve_protocol::beacon::Epoch;
use checkvalve_protocol::id::{BundleId, ChannelName, EpochId};
use checkvalve_protocol::limits::MAX_SEQUENCE;
use clap::Args as ClapArgs;
use rustix::process::{Gid, Uid};
use serde::Serialize;

use super::{CommandError, say, say_json};
use crate::adopt::{AdoptError, Adopted, Adoption, Raised, adopt};
use crate::config::Config;
use crate::ledger::BundleRecord;

#[derive(Debug, ClapArgs)]
pub(super) struct Args {
    /// The newest sequence of each channel that the high side knows: `default=413,images=20`. `checkvalve-receiver status` shows
    /// it as `newest`. A channel goes on after it, and never goes back.
    #[arg(long, required = true, value_name = "CHANNEL=SEQUENCE", value_delimiter = ',', value_parser = parse_newest)]
    sequences: Vec<(ChannelName, u64)>,
    /// The number that the new epoch has at least: more than that which the high side knows.
    #[arg(long, value_name = "NUMBER", value_parser = parse_epoch)]
    epoch: Option<u64>,
    /// Send a channel's bundles from this one on again that are still held, under new ids and sequences, also those that were
    /// transmitted: `default/405,images/12`. What is unsent is sent so anyway.
    #[arg(long, value_name = "CHANNEL/SEQUENCE", num_args = 1.., value_delimiter = ',', value_parser = parse_bundle)]
    again: Vec<(ChannelName, u64)>,
}

/// What `--json` says.
#[derive(Serialize)]
struct AdoptedView {
    epoch: Epoch,
    epoch_before: Option<Epoch>,
    channels: Vec<RaisedView>,
    /// Bundles that were held and not in the ledger.
    taken_back: usize,
    again: Vec<AgainView>,
}

#[derive(Serialize)]
struct RaisedView {
    name: ChannelName,
    newest_before: u64,
    newest: u64,
}

#[derive(Serialize)]
struct AgainView {
    /// `CHANNEL/SEQUENCE` of before.
    bundle: String,
    /// That of before.
    id: BundleId,
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    name_hex: Option<String>,
    bytes: u64,
}

/// 1. Reads the configuration. 2. Becomes who the state belongs to. 3. Takes the daemon's lock. 4. Adopts, and says what follows.
pub(super) fn run(args: &Args, config: &Path, json: bool) -> Result<(), CommandError> {
    let config = Config::peek(config)?;
    let adoption = adoption(args, &config)?;
    become_owner(&config.state)?;
    let lock = Lock::acquire(&config.state.join("lock")).map_err(not_locked)?;
    let disk: Arc<dyn Disk> = Arc::new(OsDisk);
    let adopted = adopt(&disk, &adoption).map_err(|error| {
        let exit = match &error {
            AdoptError::Ledger(error) => error.exit(),
            AdoptError::Disk { error, .. } => Exit::from_io(error),
            AdoptError::Epoch => Exit::Usage,
        };
        let again = if matches!(error, AdoptError::Epoch) { "" } else { "; mend that and run it again" };
        CommandError::new(exit, format!("not adopted: {error}{again}"))
    })?;
    drop(lock);
    if json {
        return say_json(&view(&adopted));
    }
    text(&adopted);
    Ok(())
}

fn adoption(args: &Args, config: &Config) -> Result<Adoption, CommandError> {
    let named = |given: &[(ChannelName, u64)], option: &str| {
        let mut channels = BTreeMap::new();
        for (channel, sequence) in given {
            super::known_channel(config, channel)?;
            if channels.insert(channel.clone(), *sequence).is_some() {
                return Err(CommandError::new(Exit::Usage, format!("{option} names channel {channel} twice")));
            }
        }
        Ok(channels)
    };
    let random =
        crate::run::random().ok_or_else(|| CommandError::new(Exit::OsErr, "the system gives no random numbers"))?;
    Ok(Adoption {
        sequences: named(&args.sequences, "--sequences")?,
        again: named(&args.again, "--again")?,
        spool: config.spool.clone(),
        state: config.state.clone(),
        parameters: config.parameters()?,
        epoch: args.epoch,
        epoch_id: EpochId(random),
    })
}

/// What root writes would be root's, and the daemon could not write to it any more.
fn become_owner(state: &Path) -> Result<(), CommandError> {
    let failed = |error| CommandError::io(escape_path(state), &error);
    let meta = fs::metadata(state).map_err(failed)?;
    if !rustix::process::geteuid().is_root() || meta.uid() == 0 {
        return Ok(());
    }
    let (uid, gid) = (Uid::from_raw(meta.uid()), Gid::from_raw(meta.gid()));
    // Of this thread, which is the only one.
    let became = rustix::thread::set_thread_groups(&[gid])
        .and_then(|()| rustix::thread::set_thread_res_gid(gid, gid, gid))
        .and_then(|()| rustix::thread::set_thread_res_uid(uid, uid, uid));
    became.map_err(|error| {
        let text = format!("{}: cannot become its owner (uid {}): {error}", escape_path(state), meta.uid());
        CommandError::new(Exit::NoPerm, text)
    })
}

fn not_locked(error: LockError) -> CommandError {
    match error {
        LockError::Held { holder, .. } => {
            let holder = holder.map_or_else(String::new, |pid| format!(" (process {pid})"));
            let text = format!("the daemon is running{holder}; stop it first with `systemctl stop checkvalve-sender`");
            CommandError::new(Exit::TempFail, text)
        }
        LockError::Io { path, error } => CommandError::io(escape_path(&path), &error),
    }
}

fn view(adopted: &Adopted) -> AdoptedView {
    let raised = |raised: &Raised| RaisedView {
        name: raised.channel.clone(),
        newest_before: raised.before,
        newest: raised.newest,
    };
    let again = |record: &BundleRecord| AgainView {
        bundle: shown(record),
        id: record.id,
        name: escape_bytes(&record.name),
        name_hex: hex_unless_utf8(&record.name),
        bytes: record.bytes,
    };
    AdoptedView {
        epoch: adopted.epoch,
        epoch_before: adopted.before,
        channels: adopted.channels.iter().map(raised).collect(),
        taken_back: adopted.taken_back,
        again: adopted.again.iter().map(again).collect(),
    }
}

fn text(adopted: &Adopted) {
    let before = adopted.before.map_or_else(String::new, |before| format!(" (it was {})", before.number));
    say(format_args!("epoch {} begins with the next start{before}", adopted.epoch.number));
    for Raised { channel, before, newest, named } in &adopted.channels {
        say(match named {
            Some(named) if named < before => {
                format!("channel {channel} goes on after {newest}, which was given out here, and not after {named}")
            }
            Some(_) => format!("channel {channel} goes on after {newest} ({before} was the newest here)"),
            None => format!("channel {channel} goes on after {newest}, since it was not named"),
        });
    }
    if adopted.taken_back > 0 {
        say(format_args!(
            "taken into the ledger again: {} that it did not know",
            counted(adopted.taken_back as u64, "retained bundle")
        ));
    }
    match adopted.again.len() {
        0 => say("no bundle is sent again"),
        _ => say("sent again, each under a new id and sequence; until now they were:"),
    }
    for record in &adopted.again {
        let (bundle, bytes) = (shown(record), human_bytes(record.bytes));
        say(format_args!("  {bundle:<22} {}  {bytes:>9}  {}", record.id, escape_bytes(&record.name)));
    }
    say(format_args!(
        "Next: `systemctl start checkvalve-sender`. The receiver takes the new epoch by itself. If its status then tells of an old \
         epoch or of another state, it knows epoch {} or a later one: adopt again with a higher --epoch.",
        adopted.epoch.number
    ));
}

fn shown(record: &BundleRecord) -> String {
    format!("{}/{}", record.channel, record.sequence.unwrap_or_default())
}

fn parse_newest(text: &str) -> Result<(ChannelName, u64), String> {
    let wrong = || format!("\"{text}\" is no channel with its newest sequence; write for example default=413");
    let (channel, sequence) = text.split_once('=').ok_or_else(wrong)?;
    let channel = ChannelName::new(channel.trim()).map_err(|_| wrong())?;
    let sequence: u64 = sequence.trim().parse().map_err(|_| wrong())?;
    if sequence > MAX_SEQUENCE {
        return Err(format!("{sequence} is over {MAX_SEQUENCE}, the last sequence that there is"));
    }
    Ok((channel, sequence))
}

fn parse_bundle(text: &str) -> Result<(ChannelName, u64), String> {
    let wrong = || format!("\"{text}\" names no bundle; write for example default/405");
    let (channel, sequence) = text.split_once('/').ok_or_else(wrong)?;
    let channel = ChannelName::new(channel).map_err(|_| wrong())?;
    Ok((channel, sequence.parse().map_err(|_| wrong())?))
}

fn parse_epoch(text: &str) -> Result<u64, String> {
    let number = text.parse().ok().filter(|number| (1..=MAX_SEQUENCE).contains(number));
    number.ok_or_else(|| format!("\"{text}\" is no number of an epoch; write one from 1 to {MAX_SEQUENCE}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_named_is_read_as_people_write_it() {
        let channel = |name| ChannelName::new(name).unwrap();
        assert_eq!(parse_newest("default=413"), Ok((channel("default"), 413)));
        assert_eq!(parse_newest(" default = 0 "), Ok((channel("default"), 0)));
        assert_eq!(parse_bundle("a/7"), Ok((channel("a"), 7)));
        for bad in ["", "default", "default=", "=4", "default=-1", "default=x", "A=1", "default=9007199254740992"] {
            assert!(parse_newest(bad).is_err(), "{bad}");
        }
        for bad in ["", "a", "a/", "a/x", "/7", "a/7/8", "a/18446744073709551616"] {
            assert!(parse_bundle(bad).is_err(), "{bad}");
        }
        assert_eq!(
            (parse_epoch("3"), parse_epoch("0").is_err(), parse_epoch("9007199254740992").is_err()),
            (Ok(3), true, true)
        );
    }
}
