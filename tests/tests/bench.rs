//! The bench runs, and writes what it found.

use std::net::UdpSocket;
use std::process::Command;
use std::time::Duration;

use checkvalve_tests::bench::wire::{self, Offload};
use checkvalve_tests::link::Link;
use checkvalve_tests::require_link;
use serde_json::Value;

#[test]
fn measures_in_process_parts_and_writes_json() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("figures.json");
    let mut command = Command::new(env!("CARGO_BIN_EXE_checkvalve-bench"));
    command.args(["seal", "hash", "--quick", "--repetitions", "2", "--out"]).arg(&out);
    let ran = command.output().unwrap();
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    assert!(String::from_utf8_lossy(&ran.stdout).contains("== seal: AES-256-GCM"));
    let found: Value = serde_json::from_slice(&std::fs::read(&out).unwrap()).unwrap();
    let sections = found["sections"].as_array().unwrap();
    assert_eq!(sections.iter().map(|section| &section["name"]).collect::<Vec<_>>(), ["seal", "hash"]);
    for figure in sections.iter().flat_map(|section| section["figures"].as_array().unwrap()) {
        assert_eq!(figure["values"].as_array().unwrap().len(), 2);
        assert!(figure["ratio"]["median"].as_f64().unwrap() > 0.0, "{figure:#}");
        assert_eq!(figure["noise"].as_array().unwrap().len(), 2);
    }
}

#[test]
fn refuses_a_part_that_does_not_exist() {
    let ran = Command::new(env!("CARGO_BIN_EXE_checkvalve-bench")).arg("speed").output().unwrap();
    assert!(!ran.status.success());
    assert!(String::from_utf8_lossy(&ran.stderr).contains("'speed'"));
}

#[test]
fn the_stand_in_for_a_network_card_loses_datagrams_one_by_one() {
    require_link!();
    let link = wire::make(1500, Offload::Nic);
    let (injector, recorder) = (link.injector(), link.recorder());
    assert_eq!(arrived(&injector, &recorder, 10_000).len(), 10_000);
    wire::lose(&link, 30);
    let lost = 10_000 - arrived(&injector, &recorder, 10_000).len();
    assert!((200..=400).contains(&lost), "{lost} of 10,000 at 3 %");
    assert_eq!(link.lost(), lost as u64, "only the rule lost any");
    wire::lose(&link, 0);
    assert_eq!(arrived(&injector, &recorder, 100).len(), 100);
}

#[test]
fn one_burst_is_lost_where_it_is_wanted() {
    require_link!();
    let link = Link::new(1500, false);
    let (injector, recorder) = (link.injector(), link.recorder());
    wire::lose_once(&link, 100, 20);
    let expected: Vec<u32> = (0..100).chain(120..1_000).collect();
    assert_eq!(arrived(&injector, &recorder, 1_000), expected);
    assert_eq!(arrived(&injector, &recorder, 1_000).len(), 1_000, "once");
    wire::lose_once(&link, 0, 0);
    assert_eq!(arrived(&injector, &recorder, 100).len(), 100);
}

/// Sends `count` numbered datagrams and returns the numbers of those that arrive.
fn arrived(injector: &UdpSocket, recorder: &UdpSocket, count: u32) -> Vec<u32> {
    recorder.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    let (mut numbers, mut buffer) = (Vec::new(), [0; 4]);
    let mut take = |wait: bool| {
        recorder.set_nonblocking(!wait).unwrap();
        while recorder.recv(&mut buffer).is_ok() {
            numbers.push(u32::from_be_bytes(buffer));
        }
    };
    for number in 0..count {
        injector.send(&number.to_be_bytes()).unwrap();
        // Never send more at once than the socket's buffer holds.
        if number % 100 == 99 {
            take(false);
        }
    }
    take(true);
    numbers
}
