//! Sealing and opening datagrams: AES-256-GCM under a key of the session, or a CRC-32 in `insecure` mode.
//!
//! The header is associated data and the datagram counter the nonce (SPEC.md, "Sealing"). Each receive thread owns an
//! [`Opener`]. It never allocates for a session that has not proven the link key, and derives at most one key for every
//! sixteen datagrams of such sessions.
#![deny(clippy::indexing_slicing, clippy::unwrap_used, clippy::arithmetic_side_effects)]

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::hkdf;

use crate::crypto::LinkKey;
use crate::id::SessionId;
use crate::limits::{CRC_LEN, HEADER_LEN, LINK_ID_AT, TAG_LEN};
use crate::wire::{Header, HeaderError};

/// Sessions whose keys an [`Opener`] keeps at once; a ninth takes the place of the least recently used.
pub const MAX_SESSIONS: usize = 8;
/// Datagrams of unknown sessions for each key that is derived for one of them. A session that goes on sending gets its turn; a
/// flood of forged ones costs a sixteenth of a derivation each, less than a tag.
const DERIVE_EVERY: u32 = 16;
/// Credit for 16 keys that are derived at once.
const MAX_CREDIT: u32 = 16 * DERIVE_EVERY;

/// Seals the datagrams of one session.
pub struct Sealer {
    session: SessionId,
    key: Option<LessSafeKey>,
    /// What stands at [`LINK_ID_AT`].
    link_id: u8,
}

/// Opens datagrams of any session under one link key.
pub struct Opener {
    link: Option<LinkKeys>,
    /// Most recently used first.
    sessions: Vec<(SessionId, LessSafeKey)>,
    budget: Budget,
}

/// What may be spent on unknown sessions.
struct Budget {
    /// A derivation costs [`DERIVE_EVERY`], a datagram brings 1.
    credit: u32,
    /// Decides which datagrams are looked at while there are many: in no fixed rhythm, so that no sender is out of step
    /// for ever.
    dice: u32,
}

/// The link key, as far as it can be worked out before any session.
struct LinkKeys {
    id: u8,
    prk: hkdf::Prk,
}

/// Why bytes from the wire are not a datagram of this link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// The header is not one of ours.
    #[error(transparent)]
    Header(#[from] HeaderError),
    /// Tag or CRC-32 does not fit: corrupted, or not sealed under this link key.
    #[error("wrong tag")]
    Tag,
    /// Sealed under another link key, as its header says.
    #[error("sealed under another link key")]
    Key,
    /// Of an unknown session, while there are too many of these to look at each.
    #[error("too many unknown sessions")]
    Session,
    /// Sealed on a link configured `insecure`, or the other way round.
    #[error("sealed and insecure ends do not mix")]
    Mode,
}

impl Sealer {
    /// For `session`; `link` is the link key, None for `insecure` mode.
    #[must_use]
    pub fn new(link: Option<&[u8; 32]>, session: SessionId) -> Self {
        let link = link.map(LinkKeys::new);
        let link_id = link.as_ref().map_or(0, |link| link.id);
        Self { session, key: link.map(|link| link.session_key(session)), link_id }
    }

    /// The session.
    #[must_use]
    pub fn session(&self) -> SessionId {
        self.session
    }

    /// Whether datagrams are sealed.
    #[must_use]
    pub fn is_sealed(&self) -> bool {
        self.key.is_some()
    }

    /// Bytes of the datagram that carries a payload of `payload` bytes.
    #[must_use]
    pub fn datagram_len(&self, payload: usize) -> usize {
        let trailer = if self.key.is_some() { TAG_LEN } else { CRC_LEN };
        payload.saturating_add(HEADER_LEN).saturating_add(trailer)
    }

    /// Writes the whole datagram to `out`, whose length must be [`Sealer::datagram_len`] of the payload's.
    ///
    /// Panics if it is not, or as [`Sealer::seal_in_place`] does.
    pub fn seal(&self, header: &Header, payload: &[u8], out: &mut [u8]) {
        assert_eq!(out.len(), self.datagram_len(payload.len()), "the datagram fits its buffer");
        self.check(header);
        let (head, body) = out.split_at_mut(HEADER_LEN);
        head.copy_from_slice(&self.head(header));
        match &self.key {
            // Encrypting from one buffer into the other is the copy.
            Some(key) => key
                .seal_in_place_scatter(nonce(header.counter), Aad::from(&*head), &mut [], payload, body)
                .expect("a datagram is shorter than 64 GiB"),
            None => {
                let (body, trailer) = body.split_at_mut(payload.len());
                body.copy_from_slice(payload);
                trailer.copy_from_slice(&crc(head, body));
            }
        }
    }

    /// Seals `datagram`: room for the header's bytes, the payload, and room for the trailer.
    ///
    /// Panics if there is no room for both, or if the header names another session or mode. `header.counter` must
    /// never be used twice in a session.
    pub fn seal_in_place(&self, header: &Header, datagram: &mut [u8]) {
        self.check(header);
        let (head, body) = datagram.split_at_mut(HEADER_LEN);
        head.copy_from_slice(&self.head(header));
        match &self.key {
            Some(key) => {
                let (body, trailer) = body.split_at_mut(body.len().saturating_sub(TAG_LEN));
                let tag = key.seal_in_place_separate_tag(nonce(header.counter), Aad::from(&*head), body);
                trailer.copy_from_slice(tag.expect("a datagram is shorter than 64 GiB").as_ref());
            }
            None => {
                let (body, trailer) = body.split_at_mut(body.len().saturating_sub(CRC_LEN));
                trailer.copy_from_slice(&crc(head, body));
            }
        }
    }

    fn head(&self, header: &Header) -> [u8; HEADER_LEN] {
        let mut head = header.to_bytes();
        if let Some(id) = head.get_mut(LINK_ID_AT) {
            *id = self.link_id;
        }
        head
    }

    fn check(&self, header: &Header) {
        assert_eq!(header.session, self.session, "a sealer seals its own session");
        assert_eq!(header.sealed, self.key.is_some(), "header and sealer agree on the mode");
    }
}

impl Opener {
    /// `link` is the link key, None for `insecure` mode.
    #[must_use]
    pub fn new(link: Option<[u8; 32]>) -> Self {
        let link = link.as_ref().map(LinkKeys::new);
        Self { link, sessions: Vec::with_capacity(MAX_SESSIONS), budget: Budget { credit: MAX_CREDIT, dice: 1 } }
    }

    /// Checks `datagram` (a whole UDP payload) and decrypts it in place. Returns its header and payload.
    ///
    /// Errors leave the bytes in an unspecified state, and nothing is kept of an unknown session.
    pub fn open<'a>(&mut self, datagram: &'a mut [u8]) -> Result<(Header, &'a [u8]), OpenError> {
        let header = Header::parse(datagram)?;
        if header.sealed != self.link.is_some() {
            return Err(OpenError::Mode);
        }
        let (head, body) = datagram.split_at_mut_checked(HEADER_LEN).ok_or(HeaderError::Short)?;
        let head = &*head;
        let Some(link) = &self.link else {
            let at = body.len().checked_sub(CRC_LEN).ok_or(HeaderError::Short)?;
            let (payload, trailer) = body.split_at(at);
            return if *trailer == crc(head, payload) { Ok((header, payload)) } else { Err(OpenError::Tag) };
        };
        if head.get(LINK_ID_AT) != Some(&link.id) {
            return Err(OpenError::Key);
        }
        let nonce = nonce(header.counter);
        match self.sessions.iter().position(|(session, _)| *session == header.session) {
            Some(at) => {
                self.sessions.get_mut(..=at).ok_or(OpenError::Tag)?.rotate_right(1);
                let (_, key) = self.sessions.first().ok_or(OpenError::Tag)?;
                let payload = key.open_in_place(nonce, Aad::from(head), body).map_err(|_| OpenError::Tag)?;
                Ok((header, payload))
            }
            None => {
                if !self.budget.spend() {
                    return Err(OpenError::Session);
                }
                let key = link.session_key(header.session);
                let payload = key.open_in_place(nonce, Aad::from(head), body).map_err(|_| OpenError::Tag)?;
                self.budget.give_back();
                self.sessions.truncate(MAX_SESSIONS.saturating_sub(1));
                self.sessions.insert(0, (header.session, key));
                Ok((header, payload))
            }
        }
    }

    /// Checks `datagram`, whose header is `header`, and decrypts its payload to `out`, which has the payload's length. None:
    /// its session has not proven the link key yet, or the link has none; then use [`Opener::open`], nothing has happened.
    ///
    /// Errors leave `out` in an unspecified state.
    pub fn open_into(&mut self, header: &Header, datagram: &[u8], out: &mut [u8]) -> Option<Result<(), OpenError>> {
        let (_, key) = self.sessions.first().filter(|(session, _)| header.sealed && *session == header.session)?;
        if self.link.as_ref().is_none_or(|link| datagram.get(LINK_ID_AT) != Some(&link.id)) {
            return None;
        }
        let (head, body) = datagram.split_at_checked(HEADER_LEN)?;
        let (payload, tag) = body.split_at_checked(out.len())?;
        // Decrypting from one buffer into the other is the copy.
        let opened = key.open_separate_gather(nonce(header.counter), Aad::from(head), payload, tag, out);
        Some(opened.map_err(|_| OpenError::Tag))
    }
}

impl Budget {
    /// Whether a key may be derived for a datagram of an unknown session.
    fn spend(&mut self) -> bool {
        self.credit = self.credit.saturating_add(1).min(MAX_CREDIT);
        let Some(left) = self.credit.checked_sub(DERIVE_EVERY) else { return false };
        let spend = left >= DERIVE_EVERY || self.toss();
        self.credit = if spend { left } else { self.credit };
        spend
    }

    /// The session proved to be real.
    fn give_back(&mut self) {
        self.credit = self.credit.saturating_add(DERIVE_EVERY).min(MAX_CREDIT);
    }

    /// Heads or tails (xorshift).
    fn toss(&mut self) -> bool {
        self.dice ^= self.dice << 13;
        self.dice ^= self.dice >> 17;
        self.dice ^= self.dice << 5;
        self.dice & 1 == 1
    }
}

impl LinkKeys {
    fn new(key: &[u8; 32]) -> Self {
        let [id, ..] = LinkKey::from_bytes(*key).id().0;
        Self { id, prk: hkdf::Salt::new(hkdf::HKDF_SHA256, b"checkvalve session v2").extract(key) }
    }

    /// The key of a session: HKDF-SHA-256 (RFC 5869) with the link key as input and the session id as info.
    fn session_key(&self, session: SessionId) -> LessSafeKey {
        let info = session.0.to_be_bytes();
        let info = [info.as_slice()];
        let okm = self.prk.expand(&info, &AES_256_GCM).expect("32 bytes are within HKDF's limit");
        LessSafeKey::new(UnboundKey::from(okm))
    }
}

fn nonce(counter: u64) -> Nonce {
    let mut nonce = [0; 12];
    if let Some(low) = nonce.last_chunk_mut::<8>() {
        *low = counter.to_be_bytes();
    }
    Nonce::assume_unique_for_key(nonce)
}

fn crc(head: &[u8], payload: &[u8]) -> [u8; CRC_LEN] {
    let mut crc = crc32fast::Hasher::new();
    crc.update(head);
    crc.update(payload);
    crc.finalize().to_be_bytes()
}

#[cfg(test)]
#[allow(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::cast_possible_truncation)]
mod tests {
    use super::*;
    use crate::wire::Content;

    fn beacon(sealed: bool, session: u64, counter: u64) -> Header {
        Header { sealed, session: SessionId(session), counter, content: Content::Beacon }
    }

    fn sealed(link: Option<&[u8; 32]>, session: u64, counter: u64, payload: &[u8]) -> Vec<u8> {
        let sealer = Sealer::new(link, SessionId(session));
        let mut out = vec![0; sealer.datagram_len(payload.len())];
        sealer.seal(&beacon(link.is_some(), session, counter), payload, &mut out);
        out
    }

    #[test]
    fn opens_what_was_sealed_and_nothing_that_was_changed() {
        for link in [Some([7; 32]), None] {
            let mut opener = Opener::new(link);
            let good = sealed(link.as_ref(), 5, 1, b"hello");
            let (header, payload) = opener.open(&mut good.clone()).map(|(h, p)| (h, p.to_vec())).unwrap();
            assert_eq!((header, payload.as_slice()), (beacon(link.is_some(), 5, 1), b"hello".as_slice()));
            for bit in 0..good.len() * 8 {
                let mut bad = good.clone();
                bad[bit / 8] ^= 1 << (bit % 8);
                assert!(opener.open(&mut bad).is_err(), "bit {bit}");
            }
            for len in 0..good.len() {
                assert!(opener.open(&mut good[..len].to_vec()).is_err(), "length {len}");
            }
        }
    }

    #[test]
    fn another_link_key_or_mode_opens_nothing() {
        let mut other = Opener::new(Some([8; 32]));
        assert_eq!(other.open(&mut sealed(Some(&[7; 32]), 5, 1, b"x")), Err(OpenError::Key));
        assert_eq!(other.open(&mut sealed(None, 5, 1, b"x")), Err(OpenError::Mode));
        assert_eq!(Opener::new(None).open(&mut sealed(Some(&[7; 32]), 5, 1, b"x")), Err(OpenError::Mode));
    }

    /// What was sealed with `link`, its tag spoilt.
    fn forged(link: &[u8; 32], session: u64) -> Vec<u8> {
        let mut datagram = sealed(Some(link), session, 1, b"forged");
        datagram[HEADER_LEN] ^= 1;
        datagram
    }

    #[test]
    fn a_flood_of_unknown_sessions_derives_few_keys_and_keeps_none_out() {
        let mut opener = Opener::new(Some([7; 32]));
        let tried = (0..16_000).filter(|&n| opener.open(&mut forged(&[7; 32], n)) == Err(OpenError::Tag)).count();
        assert!((1_000..1_100).contains(&tried), "{tried} keys were derived");
        // A real one that sends one datagram for so many of the flood: 15 is the rhythm of derivations.
        for (session, flood) in [(5, 9), (6, 15), (7, 31)] {
            let real = (0..2_000).find(|&n| {
                for m in 0..flood {
                    let _ = opener.open(&mut forged(&[7; 32], 100_000 + n * flood + m));
                }
                opener.open(&mut sealed(Some(&[7; 32]), session, n, b"real")).is_ok()
            });
            assert!(real.is_some_and(|n| n < 500), "{flood}: {real:?}");
        }
        assert_eq!(opener.open(&mut sealed(Some(&[7; 32]), 5, 5_000, b"known")).map(|(_, p)| p.len()), Ok(5));
    }

    #[test]
    fn forged_sessions_do_not_push_out_real_ones() {
        let mut opener = Opener::new(Some([7; 32]));
        for session in 0..100 {
            assert!(opener.open(&mut forged(&[7; 32], session)).is_err());
        }
        assert!(opener.sessions.is_empty());
        opener.budget.credit = MAX_CREDIT;
        for session in 0..20 {
            assert!(opener.open(&mut sealed(Some(&[7; 32]), session, 1, b"real")).is_ok());
        }
        assert_eq!(opener.sessions.len(), MAX_SESSIONS);
        assert!(opener.open(&mut sealed(Some(&[7; 32]), 0, 2, b"an older session comes back")).is_ok());
    }
}
