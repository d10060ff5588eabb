//! `receiver.toml`: every key, what it means and its default, and what is checked before the daemon starts.

mod check;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use checkvalve_host::config::{self, Addresses, ConfigError};
use checkvalve_host::units::{Size, Span, SpanOrForever};
use checkvalve_protocol::crypto::{LinkKey, TrustStore};
use checkvalve_protocol::id::{ChannelName, KeyId};
use serde::Deserialize;

use crate::inbox::Durability;

pub use check::{TrustedFile, load_trusted, trusted_files};

/// Where the config file is when the command line does not say.
pub const DEFAULT_PATH: &str = "/etc/checkvalve/receiver.toml";

/// The config file.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// `inbox`: proven bundles appear here, `INBOX/CHANNEL/SEQUENCE/NAME`, each by one rename. Required.
    pub inbox: PathBuf,
    /// `quarantine`: refused bundles go to `QUARANTINE/CHANNEL/SEQUENCE-ID/`, with `reason.json`. Required.
    pub quarantine: PathBuf,
    /// `state`: the directory for ledger, audit trail, manifests and logs of hooks. Where it is on the file system and under
    /// the mount of the inbox, bundles under way are held in it, since publishing is renaming; otherwise in
    /// `INBOX/.staging`. Required.
    pub state: PathBuf,
    /// `control`: the socket through which commands talk to the daemon. Its directory must exist. Beside it, where that is a
    /// tmpfs as `/run` is, a file with the ending `.blocks` holds the blocks under way, so that they outlive a kill of the
    /// daemon. Default `"/run/checkvalve-receiver/control.sock"`.
    #[serde(default = "defaults::control")]
    pub control: PathBuf,
    /// `memory`: what the daemon may take; two thirds of it hold blocks that are not stored yet, which must be at least
    /// what the sender's `check-config` prints. Default `"192 MiB"`.
    #[serde(default = "defaults::memory")]
    pub memory: Size,
    /// `quota`: most bytes of unfinished bundles. Default: none, but for `reserve`.
    #[serde(default)]
    pub quota: Option<Size>,
    /// `reserve`: bytes of the file system of unfinished bundles that are left free. Default `"16 MiB"`.
    #[serde(default = "defaults::reserve")]
    pub reserve: Size,
    /// `silence`: a bundle of which nothing came for so long is incomplete, also when no beacon says so. Default `"30 s"`.
    #[serde(default = "defaults::silence")]
    pub silence: Span,
    /// `durability`: how a bundle is made to survive a power cut before it is published: `"syncfs"`, one sync of the file system, or
    /// `"fsync"`, one of each file, which disturbs others less where the file system is shared. Default `"syncfs"`.
    #[serde(default)]
    pub durability: Durability,
    /// `workers`: threads that decode and store, 1 to 64. Default: a thread a core, but for those that receive; at least 1.
    #[serde(default)]
    pub workers: Option<usize>,
    /// `[channel.NAME]`: what is done with a channel's bundles. Others are published, and no hook is run for them.
    #[serde(default, rename = "channel")]
    pub channels: BTreeMap<ChannelName, ChannelConfig>,
    /// `[limits]`: what others may use up here.
    #[serde(default)]
    pub limits: LimitsConfig,
    /// `[link]`: where to listen. Required.
    pub link: LinkConfig,
    /// `[keys]`: whose bundles are accepted. Required.
    pub keys: KeyFiles,
}

/// `[channel.NAME]`: what is done with a channel's bundles.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ChannelConfig {
    /// `[channel.NAME.hook]`: what is run for each bundle. Default: nothing, it is only published.
    pub hook: Option<Hook>,
    /// `wait_for_missing`: how long a bundle that is missing or incomplete holds up the hooks of later ones: `"1 h"`, or `"forever"`
    /// until it comes or an operator rejects it. What comes later than that is published and never installed. Default
    /// `"forever"`.
    pub wait_for_missing: Option<SpanOrForever>,
    /// `signers`: the ids of the keys that may sign for this channel (`trust list` shows them). Default: every trusted key.
    pub signers: Option<Vec<KeyId>>,
    /// `quota`: most bytes of this channel's unfinished bundles. Default: four fifths of what staging may take, so that one channel
    /// does not shut out the others.
    pub quota: Option<Size>,
}

/// `[limits]`: what others may use up here, and what happens then. Memory is bounded by `memory`, the disk by `quota` and `reserve`.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LimitsConfig {
    /// `objects`: transport objects known at once, three for each bundle under way, as far as they take no more than an eighth of the
    /// memory for blocks; then the one unheard of for longest makes room, and what it has is kept on disk. Default 65536.
    pub objects: usize,
    /// `open_blocks`: source blocks under way at once; then the one unheard of for longest is kept on disk. Default 65536.
    pub open_blocks: usize,
    /// `unannounced`: objects of bundles that no trusted key has signed for yet; then those that are silent for a second make room,
    /// and if none is, new ones wait symbol by symbol. Default 1024.
    pub unannounced: usize,
    /// `unannounced_bundles`: such bundles in staging at once; then the one that is silent for longest makes room, and if none is
    /// silent for a twentieth of a second, no more of them are stored. Default 256.
    pub unannounced_bundles: usize,
    /// `unannounced_bytes`: what such bundles may take in staging. Default `"256 MiB"`.
    pub unannounced_bytes: Size,
    /// `files`: files and directories in staging; then nothing more is stored until there is room. Default 4194304.
    pub files: u64,
    /// `signatures`: signatures that are checked a second; then those of bundles of which most came are checked first, and others are
    /// dropped as `limit`. Default 4000.
    pub signatures: u32,
}

impl Default for LimitsConfig {
    fn default() -> Self {
        Self {
            objects: 65_536,
            open_blocks: 65_536,
            unannounced: 1_024,
            unannounced_bundles: 256,
            unannounced_bytes: Size::from_bytes(256 << 20),
            files: 4 << 20,
            signatures: 4_000,
        }
    }
}

/// `[channel.NAME.hook]`: what is run for each bundle, in sequence order, one at a time.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hook {
    /// `install`: the program, `INSTALL PATH` with the manifest as JSON on its standard input. Required.
    pub install: PathBuf,
    /// `timeout`: it is ended with all its children after so long, and has failed. Default `"1 h"`.
    #[serde(default = "defaults::timeout")]
    pub timeout: Span,
    /// `backoff`: pause after the first exit 75; each further one doubles it. Default `"1 s"`.
    #[serde(default = "defaults::backoff")]
    pub backoff: Span,
    /// `backoff_max`: the longest such pause. Default `"5 min"`.
    #[serde(default = "defaults::backoff_max")]
    pub backoff_max: Span,
    /// `retries`: after so many more starts that ended with 75 it has failed. Default: none, it is tried for ever.
    #[serde(default)]
    pub retries: Option<u32>,
}

/// `[link]`: where to listen.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LinkConfig {
    /// `listen`: this host's address on the link and the UDP port, `"10.0.0.2:7700"`; `"0.0.0.0:7700"` for every
    /// address; or several, one for each fibre, `["10.0.0.2:7700", "10.0.1.2:7700"]`. Required.
    pub listen: Addresses,
    /// `mtu`: largest IP datagram of the link in bytes, 576 to 9216, as on the sender. Default 1500.
    #[serde(default = "defaults::mtu")]
    pub mtu: u16,
    /// `lanes`: how many UDP ports of each `listen` to listen on, upwards, a thread each. Both sides need the same. Default 1.
    #[serde(default = "defaults::lanes")]
    pub lanes: u16,
    /// `receive_buffer`: what the kernel holds for each lane while the daemon waits for a processor. Default `"32 MiB"`.
    #[serde(default = "defaults::receive_buffer")]
    pub receive_buffer: Size,
    /// `insecure`: receive without a link key: anyone on the link can disturb it, though not forge bundles, which are signed
    /// all the same. Default false.
    #[serde(default)]
    pub insecure: bool,
}

/// `[keys]`: whose bundles are accepted.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyFiles {
    /// `link`: the key that sender and receiver share, a file that nobody but the daemon's user may read. Required unless
    /// `link.insecure = true`.
    pub link: Option<PathBuf>,
    /// `trusted`: a directory; bundles are accepted that a key of one of its `*.pub` files signed. Required.
    pub trusted: PathBuf,
}

/// A config that was checked, with what it names and what follows from it.
#[derive(Debug)]
pub struct Checked {
    /// The config.
    pub config: Config,
    /// One address a lane.
    pub listen: Vec<SocketAddr>,
    /// The shared key; None: insecure.
    pub link_key: Option<LinkKey>,
    /// Whose bundles are accepted.
    pub trusted: TrustStore,
    /// Where unfinished bundles are held.
    pub staging: PathBuf,
    /// Bytes that blocks may take before they are stored.
    pub block_memory: u64,
    /// Threads that decode and store.
    pub workers: usize,
}

impl Config {
    /// Reads a config file and checks everything that can be without receiving: directories, keys, hooks, ranges.
    /// Errors: [`ConfigError`], one line that names the key and says what to write instead.
    pub fn load(path: &Path) -> Result<Checked, ConfigError> {
        let config: Self = config::load(path)?;
        check::check(config).map_err(|error| error.in_file(path))
    }

    /// The keys that may sign for each channel that names some.
    #[must_use]
    pub fn signers(&self) -> BTreeMap<ChannelName, BTreeSet<KeyId>> {
        let named = self.channels.iter().filter_map(|(name, channel)| Some((name, channel.signers.as_ref()?)));
        named.map(|(name, signers)| (name.clone(), signers.iter().copied().collect())).collect()
    }

    /// Reads a config file for the keys that commands need to find the daemon and its files. Errors: as
    /// [`Config::load`], without looking at directories and keys, which the caller may not be allowed to.
    pub fn peek(path: &Path) -> Result<Self, ConfigError> {
        config::load(path)
    }
}

mod defaults {
    use super::{PathBuf, Size, Span};

    pub(super) fn control() -> PathBuf {
        "/run/checkvalve-receiver/control.sock".into()
    }
    pub(super) fn memory() -> Size {
        Size::from_bytes(192 << 20)
    }
    pub(super) fn reserve() -> Size {
        Size::from_bytes(16 << 20)
    }
    pub(super) fn silence() -> Span {
        Span::from_secs(30)
    }
    pub(super) fn timeout() -> Span {
        Span::from_secs(3_600)
    }
    pub(super) fn backoff() -> Span {
        Span::from_secs(1)
    }
    pub(super) fn backoff_max() -> Span {
        Span::from_secs(300)
    }
    pub(super) fn mtu() -> u16 {
        1_500
    }
    pub(super) fn lanes() -> u16 {
        1
    }
    pub(super) fn receive_buffer() -> Size {
        Size::from_bytes(32 << 20)
    }
}

#[cfg(test)]
mod tests;
