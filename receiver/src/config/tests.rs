use std::os::unix::fs::PermissionsExt;

use super::*;

struct Site {
    dir: tempfile::TempDir,
}

impl Site {
    fn new() -> Self {
        let dir = crate::testing::dir();
        for name in ["inbox", "quarantine", "state", "trusted.d"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        let site = Self { dir };
        site.file("link.key", &LinkKey::from_bytes([1; 32]).to_text(), 0o600);
        site.file("trusted.d/ci.pub", &crate::testing::key().public().to_text("build host"), 0o644);
        site.file("hook", "#!/bin/sh\n", 0o755);
        site
    }

    fn file(&self, name: &str, text: &str, mode: u32) {
        let path = self.dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    }

    fn text(&self) -> String {
        let dir = self.dir.path().display();
        format!(
            "inbox = \"{dir}/inbox\"\nquarantine = \"{dir}/quarantine\"\nstate = \"{dir}/state\"\ncontrol = \"{dir}/sock\"\n\
             [channel.default.hook]\ninstall = \"{dir}/hook\"\n[link]\nlisten = \"10.0.0.2:7700\"\nmtu = 1500\n\
             [keys]\nlink = \"{dir}/link.key\"\ntrusted = \"{dir}/trusted.d\"\n"
        )
    }

    fn load(&self, text: &str) -> Result<Checked, ConfigError> {
        self.file("receiver.toml", text, 0o644);
        Config::load(&self.dir.path().join("receiver.toml"))
    }
}

#[test]
fn the_example_of_the_design_is_enough() {
    let site = Site::new();
    let checked = site.load(&site.text()).unwrap();
    assert_eq!(checked.listen, ["10.0.0.2:7700".parse().unwrap()]);
    assert_eq!(checked.trusted.len(), 1);
    assert_eq!(checked.trusted.iter().next().unwrap().2, "build host");
    assert_eq!(checked.staging, site.dir.path().join("state/staging"));
    assert_eq!(checked.block_memory, 128 << 20);
    assert_eq!(checked.config.durability, Durability::Syncfs);
    assert!(checked.link_key.is_some());
}

#[test]
fn each_mistake_names_its_key_and_what_to_write() {
    let cases: &[(&str, &str, &str)] = &[
        ("mtu = 1500", "mtu = 575", "link.mtu"),
        ("mtu = 1500", "mtu = 9217", "link.mtu"),
        ("mtu = 1500", "lanes = 0", "link.lanes"),
        ("mtu = 1500", "receive_buffer = \"1 KiB\"", "link.receive_buffer"),
        ("mtu = 1500", "insecure = true", "link.insecure"),
        ("10.0.0.2:7700", "10.0.0.2", "link.listen"),
        ("10.0.0.2:7700", "10.0.0.2:0", "link.listen"),
        ("[link]", "timeout = \"0 s\"\n[link]", "channel.default.hook.timeout"),
        ("[link]", "backoff = \"9 h\"\n[link]", "channel.default.hook.backoff_max"),
        ("[link]", "colour = 1\n[link]", "channel.default.hook.colour"),
        ("[link]", "[channel.b]\nwait_for_missing = \"soon\"\n[link]", "channel.b.wait_for_missing"),
        ("inbox =", "memory = \"1 MiB\"\ninbox =", "memory"),
        ("inbox =", "silence = \"1 s\"\ninbox =", "silence"),
        ("inbox =", "workers = 0\ninbox =", "workers"),
        ("inbox =", "quota = \"0 B\"\ninbox =", "quota"),
        ("inbox =", "durability = \"none\"\ninbox =", "durability"),
        ("/quarantine", "/inbox", "quarantine"),
        ("/state\"", "/nowhere\"", "state"),
        ("/sock", "/nowhere/sock", "control"),
        ("/hook", "/receiver.toml", "channel.default.hook.install"),
        ("/link.key", "/hook", "keys.link"),
    ];
    for (from, to, key) in cases {
        let site = Site::new();
        let text = site.text().replace(from, to);
        assert_ne!(text, site.text(), "{from}");
        let error = site.load(&text).err().unwrap_or_else(|| panic!("{to} was accepted"));
        assert_eq!(error.key, *key, "{error}");
        assert!(!error.hint.is_empty() && error.to_string().lines().count() == 1, "{error}");
    }
}

#[test]
fn keys_that_cannot_be_are_refused() {
    let site = Site::new();
    site.file("trusted.d/bad.pub", "nonsense", 0o644);
    assert_eq!(site.load(&site.text()).unwrap_err().key, "keys.trusted");
    site.file("trusted.d/bad.pub", &crate::testing::key().public().to_text(""), 0o666);
    assert_eq!(site.load(&site.text()).unwrap_err().key, "keys.trusted");
    std::fs::remove_file(site.dir.path().join("trusted.d/bad.pub")).unwrap();
    site.file("trusted.d/README", "no key", 0o644);
    site.load(&site.text()).unwrap();
    site.file("link.key", &LinkKey::from_bytes([1; 32]).to_text(), 0o640);
    assert_eq!(site.load(&site.text()).unwrap_err().key, "keys.link");
}
