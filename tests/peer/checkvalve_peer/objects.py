"""Signed objects, announce and hashes, and what a receiver makes of them.

SPEC.md sections "Signed objects", "Announce", "Announce rules", "Hashes" and "What a receiver believes".
"""

from dataclasses import dataclass, field
from typing import Any

from blake3 import blake3

from .datagram import MOST_DATA, possible
from .encoding import Reader, Writer
from .errors import Refused
from .paths import check_channel, check_path, check_target, order

DOMAINS = {
    "announce": b"checkvalve announce v2\0",
    "hashes": b"checkvalve hashes v2\0",
    "beacon": b"checkvalve beacon v2\0",
}
MAGIC = b"CVS2"
MOST_OBJECT = 1 << 26
MOST_BEACON = 9216
MOST_ENTRIES = 1 << 20
MOST_SEQUENCE = (1 << 53) - 1
FILE, DIRECTORY, SYMLINK = 0, 1, 2


# ---- signed objects

def sign(role, payload, key, key_id=None):
    """A signed object; `key` None leaves it unsigned, `key_id` claims another signer."""
    if key is None:
        return MAGIC + bytes(72) + payload
    return MAGIC + (key_id or key.id) + key.sign(DOMAINS[role] + payload) + payload


def digest(data):
    return blake3(data).digest()


def open_signed(role, data, keys):
    """Checks a signed object with the trusted keys, by id; returns the signer and the payload."""
    if len(data) > (MOST_BEACON if role == "beacon" else MOST_OBJECT):
        raise Refused("too-long")
    if len(data) < 76 or data[:4] != MAGIC:
        raise Refused("container")
    if not any(data[4:76]):
        raise Refused("unsigned")
    key = keys.get(data[4:12])
    if key is None:
        raise Refused("unknown-key")
    if not key.verifies(data[12:76], DOMAINS[role] + data[76:]):
        raise Refused("bad-signature")
    return key, data[76:]


# ---- extensions

def write_extensions(w, extensions):
    w.list(extensions, lambda e: w.uint(e[0]).bytes(e[1]))


def read_extensions(r):
    count = r.uint()
    if count > 32:
        raise Refused("too-many-extensions")
    extensions = [(r.uint(4), r.bytes()) for _ in range(count)]
    before = -1
    for tag, data in extensions:
        if tag <= before:
            raise Refused("extension-order")
        if len(data) > 4096:
            raise Refused("extension-too-long")
        if tag & 1:
            raise Refused("critical-extension")
        before = tag
    return extensions


# ---- announce

@dataclass
class Entry:
    path: bytes
    kind: Any = FILE
    size: Any = 0
    mode: Any = 0o644
    target: Any = b""
    seconds: Any = 1_700_000_000
    nanos: Any = 0


@dataclass
class Announce:
    bundle: Any
    channel: Any
    sequence: Any
    name: Any
    entries: Any
    created: Any = 1_700_000_000_000
    symbol: Any = 1408
    most: Any = 256
    extensions: Any = field(default_factory=list)

    def data_len(self):
        return sum(e.size for e in self.entries if e.kind == FILE)

    def files(self):
        return [e for e in self.entries if e.kind == FILE]

    def encode(self):
        w = Writer()
        w.uint(self.bundle).bytes(self.channel).uint(self.sequence).bytes(self.name)
        w.uint(self.created).uint(self.symbol).uint(self.most)
        w.list(self.entries, lambda e: write_entry(w, e))
        write_extensions(w, self.extensions)
        return w.done()


def write_entry(w, e):
    w.bytes(e.path).sint(e.seconds).uint(e.nanos).uint(e.kind)
    if e.kind == FILE:
        w.uint(e.size).uint(e.mode)
    elif e.kind == DIRECTORY:
        w.uint(e.mode)
    else:
        w.bytes(e.target)


def read_entry(r):
    e = Entry(r.bytes())
    check_path(e.path)
    e.seconds, e.nanos, e.kind = r.sint(), r.uint(4), r.choice(2)
    if e.kind == FILE:
        e.size = r.uint()
    if e.kind != SYMLINK:
        e.mode = r.uint(2)
        return e
    e.target = r.bytes()
    check_target(e.path, e.target)
    return e


PATH_RULES = ("path-", "target-")


def decode_announce(payload):
    """All the announce rules, in their order."""
    a, r, stopped = read_announce(payload)
    check_channel(a.channel)
    if stopped:
        raise stopped
    a.extensions = read_extensions(r)
    r.end()
    check_sequence(a.sequence)
    if not a.entries:
        raise Refused("no-entries")
    if b"/" in a.name or a.name != a.entries[0].path:
        raise Refused("name")
    total = check_entries(a.entries)
    if total > MOST_DATA:
        raise Refused("data-too-long")
    if not possible(total or 1, a.symbol, a.most):
        raise Refused("oti")
    return a


def read_announce(payload):
    """Rule 1. What stops the reading without being an error of the encoding is returned, not raised."""
    r = Reader(payload)
    a = Announce(r.uint(), r.text(), r.uint(), r.bytes(), [], r.uint(), r.uint(2), r.uint(2))
    count = r.uint()
    if count > MOST_ENTRIES:
        return a, r, Refused("too-many-entries")
    try:
        while len(a.entries) < count:
            a.entries.append(read_entry(r))
    except Refused as refused:
        if not refused.rule.startswith(PATH_RULES):
            raise
        return a, r, refused
    return a, r, None


def check_sequence(n):
    if n == 0:
        raise Refused("sequence-zero")
    if n > MOST_SEQUENCE:
        raise Refused("sequence-too-large")


def check_entries(entries):
    """Rule 6; returns the sum of the sizes."""
    root = entries[0].path.split(b"/")[0]
    above = []  # the directories that hold the place of the walk, from the root on
    before = None
    total = 0
    for e in entries:
        if e.nanos >= 1_000_000_000:
            raise Refused("nanoseconds")
        if e.kind != SYMLINK and e.mode & ~0o777:
            raise Refused("mode")
        if e.path.split(b"/")[0] != root:
            raise Refused("other-root")
        if before is not None:
            if e.path == before.path:
                raise Refused("duplicate")
            if order(e.path) < order(before.path):
                raise Refused("order")
            if before.kind != DIRECTORY and e.path.startswith(before.path + b"/"):
                raise Refused("inside-file" if before.kind == FILE else "through-symlink")
            parent = e.path.rpartition(b"/")[0]
            while above and above[-1] != parent:
                above.pop()
            if not above:
                raise Refused("parent-missing")
        if e.kind == DIRECTORY:
            above.append(e.path)
        if e.kind == FILE:
            total += e.size
        if total >= 1 << 64:
            raise Refused("data-too-long")
        before = e
    return total


# ---- hashes

@dataclass
class Hashes:
    bundle: Any
    announce: bytes
    hashes: Any = None  # of a complete bundle
    reason: Any = None  # of a withdrawn one
    outcome: Any = None  # overrides the choice's tag
    extensions: Any = field(default_factory=list)

    def encode(self):
        w = Writer()
        w.uint(self.bundle).raw(self.announce)
        w.uint((self.reason is not None) + 0 if self.outcome is None else self.outcome)
        if self.reason is not None:
            w.bytes(self.reason)
        else:
            w.list(self.hashes, w.raw)
        write_extensions(w, self.extensions)
        return w.done()


def decode_hashes(payload):
    r = Reader(payload)
    h = Hashes(r.uint(), r.take(32))
    if r.choice(1) == 0:
        h.hashes = r.list(lambda: r.take(32))
        if len(h.hashes) > MOST_ENTRIES:
            raise Refused("too-many-entries")
    else:
        h.reason = r.text()
        if len(h.reason.encode()) > 1024:
            raise Refused("reason-too-long")
    h.extensions = read_extensions(r)
    r.end()
    return h
