//! The datagram header: 48 bytes, laid out by hand, all integers big-endian (SPEC.md, "Datagram").
#![deny(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation
)]

use crate::id::{BundleId, SessionId};
use crate::limits::{CRC_LEN, HEADER_LEN, MAX_BEACON_LEN, MAX_ESI, TAG_LEN};
use crate::partition::Oti;

/// First two bytes of every datagram.
pub const MAGIC: [u8; 2] = *b"CV";
/// Version of the format that this crate speaks.
pub const VERSION: u8 = 2;

/// Which of a bundle's three transport objects.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum ObjectKind {
    /// Signed: what is known of a bundle when its transmission starts.
    Announce = 1,
    /// The contents of its files, one after another.
    Data = 2,
    /// Signed: the hashes of its files, known when they have been read.
    Hashes = 3,
}

/// What a datagram carries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Content {
    /// One encoding symbol of an object.
    Symbol(Symbol),
    /// A beacon: its payload is decoded by [`crate::beacon`].
    Beacon,
}

/// The place of a symbol: FEC payload ID (RFC 6330 section 3.2, with a 32-bit SBN) and OTI.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Symbol {
    /// The bundle.
    pub bundle: BundleId,
    /// Which object of the bundle.
    pub kind: ObjectKind,
    /// Source block number, below `oti.blocks()`.
    pub sbn: u32,
    /// Encoding symbol id: below K a source symbol, from K on a repair symbol.
    pub esi: u32,
    /// The object's transmission information.
    pub oti: Oti,
}

/// A datagram's header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    /// Sealed with AES-256-GCM; otherwise only guarded by a CRC-32.
    pub sealed: bool,
    /// The sender's run.
    pub session: SessionId,
    /// Counts the session's datagrams; the nonce.
    pub counter: u64,
    /// What follows the header.
    pub content: Content,
}

/// Bytes that are no datagram of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// Shorter than header and trailer.
    #[error("too short")]
    Short,
    /// Does not begin with [`MAGIC`].
    #[error("no checkvalve datagram")]
    Magic,
    /// Another version of the format.
    #[error("format version {0}, this is version {VERSION}")]
    Version(u8),
    /// No such kind.
    #[error("unknown kind")]
    Kind,
    /// A kind, or a length of 0, that a later version gives a meaning.
    #[error("reserved for a later version")]
    Reserved,
    /// OTI that describes no object, an SBN beyond it, or a length other than T.
    #[error("impossible place or length")]
    Place,
}

const INSECURE: u8 = 0x80;
const BEACON: u8 = 4;
/// Trust files, calibration, streams.
const RESERVED: std::ops::RangeInclusive<u8> = 5..=7;

impl ObjectKind {
    fn from_wire(kind: u8) -> Option<Self> {
        [Self::Announce, Self::Data, Self::Hashes].into_iter().find(|k| *k as u8 == kind)
    }
}

impl Header {
    /// Reads and checks the header of `datagram` (the whole UDP payload), but for the link key's byte, which is the
    /// [`Opener`](crate::seal::Opener)'s. Nothing in it is authentic yet.
    pub fn parse(datagram: &[u8]) -> Result<Self, HeaderError> {
        let (head, rest) = datagram.split_first_chunk::<HEADER_LEN>().ok_or(HeaderError::Short)?;
        let [m0, m1, version, kind, fields @ ..] = head;
        let sealed = kind & INSECURE == 0;
        let payload_len = rest.len().checked_sub(if sealed { TAG_LEN } else { CRC_LEN }).ok_or(HeaderError::Short)?;
        if [*m0, *m1] != MAGIC {
            return Err(HeaderError::Magic);
        }
        if *version != VERSION {
            return Err(HeaderError::Version(*version));
        }
        let mut fields = Fields(fields);
        let session = SessionId(fields.u64());
        let counter = fields.u64();
        let bundle = BundleId(fields.u64());
        let (sbn, esi) = (fields.u32(), fields.u32() & MAX_ESI);
        let (length, size, block) = (fields.u64(), fields.u16(), fields.u16());
        let kind = kind & !INSECURE;
        let content = if kind == BEACON {
            if (bundle.0, sbn, esi, length, size, block) != (0, 0, 0, 0, 0, 0) {
                return Err(HeaderError::Place);
            }
            if payload_len > MAX_BEACON_LEN {
                return Err(HeaderError::Place);
            }
            Content::Beacon
        } else if RESERVED.contains(&kind) {
            return Err(HeaderError::Reserved);
        } else {
            let kind = ObjectKind::from_wire(kind).ok_or(HeaderError::Kind)?;
            if length == 0 {
                return Err(HeaderError::Reserved);
            }
            let oti = Oti::new(length, size, block).map_err(|_| HeaderError::Place)?;
            if payload_len != usize::from(size) || sbn >= oti.blocks() {
                return Err(HeaderError::Place);
            }
            Content::Symbol(Symbol { bundle, kind, sbn, esi, oti })
        };
        Ok(Self { sealed, session, counter, content })
    }

    /// The header's bytes, the link key's byte 0: the [`Sealer`](crate::seal::Sealer) writes it.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; HEADER_LEN] {
        let mut out = [0; HEADER_LEN];
        let (kind, bundle, sbn, esi, length, size, block) = match self.content {
            Content::Beacon => (BEACON, 0, 0, 0, 0, 0, 0),
            Content::Symbol(s) => (
                s.kind as u8,
                s.bundle.0,
                s.sbn,
                s.esi,
                s.oti.transfer_length(),
                s.oti.symbol_size(),
                s.oti.max_block_symbols(),
            ),
        };
        let kind = if self.sealed { kind } else { kind | INSECURE };
        let mut rest = out.as_mut_slice();
        for field in [
            MAGIC.as_slice(),
            &[VERSION, kind],
            &self.session.0.to_be_bytes(),
            &self.counter.to_be_bytes(),
            &bundle.to_be_bytes(),
            &sbn.to_be_bytes(),
            &esi.to_be_bytes(),
            &length.to_be_bytes(),
            &size.to_be_bytes(),
            &block.to_be_bytes(),
        ] {
            let (at, after) = rest.split_at_mut(field.len());
            at.copy_from_slice(field);
            rest = after;
        }
        assert!(rest.is_empty(), "the fields fill the header");
        out
    }
}

/// Takes big-endian integers off the front; the array's length is checked above, so it never runs short.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        match self.0.split_first_chunk::<N>() {
            Some((field, rest)) => {
                self.0 = rest;
                *field
            }
            None => [0; N],
        }
    }
    fn u64(&mut self) -> u64 {
        u64::from_be_bytes(self.take())
    }
    fn u32(&mut self) -> u32 {
        u32::from_be_bytes(self.take())
    }
    fn u16(&mut self) -> u16 {
        u16::from_be_bytes(self.take())
    }
}

#[cfg(test)]
#[allow(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::cast_possible_truncation)]
mod tests {
    use super::*;

    fn symbol() -> Header {
        let oti = Oti::new(1_000_000, 1_408, 256).unwrap();
        let symbol = Symbol { bundle: BundleId(0x0102_0304_0506_0708), kind: ObjectKind::Data, sbn: 2, esi: 300, oti };
        Header { sealed: true, session: SessionId(9), counter: 77, content: Content::Symbol(symbol) }
    }

    fn datagram(header: &Header, payload: usize) -> Vec<u8> {
        let mut bytes = header.to_bytes().to_vec();
        bytes.resize(HEADER_LEN + payload + if header.sealed { TAG_LEN } else { CRC_LEN }, 0);
        bytes
    }

    #[test]
    fn reads_what_it_writes() {
        for sealed in [true, false] {
            let header = Header { sealed, ..symbol() };
            assert_eq!(Header::parse(&datagram(&header, 1_408)), Ok(header));
            let beacon = Header { content: Content::Beacon, ..header };
            assert_eq!(Header::parse(&datagram(&beacon, 17)), Ok(beacon));
        }
    }

    #[test]
    fn refuses_each_defect_by_name() {
        let good = datagram(&symbol(), 1_408);
        for len in 0..good.len() {
            assert!(Header::parse(&good[..len]).is_err(), "length {len}");
        }
        let with = |at: usize, value: u8| {
            let mut bytes = good.clone();
            bytes[at] = value;
            Header::parse(&bytes)
        };
        assert_eq!(with(0, b'X'), Err(HeaderError::Magic));
        assert_eq!(with(2, 9), Err(HeaderError::Version(9)));
        assert_eq!(with(3, 0), Err(HeaderError::Kind));
        assert_eq!(with(3, 8), Err(HeaderError::Kind));
        for reserved in 5..8 {
            assert_eq!(with(3, reserved), Err(HeaderError::Reserved));
        }
        assert_eq!(with(3, 4), Err(HeaderError::Place), "a beacon has no place");
        assert_eq!(with(28, 1), Err(HeaderError::Place), "SBN beyond the object");
        assert!(with(32, 1).is_ok(), "the link key's byte is not the header's");
        assert_eq!(with(36, 1), Err(HeaderError::Place), "object too long");
        assert_eq!(with(45, 1), Err(HeaderError::Place), "T no multiple of 64");
        assert_eq!(with(46, 0xff), Err(HeaderError::Place), "B too large");
        let mut long = good.clone();
        long.push(0);
        assert_eq!(Header::parse(&long), Err(HeaderError::Place), "longer than T");
        let mut endless = good;
        endless[36..44].fill(0);
        assert_eq!(Header::parse(&endless), Err(HeaderError::Reserved), "no known length");
    }
}
