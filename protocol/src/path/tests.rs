use super::*;

fn path(text: &str) -> SafePath {
    SafePath::new(text).unwrap()
}

#[test]
fn paths_that_may_be() {
    let long = "n".repeat(MAX_NAME_LEN);
    let deep = ["d"; MAX_PATH_DEPTH].join("/");
    // 16 components of 255 and their slashes are 4,095; one byte more is the limit.
    let longest = format!("{}/x", vec!["n".repeat(254); 16].join("/")) + &"x".repeat(15);
    assert_eq!(longest.len(), MAX_PATH_LEN);
    for good in ["a", "a/b", "...", ".a/..b/c..", " ", "a\nb", "é/\u{1}", "-", "~", "a\\b", &long, &deep, &longest] {
        let path = path(good);
        assert_eq!(path.as_bytes(), good.as_bytes());
        assert_eq!(path.as_path().as_os_str().as_bytes(), good.as_bytes());
        assert_eq!(SafePath::from_path(path.as_path()).as_ref(), Ok(&path));
    }
    assert!(SafePath::new([0xff, b'/', 0x80]).is_ok(), "names need not be UTF-8");
}

#[test]
fn paths_that_may_not() {
    let deep = ["d"; MAX_PATH_DEPTH + 1].join("/");
    let long = vec!["n".repeat(240); 17].join("/") + &"/x".repeat(5);
    for (bad, error) in [
        ("", PathError::Empty),
        ("/", PathError::Absolute),
        ("/x", PathError::Absolute),
        ("../x", PathError::DotDot),
        ("a/../../x", PathError::DotDot),
        ("a/..", PathError::DotDot),
        ("a//b", PathError::EmptyComponent),
        ("a/", PathError::EmptyComponent),
        ("a/./b", PathError::Dot),
        (".", PathError::Dot),
        ("a\0b", PathError::Nul),
        ("\0", PathError::Nul),
        (&"n".repeat(MAX_NAME_LEN + 1), PathError::NameTooLong),
        (&"n".repeat(MAX_PATH_LEN + 1), PathError::TooLong),
        (&long, PathError::TooLong),
        (&deep, PathError::TooDeep),
    ] {
        assert_eq!(SafePath::new(bad), Err(error), "{bad:?}");
    }
}

#[test]
fn parts_of_a_path() {
    let p = path("a/b/c");
    assert_eq!(p.parent(), Some(path("a/b")));
    assert_eq!(path("a").parent(), None);
    assert_eq!((p.root(), p.file_name(), p.depth()), (b"a".as_slice(), b"c".as_slice(), 3));
    assert_eq!(p.join(b"d"), Ok(path("a/b/c/d")));
    for (bad, error) in [
        (b"".as_slice(), PathError::EmptyComponent),
        (b"/etc", PathError::EmptyComponent),
        (b"x/../..", PathError::EmptyComponent),
        (b"..", PathError::DotDot),
        (b".", PathError::Dot),
        (b"a\0", PathError::Nul),
    ] {
        assert_eq!(p.join(bad), Err(error));
    }
    assert!(path("a").is_ancestor_of(&p));
    assert!(!p.is_ancestor_of(&p));
    assert!(!path("a").is_ancestor_of(&path("ab")));
    assert_eq!(format!("{:?}", path("a\n\u{1b}\"é")), r#""a\n\x1b\"\xc3\xa9""#);
}

#[test]
fn paths_are_in_the_order_of_a_walk() {
    let walked = ["a", "a/b", "a/b/c", "a/b!", "a/b0", "a/\u{1}", "a!"].map(path);
    let mut sorted = walked.clone();
    sorted.reverse();
    sorted.sort();
    assert_eq!(sorted, ["a", "a/\u{1}", "a/b", "a/b/c", "a/b!", "a/b0", "a!"].map(path));
}

#[test]
fn symlinks_that_stay_inside() {
    for (link, target) in [
        ("a/l", "x"),
        ("a/l", "."),
        ("a/l", "./x//y/."),
        ("a/l", "x/"),
        ("a/l", "..."),
        ("a/b/l", ".."),
        ("a/b/l", "../x"),
        ("a/b/l", "./../x/y"),
        ("a/b/c/l", "../../x"),
        ("a/b/c/l", ".././../"),
        ("a/l", &"t".repeat(MAX_PATH_LEN - 1)),
    ] {
        let target = LinkTarget::new(&path(link), target).unwrap_or_else(|e| panic!("{link} -> {target}: {e}"));
        assert_eq!(target.view().check_for(path(link).view()), Ok(()));
    }
}

#[test]
fn symlinks_that_do_not() {
    for (link, target, error) in [
        ("a/l", "", PathError::Empty),
        ("a/l", "/", PathError::Absolute),
        ("a/l", "/etc/passwd", PathError::Absolute),
        ("a/l", "..", PathError::Outside),
        ("a/l", "../x", PathError::Outside),
        ("a/l", "../a/x", PathError::Outside),
        ("a/l", "./../x", PathError::Outside),
        ("a/l", ".//..", PathError::Outside),
        ("a/l", "x/..", PathError::Outside),
        ("a/l", "a/../..", PathError::Outside),
        ("a/b/l", "../..", PathError::Outside),
        ("a/b/l", "../x/..", PathError::Outside),
        ("a/b/c/l", "../../../x", PathError::Outside),
        ("l", "x", PathError::Outside),
        ("l", ".", PathError::Outside),
        ("a/l", "x\0y", PathError::Nul),
        ("a/l", &"t".repeat(MAX_PATH_LEN), PathError::TooLong),
    ] {
        assert_eq!(LinkTarget::new(&path(link), target), Err(error), "{link} -> {target:?}");
    }
}

/// Whatever is accepted, resolved by hand with every name a directory, never climbs above the root directory.
#[test]
fn no_accepted_target_climbs_out() {
    let parts = ["..", ".", "", "x", "..."];
    let mut accepted = 0;
    for link in ["l", "a/l", "a/b/l", "a/b/c/l"] {
        for n in 0..5_usize.pow(5) {
            let target: Vec<_> = (0..5).map(|i| parts[n / 5_usize.pow(i) % 5]).collect();
            let target = target.join("/");
            if LinkTarget::new(&path(link), target.as_str()).is_err() {
                continue;
            }
            accepted += 1;
            let mut depth = path(link).depth() - 1;
            for part in target.split('/') {
                match part {
                    ".." => depth -= 1,
                    "" | "." => {}
                    _ => depth += 1,
                }
                assert!(depth >= 1, "{link} -> {target}");
            }
        }
    }
    assert!(accepted > 100);
}
