//! The files under `vectors/` hold what `SPEC.md` says, and this crate agrees with each of them.
//!
//! `CHECKVALVE_WRITE_VECTORS=1 cargo test -p checkvalve-protocol --test vectors` writes the generated ones anew.

mod announces;
mod beacons;
mod cases;
mod datagrams;
mod hashes;
mod tickets;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use cases::{Case, hex, signer, trust, unhex};
use checkvalve_protocol::beacon::Beacon;
use checkvalve_protocol::codec::{self, CodecError};
use checkvalve_protocol::crypto::{LinkKey, PublicKey, SigningKey};
use checkvalve_protocol::manifest::{Announce, Hashes, Opened, signed};
use checkvalve_protocol::path::{LinkTarget, PathError, SafePath};
use toml::Table;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("vectors")
}

fn table(path: &Path) -> Table {
    let text = fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    text.parse().unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn text<'a>(table: &'a Table, key: &str) -> &'a str {
    table[key].as_str().unwrap_or_else(|| panic!("{key} is no string"))
}

/// Every file in the folders of cases, by folder and name.
fn files() -> BTreeMap<String, PathBuf> {
    let mut files = BTreeMap::new();
    for kind in ["manifest", "beacon", "datagram"] {
        for file in fs::read_dir(folder().join(kind)).unwrap() {
            let path = file.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            files.insert(format!("{kind}/{name}"), path);
        }
    }
    files
}

#[test]
fn every_file_holds() {
    for (name, path) in files() {
        let file = table(&path);
        let bytes = unhex(text(&file, "hex"));
        let (rule, value) = match text(&file, "kind") {
            "announce" => cases::outcome(Announce::open(&bytes, &trust()), |e| e.rule(), announces::describe),
            "hashes" => cases::outcome(Hashes::open(&bytes, &trust()), |e| e.rule(), hashes::describe),
            "beacon" => cases::outcome(Beacon::decode(&bytes), |e| e.rule(), beacons::describe),
            "datagram" => datagrams::open(&bytes, true),
            "insecure-datagram" => datagrams::open(&bytes, false),
            other => panic!("{name}: kind {other}"),
        };
        assert_eq!(rule, text(&file, "expect"), "{name}");
        assert_eq!(value.as_ref(), file.get("value").map(|v| v.as_table().unwrap()), "{name}");
        assert!(text(&file, "why").len() >= 8, "{name} says why");
        let stem = name.split('/').next_back().unwrap().trim_end_matches(".toml");
        assert!(stem.starts_with("good-") == (rule == "ok"), "{name} is named for what it is");
    }
}

#[test]
fn the_files_are_those_that_the_cases_make() {
    let cases: Vec<Case> = [announces::cases(), hashes::cases(), beacons::cases(), datagrams::cases()].concat();
    let made: BTreeMap<_, _> = cases.iter().map(|case| (case.file.clone(), case.to_toml())).collect();
    assert_eq!(made.len(), cases.len(), "two cases have one name");
    if std::env::var_os("CHECKVALVE_WRITE_VECTORS").is_some() {
        for (name, text) in &made {
            let path = folder().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
    }
    let files = files();
    assert_eq!(files.keys().collect::<Vec<_>>(), made.keys().collect::<Vec<_>>());
    for (name, path) in files {
        assert!(fs::read_to_string(path).unwrap() == made[&name], "{name} is stale");
    }
}

#[test]
fn keys_are_as_written() {
    let keys = table(&folder().join("keys.toml"));
    let link = keys["link"].as_table().unwrap();
    let key = LinkKey::from_text(text(link, "file")).unwrap();
    assert_eq!((hex(key.as_bytes()), key.id().to_string()), (text(link, "bytes").into(), text(link, "id").into()));
    for name in ["trusted", "stranger"] {
        let it = keys[name].as_table().unwrap();
        let key = SigningKey::from_text(text(it, "file")).unwrap();
        assert_eq!(key.to_text(), text(it, "file"));
        assert_eq!(signer(name).public(), key.public());
        assert_eq!(key.to_text(), format!("checkvalve-signing-1 {}\n", text(it, "seed")));
        assert_eq!(hex(key.public().as_bytes()), text(it, "public"));
        assert_eq!(key.public().id().to_string(), text(it, "id"));
        let (public, comment) = PublicKey::from_text(text(it, "public_file")).unwrap();
        assert_eq!((public, comment.as_str()), (key.public(), name));
        assert_eq!(hex(&key.sign(signed::ANNOUNCE, b"payload")), text(it, "signature_of_payload_as_announce"));
        assert_eq!(hex(&key.sign(signed::HASHES, b"payload")), text(it, "signature_of_payload_as_hashes"));
    }
}

#[test]
fn integers_are_as_written() {
    let file = table(&folder().join("integers.toml"));
    for case in file["good"].as_array().unwrap() {
        let case = case.as_table().unwrap();
        let (value, bytes) = (text(case, "value"), unhex(text(case, "hex")));
        match text(case, "type") {
            "u64" => assert_eq!((codec::encode(&value.parse::<u64>().unwrap()), value), (bytes, value)),
            "i64" => assert_eq!((codec::encode(&value.parse::<i64>().unwrap()), value), (bytes, value)),
            "i16" => assert_eq!((codec::encode(&value.parse::<i16>().unwrap()), value), (bytes, value)),
            other => panic!("{other}"),
        }
    }
    for case in file["read"].as_array().unwrap() {
        let case = case.as_table().unwrap();
        let (value, bytes) = (text(case, "value").parse().unwrap(), unhex(text(case, "hex")));
        match text(case, "type") {
            "u64" => assert_eq!(codec::decode::<u64>(&bytes, 64), Ok(value)),
            "u16" => assert_eq!(codec::decode::<u16>(&bytes, 64).map(u64::from), Ok(value)),
            other => panic!("{other}"),
        }
    }
    for case in file["bad"].as_array().unwrap() {
        let case = case.as_table().unwrap();
        let bytes = unhex(text(case, "hex"));
        let error: CodecError = match text(case, "type") {
            "u64" => codec::decode::<u64>(&bytes, 64).unwrap_err(),
            "u32" => codec::decode::<u32>(&bytes, 64).unwrap_err(),
            "u16" => codec::decode::<u16>(&bytes, 64).unwrap_err(),
            "option" => codec::decode::<Option<u8>>(&bytes, 64).unwrap_err(),
            other => panic!("{other}"),
        };
        assert_eq!(error.rule(), text(case, "expect"), "{case}");
    }
}

#[test]
fn paths_are_as_written() {
    let file = table(&folder().join("paths.toml"));
    let name = |result: Result<(), PathError>| match result {
        Ok(()) => "ok".to_owned(),
        Err(error) => format!("{error:?}"),
    };
    for case in file["path"].as_array().unwrap() {
        let case = case.as_table().unwrap();
        let path = text(case, "path");
        assert_eq!(name(SafePath::new(path).map(drop)), text(case, "expect"), "{path:?}");
    }
    for case in file["symlink"].as_array().unwrap() {
        let case = case.as_table().unwrap();
        let (link, target) = (text(case, "link"), text(case, "target"));
        let read = LinkTarget::new(&SafePath::new(link).unwrap(), target);
        assert_eq!(name(read.map(drop)), text(case, "expect"), "{link:?} -> {target:?}");
    }
}

/// The hashes of a good announce name it by its digest.
#[test]
fn good_hashes_belong_to_the_good_announce() {
    let open = |name: &str| unhex(text(&table(&folder().join("manifest").join(name)), "hex"));
    let announce: Opened<Announce> = Announce::open(&open("good-tree.toml"), &trust()).unwrap();
    for name in ["good-hashes.toml", "good-hashes-withdrawn.toml"] {
        assert_eq!(Hashes::open(&open(name), &trust()).unwrap().belongs_to(&announce), Ok(()), "{name}");
    }
}
