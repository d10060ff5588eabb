//! The files under `vectors/` hold what `SPEC.md` says, and this crate agrees with each of them.
//!
//! `CHECKVALVE_WRITE_VECTORS=1 cargo test -p checkvalve-protocol --test vectors` writes the generated ones anew.

mod admissions;
mod announces;
mod beacons;
mod cases;
mod datagrams;
mod hashes;
mod tickets;

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use cases::{Case, hex, signer, trust, unhex};
use checkvalve_protocol::beacon::Beacon;
use checkvalve_protocol::codec::{self, CodecError};
use checkvalve_protocol::crypto::{LinkKey, PublicKey, SigningKey};
use checkvalve_protocol::manifest::{Announce, EntryError, Hashes, ManifestError, Opened, signed};
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
    for kind in ["admit", "manifest", "beacon", "datagram"] {
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
        assert!(text(&file, "why").len() >= 8, "{name} says why");
        if name.starts_with("admit/") {
            assert_eq!(admissions::judge(&file), (text(&file, "verdict"), text(&file, "expect")), "{name}");
            continue;
        }
        let bytes = unhex(text(&file, "hex"));
        let (rule, value) = match text(&file, "kind") {
            "announce" => cases::outcome(Announce::open(&bytes, &trust()), |e| e.rule(), announces::describe),
            "hashes" => cases::outcome(Hashes::open(&bytes, &trust()), |e| e.rule(), hashes::describe),
            "beacon" => cases::outcome(Beacon::open(&bytes, &trust()), |e| e.rule(), beacons::describe),
            "datagram" => datagrams::open(&bytes, true),
            "insecure-datagram" => datagrams::open(&bytes, false),
            other => panic!("{name}: kind {other}"),
        };
        assert_eq!(rule, text(&file, "expect"), "{name}");
        assert_eq!(value.as_ref(), file.get("value").map(|v| v.as_table().unwrap()), "{name}");
        let stem = name.split('/').next_back().unwrap().trim_end_matches(".toml");
        assert!(stem.starts_with("good-") == (rule == "ok"), "{name} is named for what it is");
    }
}

#[test]
fn the_files_are_those_that_the_cases_make() {
    let cases: Vec<Case> = [announces::cases(), hashes::cases(), beacons::cases(), datagrams::cases()].concat();
    let mut made: BTreeMap<_, _> = cases.iter().map(|case| (case.file.clone(), case.to_toml())).collect();
    assert_eq!(made.len(), cases.len(), "two cases have one name");
    made.extend(admissions::all());
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

/// What `keys.toml` says.
fn keys() -> String {
    let mut text = "# Keys of the other vectors; never use them. SPEC.md section \"Keys\".\n".to_owned();
    let link = LinkKey::from_bytes(datagrams::LINK_KEY);
    let _ = write!(
        text,
        "\n[link]\nbytes = \"{}\"\nid = \"{}\"\nfile = {:?}\n",
        hex(link.as_bytes()),
        link.id(),
        link.to_text()
    );
    for name in ["trusted", "neighbour", "stranger"] {
        let key = signer(name);
        let public = key.public();
        let signed = |domain| hex(&key.sign(domain, b"payload"));
        let _ = write!(
            text,
            "\n[{name}]\nseed = \"{}\"\npublic = \"{}\"\nid = \"{}\"\ntag = \"{}\"\nfile = {:?}\npublic_file = {:?}\n\
             signature_of_payload_as_announce = \"{}\"\nsignature_of_payload_as_hashes = \"{}\"\n\
             signature_of_payload_as_beacon = \"{}\"\n",
            format!("{:02x}", name.as_bytes()[0]).repeat(32),
            hex(public.as_bytes()),
            public.id(),
            public.id().tag(),
            key.to_text(),
            public.to_text(name),
            signed(signed::ANNOUNCE),
            signed(signed::HASHES),
            signed(signed::BEACON),
        );
    }
    text
}

#[test]
fn keys_are_as_written() {
    let path = folder().join("keys.toml");
    if std::env::var_os("CHECKVALVE_WRITE_VECTORS").is_some() {
        fs::write(&path, keys()).unwrap();
    }
    assert_eq!(fs::read_to_string(path).unwrap(), keys());
    for name in ["trusted", "neighbour", "stranger"] {
        let key = signer(name);
        assert_eq!(SigningKey::from_text(&key.to_text()).unwrap().public(), key.public());
        assert_eq!(PublicKey::from_text(&key.public().to_text(name)).unwrap(), (key.public(), name.to_owned()));
    }
    let link = LinkKey::from_text(&LinkKey::from_bytes(datagrams::LINK_KEY).to_text()).unwrap();
    assert_eq!(link.as_bytes(), &datagrams::LINK_KEY);
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
    let name = |result: Result<(), PathError>, of: fn(PathError) -> EntryError| match result {
        Ok(()) => "ok",
        Err(error) => ManifestError::Entry { index: 0, error: of(error) }.rule(),
    };
    for case in file["path"].as_array().unwrap() {
        let case = case.as_table().unwrap();
        let path = text(case, "path");
        assert_eq!(name(SafePath::new(path).map(drop), EntryError::Path), text(case, "expect"), "{path:?}");
    }
    for case in file["symlink"].as_array().unwrap() {
        let case = case.as_table().unwrap();
        let (link, target) = (text(case, "link"), text(case, "target"));
        let read = LinkTarget::new(&SafePath::new(link).unwrap(), target);
        assert_eq!(name(read.map(drop), EntryError::Target), text(case, "expect"), "{link:?} -> {target:?}");
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
