use std::fs;
use std::os::unix::fs::PermissionsExt;

use super::*;

/// A directory with all that a config names.
struct Site {
    dir: tempfile::TempDir,
}

impl Site {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for name in ["spool", "state"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        let site = Self { dir };
        site.key("link.key", &LinkKey::from_bytes([1; 32]).to_text(), 0o600);
        site.key("signing.key", &SigningKey::from_seed([2; 32]).to_text(), 0o600);
        site
    }

    fn key(&self, name: &str, text: &str, mode: u32) {
        let path = self.dir.path().join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
    }

    fn text(&self) -> String {
        let dir = self.dir.path().display();
        format!(
            "spool = \"{dir}/spool\"\nstate = \"{dir}/state\"\ncontrol = \"{dir}/control.sock\"\n[channel.default]\n[link]\n\
             destination = \"10.0.0.2:7700\"\nmtu = 1500\nrate = \"900 Mbit/s\"\n[keys]\nlink = \"{dir}/link.key\"\n\
             signing = \"{dir}/signing.key\"\n"
        )
    }

    fn load(&self, text: &str) -> Result<Checked, String> {
        let path = self.dir.path().join("sender.toml");
        fs::write(&path, text).unwrap();
        Config::load(&path).map_err(|error| {
            let line = error.to_string();
            let prefix = format!("{}: ", path.display());
            line.strip_prefix(&prefix).unwrap_or_else(|| panic!("no file in {line}")).to_owned()
        })
    }
}

#[test]
fn the_usual_config_has_the_usual_defaults() {
    let site = Site::new();
    let checked = site.load(&site.text()).unwrap();
    let config = &checked.config;
    assert_eq!((config.settle.millis(), config.rescan.millis(), config.memory.bytes()), (2_000, 10_000, 192 << 20));
    assert_eq!((config.fec.passes, config.fec.burst.millis(), config.link.lanes), (1, 10, 1));
    assert_eq!((config.retain.size.bytes(), config.retain.age.millis()), (100 << 30, 30 * 86_400_000));
    assert_eq!(
        checked.rules.into_iter().collect::<Vec<_>>(),
        [(ChannelName::new("default").unwrap(), Rules::default())]
    );
    assert!(checked.link_key.is_some());
    assert_eq!(checked.parameters.symbol_size(), 1_408);
    assert!(!checked.parameters.memory_binds());
}

#[test]
fn every_key_is_taken() {
    let site = Site::new();
    let text =
        site.text().replace("[channel.default]\n", "settle = \"5 s\"\nrescan = \"1 min\"\nmemory = \"256 MiB\"\n")
            + "[channel.trust]\npriority = -3\npasses = 4\npass_interval = \"10 min\"\ncarousel = \"1 h\"\n\
           [fec]\nrepair = \"10 %\"\nburst = \"20 ms\"\npasses = 2\n[retain]\nsize = \"1 GiB\"\nage = \"1 d\"\n";
    let text = text.replace("rate = ", "lanes = 2\nrate = ");
    let checked = site.load(&text).unwrap();
    let rules = checked.rules.values().copied().collect::<Vec<_>>();
    let expected = Rules { priority: -3, passes: 4, pass_interval_ms: 600_000, carousel_ms: Some(3_600_000) };
    assert_eq!(rules, [expected]);
    assert_eq!(checked.config.settle.millis(), 5_000);
    let open = text.replace("[link]", "[link]\ninsecure = true").replace("link = ", "#");
    assert!(site.load(&open).unwrap().link_key.is_none());
    let none = site.text().replace("[channel.default]\n", "");
    assert_eq!(site.load(&none).unwrap().rules.len(), 1);
}

#[test]
fn every_mistake_is_one_line_with_the_key_and_what_to_write() {
    let site = Site::new();
    let usual = site.text();
    let dir = site.dir.path().display().to_string();
    site.key("open.key", &LinkKey::from_bytes([1; 32]).to_text(), 0o640);
    site.key("junk.key", "junk", 0o600);
    let mistakes: &[(&str, &str, &str, &[&str])] = &[
        ("[link]", "[link]\nrat = 1", "link.rat", &["no such key", "write `rate`"]),
        ("[link]", "[links]", "links", &["no such key"]),
        ("900 Mbit/s", "900", "link.rate", &["no unit", "write"]),
        ("900 Mbit/s", "900 MB", "link.rate", &["not a unit", "Mbit/s"]),
        ("900 Mbit/s", "0 Mbit/s", "link.rate", &["rate above 0"]),
        ("900 Mbit/s", "1 bit/s", "link.rate", &["64 kbit/s", "write"]),
        ("rate = \"900 Mbit/s\"\n", "", "link.rate", &["missing", "write `rate = …`"]),
        ("mtu = 1500", "mtu = 575", "link.mtu", &["575 is too small", "576 to 9216"]),
        ("mtu = 1500", "mtu = 9217", "link.mtu", &["9217 is too large"]),
        ("mtu = 1500", "mtu = \"1500\"", "link.mtu", &["write a whole number"]),
        ("10.0.0.2:7700", "receiver:7700", "link.destination", &["not an address", "10.0.0.2:7700"]),
        ("10.0.0.2:7700", "10.0.0.2:0", "link.destination", &["nothing can be sent"]),
        ("10.0.0.2:7700\"", "10.0.0.2:65535\"\nlanes = 2", "link.destination", &["65535"]),
        ("mtu = 1500", "lanes = 0", "link.lanes", &["1 to 64"]),
        ("spool\"", "nowhere\"", "spool", &["does not exist", "mkdir -p"]),
        ("state\"", "nowhere\"", "state", &["does not exist", "mkdir -p"]),
        ("/state\"", "/spool\"", "state", &["contain each other"]),
        ("/control.sock\"", "/nowhere/control.sock\"", "control", &["does not exist"]),
        ("link.key", "none.key", "keys.link", &["does not exist", "keygen link"]),
        ("link.key", "open.key", "keys.link", &["others may read", "chmod 600"]),
        ("link.key", "junk.key", "keys.link", &["keygen link"]),
        ("link.key", "signing.key", "keys.link", &["kind", "keygen link"]),
        ("signing.key", "link.key", "keys.signing", &["keygen signing"]),
        ("[link]", "[link]\ninsecure = true", "link.insecure", &["keys.link", "remove"]),
        ("[channel.default]", "[channel.Default]", "channel.Default", &["a-z"]),
        ("[channel.default]", "[channel.default]\npasses = 0", "channel.default.passes", &["1 to 100"]),
        ("[channel.default]", "[channel.default]\ncarousel = \"10 ms\"", "channel.default.carousel", &["1 s"]),
        ("[channel.default]", "[channel.default]\npriority = 40000", "channel.default.priority", &["write"]),
        ("[channel.default]", "memory = \"1 MiB\"", "memory", &["too little", "write at least"]),
        ("[keys]", "[fec]\nrepair = \"500 %\"\n[keys]", "fec.repair", &["400 %"]),
        ("[keys]", "[fec]\nburst = \"2 min\"\n[keys]", "fec.burst", &["60 s"]),
        ("[keys]", "[fec]\npasses = 101\n[keys]", "fec.passes", &["1 to 100"]),
        ("[keys]", "[retain]\nage = \"1 year\"\n[keys]", "retain.age", &["not a unit"]),
    ];
    for (from, to, key, words) in mistakes {
        let text = usual.replacen(from, to, 1);
        assert_ne!(&text, &usual, "{from}");
        let line = site.load(&text).expect_err(key);
        assert!(!line.contains('\n'), "{line}");
        assert!(line.starts_with(&format!("key `{key}`: ")), "{key}: {line}");
        assert!(words.iter().all(|word| line.contains(word)), "{words:?}: {line}");
    }
    let without = usual.replace(&format!("link = \"{dir}/link.key\"\n"), "");
    let line = site.load(&without).unwrap_err();
    assert!(line.starts_with("key `keys.link`: it is missing; write `link = "), "{line}");
    let channels: String = (0..65).map(|n| format!("[channel.c{n}]\n")).collect();
    assert!(site.load(&(usual + &channels)).unwrap_err().contains("at most 64"));
}

#[test]
fn what_others_may_write_to_is_not_believed() {
    let site = Site::new();
    let path = site.dir.path().join("sender.toml");
    site.load(&site.text()).unwrap();
    for (mode, refused) in [(0o664, true), (0o646, true), (0o644, false), (0o620, true), (0o600, false)] {
        fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
        let shown = path.display();
        for said in [Config::load(&path).err(), Config::peek(&path).err()] {
            let expected =
                format!("{shown}: others may write to it (its mode is {mode:04o}); run `chmod go-w {shown}`");
            assert_eq!(said.map(|error| error.to_string()), refused.then_some(expected));
        }
    }
    for mode in [0o620, 0o602] {
        site.key("link.key", &LinkKey::from_bytes([1; 32]).to_text(), mode);
        let line = site.load(&site.text()).unwrap_err();
        assert!(line.starts_with("key `keys.link`: ") && line.contains("chmod 600"), "{line}");
    }
}

#[test]
fn commands_find_the_daemon_without_reading_its_keys() {
    let site = Site::new();
    let text = site.text().replace("link.key", "none.key");
    assert!(site.load(&text).is_err());
    let config = Config::peek(&site.dir.path().join("sender.toml")).unwrap();
    assert!(config.control.ends_with("control.sock"));
}
