//! `adopt`, as an operator uses it.

use std::fs;
use std::os::unix::fs::MetadataExt;

use serde_json::Value;

use crate::site::{Site, failed, good};

#[test]
fn a_sender_goes_on_after_what_the_high_side_knows() {
    let mut site = Site::started("");
    site.drop_in("one", b"1");
    site.wait_state("one", "transmitted");
    let session = site.status()["session"]["number"].clone();
    assert_eq!((session, &site.status()["epoch"]["number"]), (1.into(), &1.into()));
    let said = failed(&site.run(&["adopt", "--sequences", "default=413"]), 75);
    assert!(said.lines().count() == 1 && said.contains("`systemctl stop checkvalve-sender`"), "{said}");
    assert_eq!(site.status()["epoch"]["number"], 1);
    // A large one is under way when the daemon is stopped.
    site.drop_in("large", &vec![7; 40 << 20]);
    let large = site.wait_state("large", "transmitting");
    site.stop();
    for (wrong, what) in [
        (&["--sequences", "defautl=413"][..], "there is no channel defautl; there is default, other"),
        (&["--sequences", "default=1,default=2"], "--sequences names channel default twice"),
        (
            &["--sequences", "default"],
            "\"default\" is no channel with its newest sequence; write for example default=413",
        ),
        (&["--sequences", "default=1", "--again", "none/3"], "there is no channel none"),
        (
            &["--sequences", "default=1", "--again", "default"],
            "\"default\" names no bundle; write for example default/405",
        ),
        (&["--sequences", "default=1", "--epoch", "0"], "\"0\" is no number of an epoch"),
        (&[], "--sequences"),
    ] {
        let args: Vec<&str> = ["adopt"].iter().chain(wrong).copied().collect();
        let said = failed(&site.run(&args), 64);
        assert!(said.contains(what), "{said}");
    }
    let said = good(&site.run(&["adopt", "--sequences", "default=413,other=20"]));
    for line in [
        "epoch 2 begins with the next start (it was 1)",
        "channel default goes on after 413 (2 was the newest here)",
        "channel other goes on after 20 (0 was the newest here)",
        "  default/2",
        "Next: `systemctl start checkvalve-sender`.",
    ] {
        assert!(said.contains(line), "{line}: {said}");
    }
    let json: Value =
        serde_json::from_str(&good(&site.run(&["adopt", "--sequences", "default=5", "--epoch", "9", "--json"])))
            .unwrap();
    assert_eq!(
        (&json["schema"], &json["epoch"]["number"], &json["epoch_before"]["number"]),
        (&1.into(), &9.into(), &2.into())
    );
    assert_eq!((&json["channels"][0]["newest"], &json["again"]), (&413.into(), &Value::Array(Vec::new())));
    site.start();
    let status = site.status();
    assert_eq!((&status["epoch"]["number"], &status["session"]["number"]), (&9.into(), &1.into()));
    let again = site.wait_state("large", "transmitted");
    assert!(again["sequence"] == 414 && again["id"] != large["id"], "{again}");
    site.drop_in("new", b"n");
    assert_eq!(site.wait_state("new", "transmitted")["sequence"], 415);
    assert_eq!(site.bundle("one").unwrap()["sequence"], 1);
}

#[test]
fn root_leaves_the_state_to_its_owner() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let site = Site::new("");
    for name in ["state", "spool"] {
        std::os::unix::fs::chown(site.path(name), Some(4_321), Some(4_322)).unwrap();
    }
    std::os::unix::fs::chown(site.dir.path(), Some(4_321), Some(4_322)).unwrap();
    good(&site.run(&["adopt", "--sequences", "default=413"]));
    for name in ["ledger", "lock"] {
        let meta = fs::metadata(site.path("state").join(name)).unwrap();
        assert_eq!((meta.uid(), meta.gid()), (4_321, 4_322), "{name}");
    }
}
