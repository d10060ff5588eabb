use super::*;
use checkvalve_host::disk::OsDisk;
use checkvalve_host::disk::fault::FailNth;

/// One of each, and every optional field both with and without.
fn record_all(audit: &Audit) {
    let channel = ChannelName::new("a").unwrap();
    let (key, text) = (KeyId([1, 2, 3, 4, 5, 6, 7, 8]), "no \"such\" key\n");
    let full = || Subject {
        bundle: Some(BundleId(0x0123_4567_89ab_cdef)),
        channel: Some(&channel),
        sequence: 300,
        name: "a \\xff name".to_owned(),
        signer: Some(key),
        signer_name: Some("ci"),
    };
    let bare =
        || Subject { bundle: None, channel: None, sequence: 0, name: String::new(), signer: None, signer_name: None };
    let (rule, code, from, stage) = ("unknown-key", "sequence-jump", "quarantined", "install");
    let events = [
        Event::Published { bundle: full(), bytes: 5_000_000_000, manifest: "a1".repeat(32) },
        Event::Quarantined { bundle: bare(), rule, reason: text },
        Event::Withdrawn { bundle: full(), reason: text },
        Event::Held { bundle: full(), code, reason: text },
        Event::Spoilt { bundle: full(), files: 2, bytes: 300 },
        Event::Approved { bundle: full() },
        Event::Retried { bundle: full(), from },
        Event::Rejected { bundle: full(), through: None },
        Event::Rejected { bundle: bare(), through: Some(302) },
        Event::Hook { bundle: full(), stage, attempt: 2, outcome: "installed", ended: "exit status: 0" },
        Event::TrustAdded { key, name: "ci" },
        Event::TrustRemoved { key, name: "ci" },
    ];
    for (at, event) in (1_790_000_000_000..).zip(&events) {
        audit.record(at, event).unwrap();
    }
}

#[test]
fn every_schema_is_read_and_the_newest_written() {
    let dir = crate::testing::dir();
    let path = dir.path().join("audit.jsonl");
    let audit = Audit::open(&(Arc::new(OsDisk) as Arc<dyn Disk>), &path).unwrap();
    record_all(&audit);
    let written = std::fs::read(&path).unwrap();
    assert_eq!(written, crate::testing::vector("audit-1.jsonl", &written), "a field is never changed");
    let read = || {
        let mut told = Vec::new();
        assert_eq!(audit.read(&mut |line| told.push(line)).unwrap(), Unreadable::default());
        told
    };
    let present = read();
    std::fs::write(&path, crate::testing::records_of("audit-unversioned.jsonl")).unwrap();
    assert_eq!((read(), present.len()), (present.clone(), 12));
    let (published, hook) = (&present[0], &present[9]);
    assert_eq!((published.manifest.as_deref(), published.signer), (Some("a1".repeat(32).as_str()), hook.signer));
    assert_eq!((hook.attempt, hook.outcome.as_deref()), (Some(2), Some("installed")));
    assert_eq!((present[8].bundle, present[8].through), (None, Some(302)));
}

#[test]
fn newer_lines_are_refused_and_still_appended_to() {
    let dir = crate::testing::dir();
    let path = dir.path().join("audit.jsonl");
    for (program, said) in [("", "a newer checkvalve"), (r#""program":"0.4.0","#, "checkvalve 0.4.0")] {
        std::fs::write(&path, format!("{{\"schema\":2,{program}\"at\":[2],\"event\":\"published\"}}\n")).unwrap();
        let audit = Audit::open(&(Arc::new(OsDisk) as Arc<dyn Disk>), &path).unwrap();
        audit.record(1, &event()).unwrap();
        let error = audit.read(&mut |line| assert_eq!(line.at.0, 1)).unwrap_err();
        let expected = format!(
            "{}: written by {said} (lines of version 2; this program reads up to 1); run that version or a newer one",
            path.display()
        );
        assert_eq!(error.to_string(), expected);
    }
}

fn event() -> Event<'static> {
    Event::TrustAdded { key: KeyId([1; 8]), name: "a \"b\"\n" }
}

#[test]
fn lines_are_appended_also_after_a_torn_one() {
    let dir = crate::testing::dir();
    let path = dir.path().join("audit.jsonl");
    let disk: Arc<dyn Disk> = Arc::new(OsDisk);
    Audit::open(&disk, &path).unwrap().record(7, &event()).unwrap();
    let whole = std::fs::read(&path).unwrap();
    std::fs::write(&path, [&whole[..], &whole[..20]].concat()).unwrap();
    Audit::open(&disk, &path).unwrap().record(8, &event()).unwrap();
    let text = std::fs::read_to_string(&path).unwrap();
    let lines: Vec<Option<serde_json::Value>> = text.lines().map(|line| serde_json::from_str(line).ok()).collect();
    assert_eq!(lines.len(), 3);
    assert_eq!(lines[0].as_ref().unwrap()["event"], "trust_added");
    assert!(lines[1].is_none());
    assert_eq!(lines[2].as_ref().unwrap()["at"], "1970-01-01T00:00:00.008Z");
}

#[test]
fn what_a_full_disk_tore_costs_no_later_event_and_is_named() {
    let dir = crate::testing::dir();
    let path = dir.path().join("audit.jsonl");
    let disk = Arc::new(FailNth::new(Arc::new(OsDisk)));
    let audit = Audit::open(&(Arc::clone(&disk) as Arc<dyn Disk>), &path).unwrap();
    audit.record(1, &event()).unwrap();
    disk.heal();
    audit.record(1, &event()).unwrap();
    let steps = disk.operations();
    assert_eq!(steps, ["lstat", "append", "sync_data"]);
    disk.fail_once(1, 28);
    audit.record(2, &event()).unwrap_err();
    // Ending the torn line may fail too, at each step.
    for nth in 1..4 {
        disk.fail_once(nth, 28);
        audit.record(2, &event()).unwrap_err();
    }
    disk.heal();
    audit.record(3, &event()).unwrap();
    disk.heal();
    audit.record(4, &event()).unwrap();
    assert_eq!(disk.operations(), steps, "nothing is torn any more");
    let mut told = Vec::new();
    let unreadable = audit.read(&mut |line| told.push(line.at.0)).unwrap();
    assert_eq!(told, [1, 1, 3, 4]);
    assert_eq!(unreadable, Unreadable { lines: vec![3], count: 1 });
}

#[test]
fn lines_that_are_too_long_or_torn_are_counted_once() {
    let dir = crate::testing::dir();
    let path = dir.path().join("audit.jsonl");
    let audit = Audit::open(&(Arc::new(OsDisk) as Arc<dyn Disk>), &path).unwrap();
    audit.record(1, &event()).unwrap();
    let whole = std::fs::read(&path).unwrap();
    let long = vec![b'x'; 5 * MAX_LINE];
    std::fs::write(&path, [&whole[..], &long, b"\n", &whole, &whole[..9]].concat()).unwrap();
    let mut told = 0;
    let unreadable = audit.read(&mut |_| told += 1).unwrap();
    assert_eq!((told, unreadable), (2, Unreadable { lines: vec![2, 4], count: 2 }));
}

#[test]
fn a_trail_that_was_removed_begins_anew() {
    let dir = crate::testing::dir();
    let path = dir.path().join("state/audit.jsonl");
    std::fs::create_dir(dir.path().join("state")).unwrap();
    let disk: Arc<dyn Disk> = Arc::new(OsDisk);
    let audit = Audit::open(&disk, &path).unwrap();
    audit.record(1, &event()).unwrap();
    std::fs::remove_dir_all(dir.path().join("state")).unwrap();
    audit.record(2, &event()).unwrap();
    audit.record(3, &event()).unwrap();
    let mut told = Vec::new();
    audit.read(&mut |line| told.push(line.at.0)).unwrap();
    assert_eq!(told, [2, 3]);
}
