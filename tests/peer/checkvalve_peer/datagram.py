"""Datagrams and the partition of objects. SPEC.md sections "Datagram" and "Source blocks and symbols"."""

import struct
import zlib
from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from .errors import Refused

ANNOUNCE, DATA, HASHES, BEACON = 1, 2, 3, 4
KINDS = {"announce": ANNOUNCE, "data": DATA, "hashes": HASHES, "beacon": BEACON}
INSECURE = 0x80
MOST_DATA = 1 << 44
HEADER = struct.Struct(">2sBBQQQIIQHH")
assert HEADER.size == 48


@dataclass(frozen=True)
class Partition:
    """An object of F bytes in blocks of at most B symbols of T bytes (RFC 5052 section 9.1)."""

    length: int
    symbol: int
    most: int

    @property
    def symbols(self):
        return -(-self.length // self.symbol)

    @property
    def blocks(self):
        return -(-self.symbols // self.most)

    def block(self, sbn):
        """The first symbol of a block and how many it has."""
        small, large_blocks = divmod(self.symbols, self.blocks)
        first = sbn * small + min(sbn, large_blocks)
        return first, small + (sbn < large_blocks)

    def span(self, sbn):
        """Offset and length of a block's bytes."""
        first, count = self.block(sbn)
        start = first * self.symbol
        return start, min(count * self.symbol, self.length - start)


def possible(length, symbol, most):
    """Whether F, T and B can be those of an object."""
    return (
        1 <= length <= MOST_DATA
        and 64 <= symbol <= 9152
        and symbol % 64 == 0
        and 1 <= most <= 1024
        and Partition(length, symbol, most).blocks < 1 << 32
    )


def header(kind, session, counter, bundle=0, sbn=0, esi=0, length=0, symbol=0, most=0, key=0, magic=b"CV", version=2):
    """48 bytes; nothing is checked, but what does not fit a field is cut to it."""
    return HEADER.pack(
        magic,
        version,
        kind & 255,
        session & (1 << 64) - 1,
        counter & (1 << 64) - 1,
        bundle & (1 << 64) - 1,
        sbn & (1 << 32) - 1,
        (key & 255) << 24 | esi & 0xFFFFFF,
        length & (1 << 64) - 1,
        symbol & 0xFFFF,
        most & 0xFFFF,
    )


class Sealer:
    """Seals the datagrams of one session; one AES-GCM context serves them all. Without a link key: CRC-32."""

    def __init__(self, link, session):
        self.link = link
        self.session = session
        self.key = link.id[0] if link else 0
        self.mark = 0 if link else INSECURE
        self.gcm = AESGCM(link.session_key(session)) if link else None

    def seal(self, kind, counter, payload, **fields):
        fields.setdefault("key", self.key)
        head = header(kind | self.mark, self.session, counter, **fields)
        return self.seal_header(head, counter, payload)

    def seal_header(self, head, counter, payload):
        if self.gcm is None:
            return head + payload + zlib.crc32(payload, zlib.crc32(head)).to_bytes(4, "big")
        nonce = b"\0\0\0\0" + (counter & (1 << 64) - 1).to_bytes(8, "big")
        return head + self.gcm.encrypt(nonce, payload, head)


@dataclass
class Datagram:
    kind: int
    session: int
    counter: int
    bundle: int
    sbn: int
    esi: int
    length: int
    symbol: int
    most: int
    payload: bytes


class Opener:
    """A receiver's side: drops a datagram for the first reason that holds."""

    def __init__(self, link):
        self.link = link
        self.sessions = {}

    def open(self, data):
        head, payload = check(data, self.link)
        session, counter = head[3], head[4]  # magic, version and kind come before
        if self.link is None:
            if zlib.crc32(data[:-4]).to_bytes(4, "big") != data[-4:]:
                raise Refused("tag")
            payload = payload[:-4]
        else:
            gcm = self.sessions.get(session) or AESGCM(self.link.session_key(session))
            try:
                payload = gcm.decrypt(b"\0\0\0\0" + data[12:20], payload, data[:48])
            except InvalidTag:
                raise Refused("tag") from None
            self.sessions[session] = gcm
        return Datagram(head[2] & 127, session, counter, head[5], head[6], head[7] & 0xFFFFFF, *head[8:], payload)


def check(data, link):
    """All the reasons that need no key; returns header fields (without magic) and what follows the header."""
    if len(data) < 52:
        raise Refused("short")
    insecure = bool(data[3] & INSECURE)
    size = len(data) - 48 - (4 if insecure else 16)
    if size < 0:
        raise Refused("short")
    fields = HEADER.unpack_from(data)
    magic, version, kind, _, _, bundle, sbn, key_esi, length, symbol, most = fields
    if magic != b"CV":
        raise Refused("magic")
    if version != 2:
        raise Refused("version")
    kind &= 127
    if kind == 0 or kind > 7:
        raise Refused("kind")
    if kind > BEACON or (kind != BEACON and length == 0):
        raise Refused("reserved")
    if kind == BEACON:
        if bundle or sbn or key_esi & 0xFFFFFF or length or symbol or most or size > 9216:
            raise Refused("place")
    elif not possible(length, symbol, most) or size != symbol or sbn >= Partition(length, symbol, most).blocks:
        raise Refused("place")
    if insecure != (link is None):
        raise Refused("mode")
    if link and key_esi >> 24 != link.id[0]:
        raise Refused("key")
    return fields, data[48:]
