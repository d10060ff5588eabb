//! `sender.toml`: every key, what it means and its default, and what is checked before the daemon starts.

mod check;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use checkvalve_host::config::{self, Addresses, ConfigError};
use checkvalve_host::units::{Percent, Rate, Size, Span};
use checkvalve_protocol::crypto::{LinkKey, SigningKey};
use checkvalve_protocol::id::ChannelName;
use checkvalve_protocol::transmit::Parameters;
use serde::Deserialize;

use crate::engine::Rules;

/// Where the config file is when the command line does not say.
pub const DEFAULT_PATH: &str = "/etc/checkvalve/sender.toml";

/// The config file.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// `spool`: the directory whose folders are the channels: what is put into `SPOOL/CHANNEL/` is sent. Folders of configured
    /// channels are created. Required.
    pub spool: PathBuf,
    /// `state`: the directory for ledger and claimed bundles. Best on the file system of the spool, since claiming is
    /// renaming; otherwise bundles are held in `SPOOL/.checkvalve`. Required.
    pub state: PathBuf,
    /// `control`: the socket through which commands talk to the daemon. Its directory must exist.
    /// Default `"/run/checkvalve-sender/control.sock"`.
    #[serde(default = "defaults::control")]
    pub control: PathBuf,
    /// `settle`: how long something that is written in place must be quiet (a file also closed) before it is claimed. What is
    /// renamed in is claimed at once. Default `"2 s"`.
    #[serde(default = "defaults::settle")]
    pub settle: Span,
    /// `rescan`: how often the spool is looked through for what inotify did not tell. Default `"10 s"`.
    #[serde(default = "defaults::rescan")]
    pub rescan: Span,
    /// `memory`: what the data plane may take. It bounds `fec.burst`; `check-config` says how far. Default `"192 MiB"`.
    #[serde(default = "defaults::memory")]
    pub memory: Size,
    /// `[channel.NAME]`: the channels. Without any there is one, `default`.
    #[serde(default, rename = "channel")]
    pub channels: BTreeMap<ChannelName, ChannelConfig>,
    /// `[link]`: where to and how fast. Required.
    pub link: LinkConfig,
    /// `[fec]`: how much is sent beyond the data itself.
    #[serde(default)]
    pub fec: Fec,
    /// `[retain]`: how long transmitted bundles are kept for sending them again.
    #[serde(default)]
    pub retain: Retain,
    /// `[keys]`: the secrets. Required.
    pub keys: KeyFiles,
}

/// `[channel.NAME]`: a channel, which has its own sequence and order.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ChannelConfig {
    /// `priority`: the channel with the highest goes first, also in the middle of another's bundle. Default 0.
    pub priority: i16,
    /// `passes`: how often each bundle is sent. Default: `fec.passes`.
    pub passes: Option<u32>,
    /// `pass_interval`: how long after the end of a pass the next one begins. Default `"0 s"`: at once.
    pub pass_interval: Option<Span>,
    /// `carousel`: how often what was sent is sent again, for ever, until a newer bundle of the same name was sent. For standing
    /// content such as trust files. It stays retained. Default: never.
    pub carousel: Option<Span>,
}

/// `[link]`: where to and how fast.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LinkConfig {
    /// `destination`: the receiver's IPv4 address and UDP port, `"10.0.0.2:7700"`; or several, one for each fibre,
    /// `["10.0.0.2:7700", "10.0.1.2:7700"]`. Required. There is no ARP over a diode: the host needs a static neighbour entry for
    /// each address.
    pub destination: Addresses,
    /// `mtu`: largest IP datagram in bytes, 576 to 9216; every device on the link must take it. Default 1500.
    #[serde(default = "defaults::mtu")]
    pub mtu: u16,
    /// `rate`: what the link carries, on the wire, Ethernet's preamble and gaps included: `"900 Mbit/s"`. Required. It is
    /// never exceeded, and should be a little less than what the slowest device on the way takes. Several lanes share it equally.
    pub rate: Rate,
    /// `lanes`: how many UDP ports of each `destination` to send to, upwards, so that a receiver with as many cores can keep up.
    /// Both sides need the same. Default 1.
    #[serde(default = "defaults::lanes")]
    pub lanes: u16,
    /// `insecure`: send without a link key: anyone on the link can read everything and disturb it, though not
    /// forge bundles, which are signed all the same. Default false.
    #[serde(default)]
    pub insecure: bool,
}

/// `[fec]`: forward error correction.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Fec {
    /// `repair`: repair symbols for a hundred source symbols, up to 400 %: the loss to survive, and half as much
    /// again for safety. Default `"5 %"`.
    pub repair: Percent,
    /// `burst`: the outage to survive at `link.rate`. Default `"10 ms"`.
    pub burst: Span,
    /// `passes`: how often each bundle is sent, 1 to 100. Default 1.
    pub passes: u32,
}

/// `[retain]`: how long transmitted bundles are kept. Nothing that is unsent is ever deleted.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Retain {
    /// `size`: the oldest are deleted while they are more than this together. Default `"100 GiB"`.
    pub size: Size,
    /// `age`: they are deleted when the daemon has run for so long since their last pass. Default `"30 d"`.
    pub age: Span,
}

/// `[keys]`: files that nobody but the daemon's user may read. `keygen` makes them.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyFiles {
    /// `link`: the key that sender and receiver share. Required unless `link.insecure = true`.
    pub link: Option<PathBuf>,
    /// `signing`: the key that signs bundles; the receiver trusts its `.pub`. Required.
    pub signing: PathBuf,
}

/// A config that was checked, with what it names and what follows from it.
#[derive(Debug)]
pub struct Checked {
    /// The config.
    pub config: Config,
    /// Where each lane goes.
    pub destinations: Vec<SocketAddr>,
    /// The shared key; None: insecure.
    pub link_key: Option<LinkKey>,
    /// Who signs.
    pub signing_key: Arc<SigningKey>,
    /// What follows for blocks, depth and memory.
    pub parameters: Parameters,
    /// How each channel's bundles are sent.
    pub rules: BTreeMap<ChannelName, Rules>,
}

impl Config {
    /// Reads a config file and checks everything that can be without sending: directories, keys, ranges.
    /// Errors: [`ConfigError`], one line that names the key and says what to write instead.
    pub fn load(path: &Path) -> Result<Checked, ConfigError> {
        let config = Self::peek(path)?;
        check::check(config).map_err(|error| error.in_file(path))
    }

    /// The channels that there are.
    #[must_use]
    pub fn channel_names(&self) -> BTreeSet<ChannelName> {
        if self.channels.is_empty() {
            check::usual_channel().into_iter().collect()
        } else {
            self.channels.keys().cloned().collect()
        }
    }

    /// What follows from the link. Errors: [`ConfigError`], which names the key.
    pub fn parameters(&self) -> Result<Parameters, ConfigError> {
        check::parameters(self)
    }

    /// Reads a config file for the one key that commands need to find the daemon. Errors: as [`Config::load`], without
    /// looking at directories and keys, which the caller may not be allowed to.
    pub fn peek(path: &Path) -> Result<Self, ConfigError> {
        config::load(path)
    }
}

impl Default for Fec {
    fn default() -> Self {
        Self { repair: Percent::from_percent(5), burst: Span::from_millis(10), passes: 1 }
    }
}

impl Default for Retain {
    fn default() -> Self {
        Self { size: Size::from_bytes(100 << 30), age: Span::from_secs(30 * 86_400) }
    }
}

mod defaults {
    use super::{PathBuf, Size, Span};

    pub(super) fn control() -> PathBuf {
        "/run/checkvalve-sender/control.sock".into()
    }
    pub(super) fn settle() -> Span {
        Span::from_secs(2)
    }
    pub(super) fn rescan() -> Span {
        Span::from_secs(10)
    }
    pub(super) fn memory() -> Size {
        Size::from_bytes(192 << 20)
    }
    pub(super) fn mtu() -> u16 {
        1_500
    }
    pub(super) fn lanes() -> u16 {
        1
    }
}

#[cfg(test)]
mod tests;
