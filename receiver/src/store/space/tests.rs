use checkvalve_protocol::id::KeyId;

use super::*;

const KIB: u64 = 1 << 10;

fn owner(channel: &str, key: u8) -> Owner {
    Owner { channel: ChannelName::new(channel).unwrap(), key: KeyId([key; 8]).tag() }
}

fn space() -> Space {
    let mut limits = Limits::new(100 * KIB, 800 * KIB);
    (limits.files, limits.unsigned_files, limits.unsigned_bundles, limits.parked_blocks) = (40, 10, 2, 6);
    let space = Space::new(limits);
    space.refresh(Free { bytes: 2_000 * KIB, files: u64::MAX });
    space
}

#[test]
fn who_did_not_sign_has_a_part_only() {
    let (space, mine) = (space(), owner("default", 1));
    let most = Cost { bytes: 100 * KIB, files: 10, ranges: 0, blocks: 3 };
    assert!(space.exchange(Cost::default(), most, None));
    for more in [Cost::bytes(1), Cost::files(1), Cost { blocks: 1, ..Cost::default() }] {
        assert!(!space.fits(more, None), "{more:?}");
        assert!(space.fits(more, Some(&mine)), "{more:?}");
    }
    space.move_class(most, None, Some(&mine));
    assert_eq!((space.unsigned(), space.of(&mine.channel), space.used()), (Cost::default(), most, most));
    assert_eq!(space.free(), 1_900 * KIB);
    assert!(space.fits(Cost::file(1), None));
    space.change(most, Cost::default(), Some(&mine));
    assert_eq!((space.of(&mine.channel), space.used()), Default::default());
    assert!(space.begin_unsigned() && space.begin_unsigned() && !space.begin_unsigned());
    space.end_unsigned();
    assert!(space.begin_unsigned());
}

#[test]
fn a_channel_has_its_share() {
    let (space, a, b) = (space(), owner("a", 1), owner("b", 1));
    space.set_share(&a.channel, Share { bytes: 16 * KIB, files: 3, ..Share::ALL });
    assert!(space.exchange(Cost::default(), Cost::file(8 * KIB), Some(&a)));
    assert!(!space.exchange(Cost::default(), Cost::file(1), Some(&a)));
    assert!(space.exchange(Cost::default(), Cost::file(1), Some(&b)));
    assert!(space.exchange(Cost::file(8 * KIB), Cost::file(9 * KIB), Some(&a)), "all of its share");
    space.set_share(&a.channel, Share { bytes: 0, files: 0, ..Share::ALL });
    assert!(space.exchange(Cost::file(9 * KIB), Cost::file(1), Some(&a)), "less may always be");
    assert!(!space.fits(Cost::bytes(1), Some(&a)));
}

#[test]
fn a_key_has_its_share_in_all_its_channels() {
    let space = space();
    let all: Vec<Owner> = ["a", "b", "c"].into_iter().map(|name| owner(name, 1)).collect();
    space.set_key_share(Share { bytes: 16 * KIB, files: 3, ..Share::ALL });
    assert!(space.exchange(Cost::default(), Cost::file(8 * KIB), Some(&all[0])));
    assert!(space.exchange(Cost::default(), Cost::bytes(1), Some(&all[1])));
    assert!(!space.fits(Cost::bytes(1), Some(&all[2])));
    assert!(!space.fits(Cost::bytes(1), Some(&all[0])));
    assert!(space.fits(Cost::file(8 * KIB), Some(&owner("a", 2))), "another key of the same channel");
    space.change(Cost::file(8 * KIB), Cost::default(), Some(&all[0]));
    assert!(space.fits(Cost::file(8 * KIB), Some(&all[2])));
    space.change(Cost::bytes(1), Cost::default(), Some(&all[1]));
    assert!(space.lock().keys.is_empty());
}

#[test]
fn a_key_has_its_share_of_ranges_and_of_unfinished_blocks() {
    let (space, mine, theirs) = (Space::new(Limits::new(0, u64::MAX)), owner("a", 1), owner("b", 2));
    space.refresh(Free { bytes: 1 << 40, files: u64::MAX });
    space.set_key_share(Share { ranges: 100, blocks: 10, ..Share::ALL });
    for (all, next) in [
        (Cost { ranges: 100, ..Cost::default() }, Cost { ranges: 1, ..Cost::default() }),
        (Cost { blocks: 10, ..Cost::default() }, Cost { blocks: 1, ..Cost::default() }),
    ] {
        assert!(space.exchange(Cost::default(), all, Some(&mine)));
        assert_eq!(space.bound(next, Some(&mine)), Some(Bound::Key));
        assert_eq!(space.bound(next, Some(&theirs)), None);
    }
}

#[test]
fn the_reserve_of_the_disk_is_left_alone() {
    let (space, mine) = (space(), owner("default", 1));
    space.refresh(Free { bytes: 150 * KIB, files: u64::MAX });
    assert!(space.fits(Cost::bytes(48 * KIB), Some(&mine)));
    assert!(!space.fits(Cost::bytes(52 * KIB), Some(&mine)));
    space.change(Cost::default(), Cost::bytes(48 * KIB), Some(&mine));
    assert!(!space.fits(Cost::bytes(4 * KIB), Some(&mine)));
    assert!(space.fits(Cost::default(), Some(&mine)));
}

#[test]
fn what_is_promised_has_its_place_and_is_taken_once() {
    let (space, mine) = (space(), Some(owner("default", 1)));
    let mine = mine.as_ref();
    space.refresh(Free { bytes: 150 * KIB, files: u64::MAX });
    assert!(space.promise(Cost::bytes(48 * KIB), mine));
    assert!(!space.fits(Cost::bytes(4 * KIB), mine));
    space.refresh(Free { bytes: 150 * KIB, files: u64::MAX });
    assert!(!space.fits(Cost::bytes(4 * KIB), mine), "it is not written yet");
    space.change(Cost::default(), Cost::bytes(40 * KIB), mine);
    space.settle(Cost::bytes(48 * KIB), mine);
    assert_eq!((space.free(), space.staged()), (110 * KIB, 40 * KIB));
    assert!(space.fits(Cost::bytes(8 * KIB), mine));
    space.change(Cost::bytes(40 * KIB), Cost::bytes(44 * KIB), mine);
    assert_eq!(space.free(), 106 * KIB, "what was there already is not taken again");
}

/// A file system has so many inodes, and most of them are another key's.
#[test]
fn inodes_are_shared_too() {
    let (space, mine, theirs) = (Space::new(Limits::new(0, u64::MAX)), owner("a", 1), owner("b", 2));
    let disk = |taken: u64| Free { bytes: 1 << 40, files: 8_000 - taken };
    space.refresh(disk(0));
    assert_eq!(space.most_files(), 7_500, "a sixteenth is left alone");
    space.set_key_share(Share { files: space.most_files() / 5 * 4, ..Share::ALL });
    assert!(space.exchange(Cost::default(), Cost::files(6_000), Some(&theirs)));
    space.refresh(disk(6_000));
    assert_eq!(space.most_files(), 7_500);
    assert_eq!(space.bound(Cost::files(1), Some(&theirs)), Some(Bound::Key));
    assert_eq!(space.bound(Cost::files(1_400), Some(&mine)), None);
    assert_eq!(space.bound(Cost::files(1_600), Some(&mine)), Some(Bound::Inodes));
    // Somebody else takes them.
    space.refresh(disk(8_000));
    assert_eq!(space.bound(Cost::files(1), Some(&mine)), Some(Bound::Inodes));
    // What is counted before it is made is no room for more.
    let space = Space::new(Limits::new(0, u64::MAX));
    space.refresh(disk(0));
    assert!(space.exchange(Cost::default(), Cost::files(6_000), Some(&theirs)));
    space.refresh(disk(1_000));
    assert_eq!(space.most_files(), 7_500);
    // Once staging is all but empty, what there is counts again.
    space.change(Cost::files(6_000), Cost::files(400), Some(&theirs));
    space.refresh(disk(0));
    assert_eq!(space.most_files(), 400 + 7_500);
}
