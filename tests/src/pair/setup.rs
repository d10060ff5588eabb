//! Describing a pair before it starts: the link, both config files, the keys, the hook.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;
use toml::{Table, Value};

use super::rights::{self, Rights};
use super::{High, Low, Pair, hook};
use crate::link::{HIGH, Link, Loss, PORT};
use crate::shell::output;

/// The description of a pair. Settings that are not given keep the daemons' defaults, except the rate.
#[derive(Clone, Debug)]
pub struct Setup {
    mtu: u16,
    gso: bool,
    loss: Loss,
    tmpfs: bool,
    hook: String,
    receiver_runs: bool,
    rights: Rights,
    sender: Vec<(String, Value)>,
    receiver: Vec<(String, Value)>,
}

/// Both sides' files, without a link between them.
#[derive(Debug)]
pub struct Site {
    /// Files of the low side.
    pub low: Low,
    /// Files of the high side.
    pub high: High,
    /// Where the programs are.
    pub bin: PathBuf,
    /// Where both sides' files are; removed when dropped.
    pub dir: TempDir,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            mtu: 1500,
            gso: true,
            loss: Loss::None,
            tmpfs: false,
            hook: "exit 0".to_owned(),
            receiver_runs: true,
            rights: Rights::Root,
            sender: Vec::new(),
            receiver: Vec::new(),
        }
    }
}

impl Setup {
    /// MTU of the link and of both configs, in bytes.
    #[must_use]
    pub fn mtu(mut self, mtu: u16) -> Self {
        self.mtu = mtu;
        self
    }

    /// Segmentation offload on the sender's end. Switch it off if loss must affect single datagrams.
    #[must_use]
    pub fn gso(mut self, on: bool) -> Self {
        self.gso = on;
        self
    }

    /// What the link loses from the start.
    #[must_use]
    pub fn loss(mut self, loss: Loss) -> Self {
        self.loss = loss;
        self
    }

    /// `[link] rate`, such as "900 Mbit/s".
    #[must_use]
    pub fn rate(self, rate: &str) -> Self {
        self.sender("link.rate", rate)
    }

    /// `[fec] repair`, such as "15 %".
    #[must_use]
    pub fn repair(self, repair: &str) -> Self {
        self.sender("fec.repair", repair)
    }

    /// `[fec] passes`.
    #[must_use]
    pub fn passes(self, passes: i64) -> Self {
        self.sender("fec.passes", passes)
    }

    /// Keeps both sides' files on a tmpfs (/dev/shm).
    #[must_use]
    pub fn on_tmpfs(mut self) -> Self {
        self.tmpfs = true;
        self
    }

    /// What the install hook does after recording its run: lines of POSIX shell.
    #[must_use]
    pub fn hook(mut self, then: &str) -> Self {
        then.clone_into(&mut self.hook);
        self
    }

    /// Starts the sender only.
    #[must_use]
    pub fn without_receiver(mut self) -> Self {
        self.receiver_runs = false;
        self
    }

    /// Runs the sender without root's right to override file modes.
    #[must_use]
    pub fn sender_obeys_modes(mut self) -> Self {
        self.rights = Rights::SenderObeysModes;
        self
    }

    /// Runs both daemons as a user of their own, with the capabilities that the systemd units leave them.
    #[must_use]
    pub fn as_the_units_do(mut self) -> Self {
        self.rights = Rights::Units;
        self
    }

    /// Sets a key of the sender's config, by its dotted name.
    #[must_use]
    pub fn sender(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.sender.push((key.to_owned(), value.into()));
        self
    }

    /// Sets a key of the receiver's config, by its dotted name.
    #[must_use]
    pub fn receiver(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.receiver.push((key.to_owned(), value.into()));
        self
    }

    /// Makes the link, the directories, the keys and the configs, and starts the daemons.
    ///
    /// # Panics
    /// When anything of that fails.
    pub fn start(self) -> Pair {
        let receiver_runs = self.receiver_runs;
        let mut pair = self.lay();
        if receiver_runs {
            pair.start_receiver();
        }
        pair.start_sender();
        pair
    }

    /// As [`Setup::start`], but starts no daemon.
    ///
    /// # Panics
    /// When anything of that fails.
    pub fn lay(self) -> Pair {
        let Site { low, high, mut bin, dir } = self.files();
        if self.rights == Rights::Units {
            bin = rights::hand_over(dir.path(), &bin);
        }
        let link = Link::new(self.mtu, self.gso);
        link.set_loss(self.loss);
        Pair { sender: None, receiver: None, link, low, high, bin, rights: self.rights, dir }
    }

    /// Makes the directories, the keys, the hook and the configs, and no link: needs no root.
    ///
    /// # Panics
    /// When anything of that fails.
    pub fn files(&self) -> Site {
        let parent = if self.tmpfs { PathBuf::from("/dev/shm") } else { std::env::temp_dir() };
        let dir = tempfile::Builder::new().prefix("cv-").tempdir_in(parent).expect("a directory can be made");
        let bin = crate::skip::bin_dir();
        let (low, high) = (Low::below(&dir.path().join("low")), High::below(&dir.path().join("high")));
        make_keys(&bin, &low, &high);
        hook::write(&high.hook, &high.runs, &self.hook);
        write_config(&low.config, self.sender_config(&low), &self.sender);
        write_config(&high.config, self.receiver_config(&high), &self.receiver);
        Site { low, high, bin, dir }
    }

    fn sender_config(&self, low: &Low) -> Table {
        let mut config = Table::new();
        set(&mut config, "spool", text(&low.spool));
        set(&mut config, "state", text(&low.state));
        set(&mut config, "control", text(&low.config.with_file_name("control.sock")));
        set(&mut config, "channel.default.priority", Value::from(0));
        set(&mut config, "link.destination", Value::from(format!("{HIGH}:{PORT}")));
        set(&mut config, "link.mtu", Value::from(i64::from(self.mtu)));
        set(&mut config, "link.rate", Value::from("900 Mbit/s"));
        set(&mut config, "keys.link", text(&low.keys.join("link.key")));
        set(&mut config, "keys.signing", text(&low.keys.join("signing.key")));
        config
    }

    fn receiver_config(&self, high: &High) -> Table {
        let mut config = Table::new();
        set(&mut config, "inbox", text(&high.inbox));
        set(&mut config, "quarantine", text(&high.quarantine));
        set(&mut config, "state", text(&high.state));
        set(&mut config, "control", text(&high.config.with_file_name("control.sock")));
        set(&mut config, "channel.default.hook.install", text(&high.hook));
        set(&mut config, "link.listen", Value::from(format!("{HIGH}:{PORT}")));
        set(&mut config, "link.mtu", Value::from(i64::from(self.mtu)));
        set(&mut config, "keys.link", text(&high.keys.join("link.key")));
        set(&mut config, "keys.trusted", text(&high.keys.join("trusted.d")));
        config
    }
}

impl Low {
    fn below(root: &Path) -> Self {
        let low = Self {
            spool: root.join("spool"),
            state: root.join("state"),
            place: root.join("place"),
            keys: root.join("keys"),
            config: root.join("sender.toml"),
            log: root.join("log"),
        };
        for directory in [&low.spool.join("default"), &low.state, &low.place, &low.keys] {
            std::fs::create_dir_all(directory).expect("a directory can be made");
        }
        low
    }
}

impl High {
    fn below(root: &Path) -> Self {
        let high = Self {
            inbox: root.join("data/inbox"),
            quarantine: root.join("data/quarantine"),
            state: root.join("data/state"),
            data: root.join("data"),
            hook: root.join("hook"),
            keys: root.join("keys"),
            config: root.join("receiver.toml"),
            log: root.join("log"),
            runs: root.join("runs"),
        };
        for directory in [&high.inbox, &high.quarantine, &high.state, &high.keys.join("trusted.d"), &high.runs] {
            std::fs::create_dir_all(directory).expect("a directory can be made");
        }
        high
    }
}

/// Sets a value by its dotted name, making the tables on the way.
///
/// # Panics
/// When the name is empty or goes through something that is no table.
pub fn set(table: &mut Table, key: &str, value: Value) {
    match key.split_once('.') {
        None => drop(table.insert(key.to_owned(), value)),
        Some((first, rest)) => {
            let below = table.entry(first).or_insert_with(|| Value::Table(Table::new()));
            set(below.as_table_mut().unwrap_or_else(|| panic!("{first} is no table")), rest, value);
        }
    }
}

fn write_config(path: &Path, mut config: Table, changes: &[(String, Value)]) {
    for (key, value) in changes {
        set(&mut config, key, value.clone());
    }
    std::fs::write(path, config.to_string()).expect("a config can be written");
}

/// Makes the keys with the sender's own `keygen`, and carries them over as an operator would.
fn make_keys(bin: &Path, low: &Low, high: &High) {
    for (kind, name) in [("link", "link.key"), ("signing", "signing.key")] {
        let mut command = Command::new(bin.join("checkvalve-sender"));
        output(command.args(["keygen", kind, "--out"]).arg(low.keys.join(name)));
    }
    let link_key = high.keys.join("link.key");
    std::fs::copy(low.keys.join("link.key"), &link_key).expect("a key can be copied");
    std::fs::set_permissions(&link_key, Permissions::from_mode(0o600)).expect("a mode can be set");
    let public = high.keys.join("trusted.d/build.pub");
    std::fs::copy(low.keys.join("signing.key.pub"), &public).expect("a key can be copied");
}

fn text(path: &Path) -> Value {
    Value::from(path.to_str().expect("test paths are plain text"))
}
