"""A sender: bundles and beacons as sealed datagrams. SPEC.md section "Transmission", with source symbols only.

A receiver that gets every source symbol needs no repair symbols, so that where our own sender would send these, this
one repeats source symbols.
"""

import mmap
import os
import socket
import time
from pathlib import Path

from blake3 import blake3

from .beacon import Beacon, Channel, Recent
from .datagram import ANNOUNCE, BEACON, DATA, HASHES, Partition, Sealer
from .objects import DIRECTORY, FILE, Announce, Entry, Hashes, digest, sign
from .paths import order


def random64():
    return int.from_bytes(os.urandom(8), "big")


class Concat:
    """Contents one after the other, read without being joined: bytes, or files that are mapped into memory."""

    def __init__(self, contents):
        self.pieces = []  # (first offset, content)
        self.length = 0
        for content in contents:
            if isinstance(content, Path):
                size = content.stat().st_size
                with open(content, "rb") as file:
                    content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
            if len(content):
                self.pieces.append((self.length, content))
                self.length += len(content)
        self.at = 0  # index of the piece read last: reads mostly go forward

    def read(self, start, n):
        if self.at >= len(self.pieces) or self.pieces[self.at][0] > start:
            self.at = 0
        out = b""
        while n and self.at < len(self.pieces):
            first, content = self.pieces[self.at]
            piece = content[start - first : start - first + n] if start >= first else b""
            out += piece
            start += len(piece)
            n -= len(piece)
            if n:
                self.at += 1
        return out


def content_hash(content):
    if isinstance(content, Path):
        with open(content, "rb") as file:
            hasher = blake3()
            while piece := file.read(1 << 20):
                hasher.update(piece)
            return hasher.digest()
    return blake3(content).digest()


def content_len(content):
    return content.stat().st_size if isinstance(content, Path) else len(content)


def make_entries(name, files):
    """Entries and contents of a bundle; `files` are the contents of one file, or of many by path below the name.

    A path of `files` whose content is None is an empty directory.
    """
    name = name.encode() if isinstance(name, str) else name
    if not isinstance(files, dict):
        return [Entry(name, FILE, content_len(files))], [files]
    places = {name: None}
    for path, content in files.items():
        path = path.encode() if isinstance(path, str) else path
        parts = path.split(b"/")
        for i in range(1, len(parts)):
            places.setdefault(b"/".join([name, *parts[:i]]), None)
        places[name + b"/" + path] = content
    entries, contents = [], []
    for path in sorted(places, key=order):
        if places[path] is None:
            entries.append(Entry(path, DIRECTORY, mode=0o755))
        else:
            entries.append(Entry(path, FILE, content_len(places[path])))
            contents.append(places[path])
    return entries, contents


class Manifest:
    """Announce and hashes of a bundle, signed, and its data."""

    def __init__(self, key, channel, sequence, name, files, bundle=None, symbol=1408, most=256, announce=None, hashes=None):
        self.bundle = key.bundle_id() if bundle is None else bundle
        self.key = key
        entries, contents = make_entries(name, files)
        name = name.encode() if isinstance(name, str) else name
        now = int(time.time() * 1000)
        self.fields = Announce(self.bundle, channel, sequence, name, entries, now, symbol, most)
        for field, value in (announce or {}).items():
            setattr(self.fields, field, value)
        self.announce = sign("announce", self.fields.encode(), key)
        self.hash_fields = Hashes(self.bundle, digest(self.announce), [content_hash(c) for c in contents])
        for field, value in (hashes or {}).items():
            setattr(self.hash_fields, field, value)
        self.hashes = sign("hashes", self.hash_fields.encode(), key)
        self.data = Concat(contents)
        self.symbol, self.most = symbol, most


class Sender:
    """One run of a sender: a session of datagrams, and beacons under an epoch."""

    def __init__(self, link, key, epoch=1, epoch_id=None, session_number=1, session=None, symbol=1408, most=256):
        self.link, self.key = link, key
        self.epoch, self.epoch_id = epoch, random64() if epoch_id is None else epoch_id
        self.session_number = session_number
        self.session = random64() if session is None else session
        self.symbol, self.most = symbol, most
        self.sealer = Sealer(link, self.session)
        self.counter = 0
        self.beacons = 0
        self.history = {}  # channel: recent bundles, the newest first
        self.rate_bits = 100_000_000

    # ---- datagrams

    def next(self, kind, payload, **fields):
        counter = self.counter
        self.counter += 1
        return self.sealer.seal(kind, counter, payload, **fields)

    def symbols(self, kind, bundle, read, length, symbol=None, most=None, wanted=None):
        """The source symbols of an object, of all blocks or those in `wanted`; `read(start, n)` gives its bytes."""
        part = Partition(length, symbol or self.symbol, most or self.most)
        size = part.symbol
        for sbn in range(part.blocks) if wanted is None else wanted:
            first, count = part.block(sbn)
            block = read(first * size, min(count * size, length - first * size)).ljust(count * size, b"\0")
            for esi in range(count):
                payload = block[esi * size : esi * size + size]
                yield self.next(
                    kind, payload, bundle=bundle, sbn=sbn, esi=esi, length=length, symbol=size, most=part.most
                )

    def object(self, kind, bundle, data, **oti):
        return self.symbols(kind, bundle, lambda start, n: data[start : start + n], len(data), **oti)

    def send_bundle(self, channel, sequence, name, files, repeats=2, manifest=None, **options):
        """Datagrams of one pass: announce, data, hashes; announce and hashes `repeats` times, and the announce again."""
        m = manifest or Manifest(
            self.key, channel, sequence, name, files, symbol=self.symbol, most=self.most, **options
        )
        state = Recent(sequence, m.bundle, m.data.length, 1, m.fields.name)
        self.history.setdefault(channel, []).insert(0, state)
        for _ in range(repeats):
            yield from self.object(ANNOUNCE, m.bundle, m.announce)
        if m.data.length:
            yield from self.symbols(DATA, m.bundle, m.data.read, m.data.length, m.symbol, m.most)
        for _ in range(repeats):
            yield from self.object(HASHES, m.bundle, m.hashes)
        yield from self.object(ANNOUNCE, m.bundle, m.announce)
        state.state = 2

    # ---- beacons

    def beacon_fields(self, channel=None, on_wire=None, **overrides):
        self.beacons += 1
        b = Beacon(self.epoch, self.epoch_id, self.session_number, self.session, self.beacons)
        b.clock, b.rate, b.datagrams = int(time.time() * 1000), self.rate_bits, self.counter
        b.on_wire = on_wire
        if isinstance(channel, str):
            recent = [Recent(**vars(r)) for r in self.history.get(channel, [])[:32]]
            channel = Channel(channel, 0, recent[0].sequence if recent else 0, recent)
        b.channel = channel
        for field, value in overrides.items():
            setattr(b, field, value)
        return b

    def beacon(self, channel=None, on_wire=None, key="own", **overrides):
        """One beacon; `channel` is a name, of whose history it tells, or a Channel. Any field may be overridden."""
        payload = self.beacon_fields(channel, on_wire, **overrides).fit()
        return self.next(BEACON, sign("beacon", payload, self.key if key == "own" else key))


class Udp:
    """A socket that sends at most `rate` datagrams a second, to one address and no other."""

    def __init__(self, to, rate=0):
        host, _, port = to.rpartition(":")
        family, kind, _, _, address = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_DGRAM)[0]
        self.socket = socket.socket(family, kind)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 22)
        self.socket.connect(address)
        self.rate = rate
        self.sent = 0
        self.start = None
        self.paced = 0

    def send(self, datagram):
        if self.rate:
            self.pace()
        try:
            self.socket.send(datagram)
        except (ConnectionRefusedError, BlockingIOError):
            pass  # nobody listens at present: a one-way link would not know
        except OSError as e:
            if e.errno not in (90, 105):  # too long for UDP; no buffer space
                raise
        self.sent += 1

    def pace(self):
        now = time.monotonic()
        if self.start is None or now - self.start > 1 + self.paced / self.rate:
            self.start, self.paced = now, 0  # no burst after a pause
        wait = self.start + self.paced / self.rate - now
        if wait > 0.002:
            time.sleep(wait)
        self.paced += 1

    def send_all(self, datagrams, until=None):
        """Sends until the iterator ends or `until` (of time.monotonic) comes; returns whether it ended."""
        for datagram in datagrams:
            self.send(datagram)
            if until is not None and time.monotonic() >= until:
                return False
        return True
