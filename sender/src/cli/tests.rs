use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use clap::CommandFactory;

use super::*;

#[test]
fn the_command_line_is_as_documented() {
    Cli::command().debug_assert();
    let parse = |line: &str| Cli::try_parse_from(line.split(' '));
    for good in [
        "x run --config f",
        "x --config f --json status --watch",
        "x send a b --channel c --wait",
        "x send --link --name n a",
        "x resend default/1 --blocks 3-5,9",
        "x keygen link --out f",
        "x keygen signing --out f --comment me",
        "x check-config --json",
        "x adopt --sequences default=413,images=20 --epoch 3 --again default/405 images/7",
        "x adopt --sequences a=1 --sequences b=2 --json",
    ] {
        assert!(parse(good).is_ok(), "{good}");
    }
    for bad in
        ["x", "x send", "x send a --channel A", "x resend", "x resend a/1 --blocks 5-3", "x keygen", "x keygen link"]
    {
        assert!(parse(bad).is_err(), "{bad}");
    }
}

#[test]
fn every_command_and_option_has_help() {
    fn check(command: &clap::Command) {
        assert!(command.get_about().is_some(), "{}", command.get_name());
        for argument in command.get_arguments() {
            assert!(argument.get_help().is_some(), "{} {}", command.get_name(), argument.get_id());
        }
        command.get_subcommands().filter(|c| c.get_name() != "help").for_each(check);
    }
    check(&Cli::command());
}

#[test]
fn keys_are_made_once_and_for_their_owner_only() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str| dir.path().join(name);
    let mode = |name: &str| fs::metadata(file(name)).unwrap().mode() & 0o7777;
    let link = keygen::KeyKind::Link { out: file("link.key") };
    keygen::keygen(&link, true).unwrap();
    let signing = keygen::KeyKind::Signing { out: file("sign.key"), comment: Some("the low side".into()) };
    keygen::keygen(&signing, true).unwrap();
    assert_eq!((mode("link.key"), mode("sign.key"), mode("sign.key.pub")), (0o600, 0o600, 0o644));
    let text = |name: &str| fs::read_to_string(file(name)).unwrap();
    checkvalve_protocol::crypto::LinkKey::from_text(&text("link.key")).unwrap();
    let secret = checkvalve_protocol::crypto::SigningKey::from_text(&text("sign.key")).unwrap();
    let (public, comment) = checkvalve_protocol::crypto::PublicKey::from_text(&text("sign.key.pub")).unwrap();
    assert_eq!((public, comment.as_str()), (secret.public(), "the low side"));
    let before = text("link.key");
    assert_eq!(keygen::keygen(&link, true).unwrap_err().exit(), Exit::CantCreat);
    assert_eq!(text("link.key"), before);
    // A public half that is in the way leaves no secret behind.
    fs::remove_file(file("sign.key")).unwrap();
    assert!(keygen::keygen(&signing, true).is_err());
    assert!(!file("sign.key").exists());
    let nowhere = keygen::KeyKind::Link { out: file("none/link.key") };
    assert!(keygen::keygen(&nowhere, true).unwrap_err().to_string().contains("directory does not exist"));
}

#[test]
fn trees_are_copied_exactly() {
    let dir = tempfile::tempdir().unwrap();
    let from = dir.path().join("from");
    fs::create_dir_all(from.join("a/locked")).unwrap();
    fs::write(from.join("a/f"), "content").unwrap();
    fs::write(from.join("a/locked/g"), "").unwrap();
    symlink("../a/f", from.join("a/l")).unwrap();
    fs::set_permissions(from.join("a/f"), PermissionsExt::from_mode(0o640)).unwrap();
    fs::set_permissions(from.join("a/locked"), PermissionsExt::from_mode(0o555)).unwrap();
    let time = std::time::UNIX_EPOCH + std::time::Duration::new(1_000_000_000, 123_456_789);
    fs::File::open(from.join("a/f")).unwrap().set_modified(time).unwrap();
    fs::File::open(from.join("a/locked")).unwrap().set_modified(time).unwrap();
    for link in [false, true] {
        let to = dir.path().join(format!("to{link}"));
        copy::tree(&from, &to, link).unwrap();
        for path in ["", "a", "a/f", "a/l", "a/locked", "a/locked/g"] {
            let (was, is) = (from.join(path).symlink_metadata().unwrap(), to.join(path).symlink_metadata().unwrap());
            assert_eq!(
                (was.mode(), was.modified().unwrap(), was.len()),
                (is.mode(), is.modified().unwrap(), is.len()),
                "{path}"
            );
            assert_eq!(was.is_file() && link, was.ino() == is.ino(), "{path}");
        }
        assert_eq!(fs::read_link(to.join("a/l")).unwrap(), std::path::Path::new("../a/f"));
    }
    let (at, error) = copy::tree(&from, &from.join("a/into"), false).unwrap_err();
    assert!(at == from && error.to_string().contains("the spool is in it"), "{error}");
    rustix::fs::mknodat(rustix::fs::CWD, from.join("pipe"), rustix::fs::FileType::Fifo, 0o644.into(), 0).unwrap();
    assert!(copy::tree(&from, &dir.path().join("pipe"), false).is_err());
}
