//! Names of any bytes, in all that is printed.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;

use checkvalve_host::json::hex_unless_utf8;
use checkvalve_host::log::escape_bytes;
use checkvalve_protocol::ticket::{Data, Loss, Subject, Ticket};
use serde_json::Value;

use crate::site::{Site, good};

/// Every byte but NUL and `/`, in several names; what a terminal would obey, and what reorders text.
fn all_names() -> Vec<Vec<u8>> {
    let bytes: Vec<u8> = (1..=255).filter(|&byte| byte != b'/').collect();
    let mut names: Vec<Vec<u8>> = bytes.chunks(64).map(|bytes| [b"n", bytes].concat()).collect();
    names.push(b"\x1b[2J\nqueued\r! ledger".to_vec());
    names.push("\u{202e}txt.\u{200b}é\u{7f}\u{9b}2J\\x41".as_bytes().to_vec());
    names.push(b"\xff\xfe\x80\xc3".to_vec());
    names
}

/// Lines of text that a terminal only shows.
fn assert_safe(text: &[u8]) {
    let text = std::str::from_utf8(text).unwrap();
    assert!(!text.contains(|c: char| (c.is_control() && c != '\n') || c == '\u{202e}' || c == '\u{200b}'), "{text:?}");
}

#[test]
fn any_name_is_sent_shown_and_asked_for_again() {
    let site = Site::started("");
    for (number, name) in all_names().iter().enumerate() {
        let path = site.path("place").join(OsStr::from_bytes(name));
        fs::write(&path, name).unwrap();
        let mut command = site.command(&["send", "--wait"]);
        let said = command.arg("--").arg(&path).output().unwrap();
        good(&said);
        assert_safe(&said.stdout);
        assert_safe(&said.stderr);
        let escaped = escape_bytes(name);
        assert!(String::from_utf8_lossy(&said.stderr).contains(&escaped), "{said:?}");
        let bundle = site.wait_state(&escaped, "transmitted");
        assert_eq!(bundle["sequence"], number + 1);
        assert_eq!(bundle.get("name_hex").and_then(Value::as_str), hex_unless_utf8(name).as_deref(), "{escaped}");
        let at = bundle["claimed_at"].as_str().unwrap();
        assert!(at.starts_with("20") && at.ends_with('Z'), "{at}");
        let id = bundle["id"].as_str().unwrap().parse().unwrap();
        let subject = Subject::Bundle { bundle: id, announce: false, hashes: true, data: Data::All };
        let ticket = Ticket::new(subject, Loss::UNKNOWN).unwrap().to_text().unwrap();
        let asked = ["resend", "--dry-run", "--ticket", &ticket];
        let said = site.run(&asked);
        assert!(good(&said).contains(&escaped));
        assert_safe(&said.stdout);
        let said = good(&site.command(&asked).arg("--json").output().unwrap());
        assert!(said.starts_with("{\"schema\":1,"), "{said}");
        let said: Value = serde_json::from_str(&said).unwrap();
        assert_eq!(said["bundles"][0]["name"], escaped);
        assert_eq!(said["bundles"][0].get("name_hex").and_then(Value::as_str), hex_unless_utf8(name).as_deref());
    }
    let said = site.run(&["status"]);
    for name in all_names() {
        let line = format!("  {}", escape_bytes(&name));
        assert!(good(&said).lines().any(|shown| shown.ends_with(&line)), "{line}: {}", good(&said));
    }
    assert_safe(&said.stdout);
    let said = site.run(&["status", "--json"]);
    assert!(good(&said).starts_with("{\"schema\":1,\"daemon\":\"sender\""), "{}", good(&said));
    assert_safe(&said.stdout);
}

#[test]
fn what_is_refused_and_not_there_is_shown_as_safely() {
    let site = Site::started("");
    let name = OsStr::from_bytes(b"\x1b]0;\xff\n");
    let place = site.path("place").join(name);
    fs::create_dir(&place).unwrap();
    std::os::unix::fs::symlink(OsStr::from_bytes(b"/\x1b[31m\n"), place.join("l")).unwrap();
    for said in [
        site.command(&["send", "--wait", "--json"]).arg(&place).output().unwrap(),
        site.command(&["send"]).arg(place.join("none")).output().unwrap(),
        site.command(&["keygen", "link", "--out"]).arg(place.join("none/key")).output().unwrap(),
        site.command(&["check-config", "--config"]).arg(place.join("config")).output().unwrap(),
        site.command(&["resend", "\x1b[31m\n/1"]).output().unwrap(),
    ] {
        assert!(!said.status.success());
        assert_eq!(said.stderr.iter().filter(|&&byte| byte == b'\n').count(), 1, "{said:?}");
        assert_safe(&said.stderr);
    }
    let key = site.command(&["keygen", "link", "--json", "--out"]).arg(place.join("key")).output().unwrap();
    let json: Value = serde_json::from_str(&good(&key)).unwrap();
    assert_eq!(json["key"], escape_bytes(place.join("key").as_os_str().as_bytes()));
    let text = fs::read(site.path("sender.toml")).unwrap();
    fs::write(place.join("config"), text).unwrap();
    let json = site.command(&["check-config", "--json", "--config"]).arg(place.join("config")).output().unwrap();
    assert!(good(&json).starts_with("{\"schema\":1,"));
    let status = site.run(&["status"]);
    good(&status);
    assert_safe(&status.stdout);
}
