//! Every limit of the protocol in one place, and the relations between them checked when this compiles.

/// Length of the datagram header in bytes, at any MTU.
pub const HEADER_LEN: usize = 48;
/// Length of the AES-256-GCM tag in bytes.
pub const TAG_LEN: usize = 16;
/// Length of the CRC-32 that takes the tag's place in `insecure` mode, in bytes.
pub const CRC_LEN: usize = 4;
/// Header and tag together, in bytes.
pub const OVERHEAD: usize = HEADER_LEN + TAG_LEN;
/// IPv4 and UDP headers, in bytes.
pub const IP_UDP_LEN: usize = 28;
/// What Ethernet adds to an IP datagram on the wire: preamble 8, header 14, FCS 4, gap 12 (IEEE 802.3).
pub const ETHERNET_LEN: usize = 38;
/// Smallest MTU that a link may have, in bytes (RFC 791 asks every host to take 576).
pub const MIN_MTU: u16 = 576;
/// Largest MTU that a link may have, in bytes: the largest that common Ethernet hardware has is 9,216.
pub const MAX_MTU: u16 = 9_216;
/// Symbol sizes are multiples of this many bytes: a cache line, which the coder's vector loops like best.
pub const SYMBOL_ALIGNMENT: u16 = 64;
/// Largest symbol size T in bytes.
pub const MAX_SYMBOL_SIZE: u16 = 9_152;
/// Most source symbols in a block (RFC 6330 allows 56,403; encoding slows down above 1,024).
pub const MAX_BLOCK_SYMBOLS: u16 = 1_024;
/// Largest encoding symbol id: 24 bits (RFC 6330 section 3.2).
pub const MAX_ESI: u32 = (1 << 24) - 1;
/// Largest beacon, signature and all, in bytes: no datagram is larger.
pub const MAX_BEACON_LEN: usize = MAX_MTU as usize;
/// Where the first byte of the link key's id is in the header.
pub const LINK_ID_AT: usize = 32;
/// Largest transport object in bytes.
pub const MAX_TRANSFER_LENGTH: u64 = 1 << 44;
/// Largest signed announce or hashes object in bytes.
pub const MAX_MANIFEST_LEN: usize = 64 << 20;
/// Sequences that one ticket names.
pub const MAX_TICKET_SEQUENCES: u64 = 1_000;
/// Most entries (files, directories, symlinks) in a bundle.
pub const MAX_ENTRIES: usize = 1 << 20;
/// Largest sequence of a channel, session number, epoch number and counter of beacons: what JSON's numbers hold exactly.
pub const MAX_SEQUENCE: u64 = (1 << 53) - 1;
/// A channel's newest sequence is not believed to rise by more than this at once.
pub const MAX_JUMP: u64 = 10_000;
/// Most extensions of a signed object.
pub const MAX_EXTENSIONS: usize = 32;
/// Longest extension in bytes.
pub const MAX_EXTENSION_LEN: usize = 4_096;
/// Longest path in a bundle in bytes (PATH_MAX on Linux).
pub const MAX_PATH_LEN: usize = 4_096;
/// Longest component of a path in bytes (NAME_MAX on Linux).
pub const MAX_NAME_LEN: usize = 255;
/// Deepest path in a bundle, in components.
pub const MAX_PATH_DEPTH: usize = 128;
/// Longest name of a channel in bytes.
pub const MAX_CHANNEL_LEN: usize = 32;
/// Most channels in a config, and most others that a receiver takes bundles of.
pub const MAX_CHANNELS: usize = 64;

const _: () = {
    assert!(OVERHEAD <= 64, "DESIGN: header and tag stay at or under 64 bytes");
    assert!(MAX_SYMBOL_SIZE.is_multiple_of(SYMBOL_ALIGNMENT));
    assert!(MAX_SYMBOL_SIZE as usize + OVERHEAD + IP_UDP_LEN >= MAX_MTU as usize - SYMBOL_ALIGNMENT as usize);
    assert!(MIN_MTU as usize > OVERHEAD + IP_UDP_LEN + SYMBOL_ALIGNMENT as usize);
    assert!(MAX_TRANSFER_LENGTH / (SYMBOL_ALIGNMENT as u64) / (MAX_BLOCK_SYMBOLS as u64) <= u32::MAX as u64);
    assert!(MAX_NAME_LEN <= MAX_PATH_LEN);
};
