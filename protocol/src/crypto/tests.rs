use super::*;

const DOMAIN: &[u8] = b"test v1\0";

#[test]
fn ed25519_is_that_of_rfc_8032() {
    // RFC 8032 section 7.1, TEST 1.
    let seed = "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60";
    let public = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a";
    let key = SigningKey::from_text(&format!("checkvalve-signing-1 {seed}\n")).unwrap();
    assert_eq!(key.public().to_text(""), format!("checkvalve-public-1 {public}\n"));
    assert_eq!(key.sign(b"", b"")[..4], [0xe5, 0x56, 0x43, 0x00]);
}

#[test]
fn a_signature_is_of_one_key_one_domain_one_payload() {
    let key = SigningKey::from_seed([1; 32]);
    let signature = key.sign(DOMAIN, b"payload");
    assert!(key.public().verify(DOMAIN, b"payload", &signature));
    assert!(!key.public().verify(DOMAIN, b"payloae", &signature));
    assert!(!key.public().verify(b"test v2\0", b"payload", &signature));
    assert!(!SigningKey::from_seed([2; 32]).public().verify(DOMAIN, b"payload", &signature));
    for bit in 0..8 * SIGNATURE_LEN {
        let mut forged = signature;
        forged[bit / 8] ^= 1 << (bit % 8);
        assert!(!key.public().verify(DOMAIN, b"payload", &forged), "bit {bit}");
    }
}

#[test]
fn text_forms_read_what_they_write() {
    let link = LinkKey::from_bytes([0xab; 32]);
    assert_eq!(link.to_text(), format!("checkvalve-link-1 {}\n", "ab".repeat(32)));
    assert_eq!(LinkKey::from_text(&link.to_text()).unwrap().as_bytes(), link.as_bytes());
    assert!(LinkKey::from_text(&link.to_text().replace("ab", "AB")).is_ok());
    let key = SigningKey::from_seed([3; 32]);
    assert_eq!(SigningKey::from_text(&key.to_text()).unwrap().public(), key.public());
    for (comment, read) in [("", ""), ("build farm 7, é", "build farm 7, é"), (" a\nb\t ", "a b")] {
        let text = key.public().to_text(comment);
        assert_eq!(text.lines().count(), 1);
        assert_eq!(PublicKey::from_text(&text), Ok((key.public(), read.to_owned())));
    }
    let long = "é".repeat(300);
    assert_eq!(PublicKey::from_text(&key.public().to_text(&long)).unwrap().1, "é".repeat(128));
}

#[test]
fn text_that_is_no_key() {
    let digits = "ab".repeat(32);
    let line = |rest: &str| format!("checkvalve-link-1 {rest}");
    for (bad, error) in [
        (String::new(), KeyError::NotAKey(text::LINK)),
        ("checkvalve-link-2 00".into(), KeyError::NotAKey(text::LINK)),
        (digits.clone(), KeyError::NotAKey(text::LINK)),
        (format!("checkvalve-signing-1 {digits}"), KeyError::Kind { expected: text::LINK, found: text::SIGNING }),
        (line(""), KeyError::Digits(text::LINK)),
        (line(&digits[1..]), KeyError::Digits(text::LINK)),
        (line(&format!("{digits}00")), KeyError::Digits(text::LINK)),
        (line(&digits.replacen('a', "g", 1)), KeyError::Digits(text::LINK)),
        (line(&digits.replacen("ab", "+b", 1)), KeyError::Digits(text::LINK)),
        (line(&format!("{digits} note")), KeyError::Extra(text::LINK)),
        (line(&format!("{digits}\n{digits}")), KeyError::Extra(text::LINK)),
    ] {
        assert_eq!(LinkKey::from_text(&bad).err(), Some(error), "{bad:?}");
    }
    let public = format!("checkvalve-public-1 {digits} a\u{7}b");
    assert_eq!(PublicKey::from_text(&public), Err(KeyError::Comment));
}

#[test]
fn secrets_are_not_shown() {
    let hex = "ab".repeat(4);
    let link = LinkKey::from_bytes([0xab; 32]);
    let signing = SigningKey::from_seed([0xab; 32]);
    let shown = format!("{link:?} {signing:?} {link:#?} {signing:#?}");
    assert!(!shown.contains(&hex) && !shown.contains("171"), "{shown}");
    for text in ["checkvalve-link-1 5ec4e7", "checkvalve-signing-1 5ec4e7", "5ec4e7"] {
        let error = LinkKey::from_text(text).unwrap_err();
        assert!(!format!("{error} {error:?}").contains("5ec4e7"));
    }
}

#[test]
fn ids_tell_keys_apart() {
    assert_ne!(LinkKey::from_bytes([1; 32]).id(), LinkKey::from_bytes([2; 32]).id());
    let mut store = TrustStore::new();
    let key = SigningKey::from_seed([1; 32]).public();
    assert!(store.is_empty() && store.get(&key.id()).is_none());
    assert!(store.insert(key, "first"));
    assert!(!store.insert(key, "second"), "the first name stays");
    assert_eq!(store.get(&key.id()), Some((&key, "first")));
    assert_eq!((store.len(), store.iter().next()), (1, Some((key.id(), &key, "first"))));
}
