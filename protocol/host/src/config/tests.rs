use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;

use serde::Deserialize;

use super::*;
use crate::units::{Rate, SpanOrForever};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    link: Link,
    #[serde(default)]
    channel: BTreeMap<String, Channel>,
    spool: Option<PathBuf>,
    mode: Option<Mode>,
    #[serde(default)]
    lanes: Vec<Link>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Link {
    rate: Rate,
    mtu: Option<u16>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Channel {
    priority: i16,
    wait_for_missing: Option<SpanOrForever>,
}

#[derive(Debug, Deserialize, PartialEq)]
#[serde(rename_all = "lowercase")]
enum Mode {
    Once,
    Carousel,
}

fn mistake(text: &str) -> String {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("sender.toml");
    std::fs::write(&file, text).unwrap();
    let line = load::<Config>(&file).unwrap_err().to_string();
    assert!(!line.contains('\n'), "{line}");
    line.strip_prefix(&format!("{}: ", file.display())).expect("the file's name").to_owned()
}

#[test]
fn a_file_that_others_may_write_to_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("sender.toml");
    std::fs::write(&file, "[link]\nrate = '9 Mbit/s'\n").unwrap();
    for (mode, refused) in [(0o600, false), (0o644, false), (0o664, true), (0o646, true), (0o622, true)] {
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).unwrap();
        let loaded = load::<Config>(&file).map(|_| ()).map_err(|error| error.to_string());
        let shown = file.display();
        let expected = format!("{shown}: others may write to it (its mode is {mode:04o}); run `chmod go-w {shown}`");
        assert_eq!(loaded, if refused { Err(expected) } else { Ok(()) });
    }
}

#[test]
fn reads_what_is_right() {
    let config: Config = parse(
        "spool = '/var/spool'\nmode = 'carousel'\n[link]\nrate = '900 Mbit/s'\nmtu = 9000\n\
         [channel.default]\npriority = -3\nwait_for_missing = 'forever'",
    )
    .unwrap();
    assert_eq!((config.link.rate.bits(), config.link.mtu), (900_000_000, Some(9000)));
    assert_eq!(config.channel["default"].priority, -3);
    assert_eq!(config.channel["default"].wait_for_missing, Some(SpanOrForever::Forever));
    assert_eq!((config.spool, config.mode, config.lanes.len()), (Some("/var/spool".into()), Some(Mode::Carousel), 0));
}

#[test]
fn every_mistake_is_one_line_with_the_key_and_what_to_write() {
    let good = "[link]\nrate = '1 bit/s'\n";
    for (text, line) in [
        ("[link]\nrate = '900'", r#"key `link.rate`: "900" has no unit; write a unit, for example "900 Mbit/s""#),
        ("[link]\nrate = 900", r#"key `link.rate`: "900" has no unit; write a unit, for example "900 Mbit/s""#),
        ("[link]\nrate = true", r#"key `link.rate`: it is boolean `true`; write a rate, for example "900 Mbit/s""#),
        (
            "[link]\nrate = '0 bit/s'",
            "key `link.rate`: \"0 bit/s\" would send nothing; write a rate above 0, for example \"900 Mbit/s\"",
        ),
        ("[link]\nmut = 5", "key `link.mut`: there is no such key; write `mtu`"),
        ("[link]\nspeed = 5", "key `link.speed`: there is no such key; write one of `rate`, `mtu`"),
        ("lnk = 5", "key `lnk`: there is no such key; write `link`"),
        ("[link]", "key `link.rate`: it is missing; write `rate = …` in `[link]`"),
        ("", "key `link`: it is missing; write `link = …` at the top"),
        ("link = 5", "key `link`: it is integer `5`; write a table"),
        (
            &format!("{good}mtu = 70000"),
            "key `link.mtu`: it is integer `70000`; write a whole number from 0 to 65535, without quotes",
        ),
        (
            &format!("{good}[channel.\"a b\"]\npriority = '1'"),
            "key `channel.\"a b\".priority`: it is string \"1\"; write a whole number from -32768 to 32767, without quotes",
        ),
        (
            &format!("lanes = [{{rate = '1 bit/s'}}, {{rate = 5}}]\n{good}"),
            "key `lanes[1].rate`: \"5\" has no unit; write a unit, for example \"5 Mbit/s\"",
        ),
        (&format!("mode = 'onse'\n{good}"), "key `mode`: `onse` is not one of its values; write `once`"),
        (&format!("mode = 'x'\n{good}"), "key `mode`: `x` is not one of its values; write one of `once`, `carousel`"),
        (&format!("spool = 5\n{good}"), "key `spool`: it is integer `5`; write text in quotes"),
        (&format!("{good}rate = '2 bit/s'"), "line 3: `rate` is there twice; write it once"),
        ("[link\nrate = 1", "line 1: unclosed table; write `]`"),
        ("\n\nx = 'abc\n", "line 3: invalid literal string; write `'`"),
    ] {
        assert_eq!(mistake(text), line, "{text}");
    }
    let odd = mistake("\"a\\nb\" = 1");
    assert!(odd.starts_with(r#"key `"a\nb"`: there is no such key"#), "{odd}");
    assert!(!mistake("x = \"\u{1b}[31m\"").contains('\u{1b}'));
}

#[test]
fn a_file_that_cannot_be_read_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let told = |name: &str| load::<Config>(&at(name)).unwrap_err().to_string();
    assert!(told("none").contains("does not exist; write the path"), "{}", told("none"));
    assert!(told("").contains("is not a regular file"));
    rustix::fs::mknodat(rustix::fs::CWD, at("fifo"), rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0).unwrap();
    assert!(told("fifo").contains("is not a regular file"), "and does not hang");
    std::fs::write(at("binary"), [0xff, 0xfe]).unwrap();
    assert!(told("binary").contains("UTF-8"));
    std::fs::write(at("huge"), vec![b'\n'; 2 << 20]).unwrap();
    assert!(told("huge").contains("longer than 1 MiB"));
}

#[test]
fn directories_must_be_there() {
    let dir = tempfile::tempdir().unwrap();
    existing_dir("spool", dir.path()).unwrap();
    writable_dir("spool", dir.path()).unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    for (path, part) in
        [(Path::new("spool"), "not absolute"), (&file, "not a directory"), (&file.join("x"), "not a directory")]
    {
        let told = existing_dir("spool", path).unwrap_err().to_string();
        assert!(told.starts_with("key `spool`: ") && told.contains(part), "{told}");
    }
    let told = writable_dir("state", &dir.path().join("a\nb")).unwrap_err().to_string();
    assert!(told.contains("does not exist; create it (`mkdir -p") && !told.contains('\n'), "{told}");
    if !rustix::process::geteuid().is_root() {
        let told = writable_dir("state", Path::new("/")).unwrap_err().to_string();
        assert!(told.contains("`/` cannot be written to: permission denied; give it to the user"), "{told}");
    }
}

#[test]
fn secrets_that_others_can_read_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("link.key");
    let mode = |mode| std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
    let told = || key_file("keys.link", &path).unwrap_err().to_string();
    assert!(told().starts_with("key `keys.link`: file `"), "{}", told());
    std::fs::write(&path, "secret\n").unwrap();
    for open in [0o644, 0o640, 0o604, 0o620, 0o601, 0o610] {
        mode(open);
        assert!(
            told().contains(&format!("(its mode is {open:04o}); run `chmod 600 {}`", path.display())),
            "{}",
            told()
        );
    }
    for closed in [0o600, 0o400] {
        mode(closed);
        assert_eq!(key_file("keys.link", &path).unwrap(), "secret\n");
    }
    std::os::unix::fs::symlink(&path, dir.path().join("link")).unwrap();
    assert_eq!(key_file("keys.link", &dir.path().join("link")).unwrap(), "secret\n");
    mode(0o666);
    assert!(public_file("keys.trusted", &path).unwrap_err().to_string().contains("chmod o-w"));
    mode(0o664);
    assert_eq!(public_file("keys.trusted", &path).unwrap(), "secret\n");
    assert!(key_file("keys.link", Path::new("/dev/zero")).unwrap_err().to_string().contains("not a regular file"));
    assert!(key_file("keys.link", dir.path()).unwrap_err().to_string().contains("not a regular file"));
}
