//! Whether what is published is as it was signed.

use super::*;
use crate::inbox::check::{Mismatch, check, differences};

#[test]
fn verify_names_every_difference_and_nothing_below_what_is_gone() {
    let bench = Bench::new();
    let delivery = bench.open();
    let sample = Sample::tree(1, 1, &[10, 20, 30, 40]);
    send(&delivery, &sample);
    let (tree, digests) = (bench.inbox(1).join("tree"), sample.digests());
    let found = || {
        let mut found = Vec::new();
        differences(&OsDisk, &bench.inbox(1), &sample.announce, &digests, &mut |mismatch: Mismatch| {
            let path = mismatch.path().strip_prefix(&tree).unwrap_or(mismatch.path()).to_owned();
            found.push((path.to_str().unwrap().to_owned(), mismatch.what()));
            std::ops::ControlFlow::Continue(())
        });
        found
    };
    assert_eq!(found(), []);
    assert!(check(&OsDisk, &bench.inbox(1), &sample.announce, &digests).is_ok());
    let file = |n: usize| tree.join(format!("{n:04}/a \"file\"\n"));
    let keep_times = |path: &Path, change: &dyn Fn()| {
        let times = std::fs::metadata(path).unwrap();
        change();
        let times = std::fs::FileTimes::new().set_modified(times.modified().unwrap());
        std::fs::File::open(path).unwrap().set_times(times).unwrap();
    };
    keep_times(&file(0), &|| std::fs::write(file(0), [7; 10]).unwrap());
    keep_times(&tree, &|| {
        std::fs::remove_dir_all(tree.join("0001")).unwrap();
        std::fs::write(tree.join("0009"), b"extra").unwrap();
        std::fs::remove_file(tree.join("link")).unwrap();
    });
    std::fs::write(file(2), [7; 9]).unwrap();
    let expected = [
        ("0000/a \"file\"\n", "content"),
        ("0001", "missing"),
        ("0002/a \"file\"\n", "size"),
        ("0009", "extra"),
        ("link", "missing"),
    ];
    assert_eq!(found(), expected.map(|(path, what)| (path.to_owned(), what.to_owned())));
    let first = check(&OsDisk, &bench.inbox(1), &sample.announce, &digests).unwrap_err();
    assert_eq!(first.path(), file(0));
    std::fs::remove_dir_all(bench.inbox(1)).unwrap();
    assert_eq!(found().len(), 1);
}

#[test]
fn a_directory_that_cannot_be_read_is_not_as_signed() {
    let bench = Bench::new();
    let delivery = bench.open();
    let sample = Sample::tree(1, 1, &[10, 20]);
    send(&delivery, &sample);
    let digests = sample.digests();
    // Each step of the check fails once.
    let mut failed = 0;
    for step in 0.. {
        bench.disk.fail_once(step, EIO);
        let checked = check(bench.disk.as_ref(), &bench.inbox(1), &sample.announce, &digests);
        let was_hit = bench.disk.operations().len() > step;
        match checked {
            Ok(()) if !was_hit => break,
            Err(Mismatch::Disk { .. }) => failed += 1,
            other => panic!("step {step}: {other:?}"),
        }
    }
    assert!(failed > sample.announce.entries.len(), "{failed}");
}
