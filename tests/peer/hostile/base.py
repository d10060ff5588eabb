"""What the attacks share: the registry, and what an attacker has.

An attack is a generator of datagrams, mostly an endless one: who runs it paces it and ends it.
"""

import os
import random
import struct
from dataclasses import dataclass, field

from checkvalve_peer import keys
from checkvalve_peer.datagram import ANNOUNCE, DATA, HASHES, Opener, header
from checkvalve_peer.errors import Refused
from checkvalve_peer.sender import Manifest, Sender, random64

ATTACKS = {}
POSITIONS = {
    "none": "no key; sees the wire if datagrams were recorded",
    "link": "has the link key, or the link is insecure",
    "signer": "has also a trusted signing key, which is not that of the victim's channel",
}


def attack(position, spoils=False):
    """`spoils`: it puts wrong symbols in the place of a victim's, so that only sending that bundle again helps."""

    def register(function):
        function.position, function.spoils = position, spoils
        ATTACKS[function.__name__] = function
        return function

    return register


@dataclass
class Victim:
    """A bundle of somebody else, and the OTI of its data as the wire shows it."""

    bundle: int
    length: int = 1 << 20
    symbol: int = 1408
    most: int = 256


@dataclass
class Position:
    """What the attacker has."""

    link: keys.LinkKey = None  # None: an insecure link
    key: keys.SigningKey = None
    victims: list = field(default_factory=list)
    channel: str = "default"  # the victim's
    sequence: int = 2  # the next of that channel
    recorded: list = field(default_factory=list)
    count: int = 0  # of objects, where an attack has a number of them; 0: its own
    rng: random.Random = field(default_factory=random.Random)
    stranger: keys.SigningKey = field(default_factory=keys.SigningKey.random)

    def sender(self, key=None, **options):
        return Sender(self.link, key or self.key or self.stranger, **options)

    @property
    def key_byte(self):
        """Anybody reads this one off the wire."""
        return self.link.id[0] if self.link else 0

    @property
    def trailer(self):
        return 16 if self.link else 4

    def noise(self, n):
        return self.rng.randbytes(n)

    def forge(self, kind, payload, session=None, counter=None, **fields):
        """A datagram of somebody without the link key: the tag is random."""
        session = random64() if session is None else session
        counter = random64() >> 20 if counter is None else counter
        fields.setdefault("key", self.key_byte)
        mark = 0 if self.link else 0x80
        return header(kind | mark, session, counter, **fields) + payload + os.urandom(self.trailer)

    def place(self, victim=None):
        """Fields of a datagram that asks for a place in a victim's data."""
        v = victim or self.rng.choice(self.victims)
        return dict(bundle=v.bundle, length=v.length, symbol=v.symbol, most=v.most)

    def need_recorded(self):
        """The recorded datagrams; without any, those of a bundle of a stranger, so that something is sent at least."""
        if not self.recorded:
            s = self.sender(self.stranger)
            self.recorded = [s.beacon("default"), *s.send_bundle("default", 1, "recorded", os.urandom(50_000))]
            self.recorded += [s.beacon("default") for _ in range(3)]
        return self.recorded

    def opened(self):
        """The recorded datagrams as somebody with the link key reads them."""
        opener = Opener(self.link)
        for data in self.need_recorded():
            try:
                yield opener.open(data)
            except Refused:
                pass

    def bundle_under(self, victim, signer, **options):
        """A manifest of `signer` that claims a victim's bundle id."""
        return Manifest(
            signer, self.channel, self.sequence, "theirs", self.noise(5000), bundle=victim.bundle, **options
        )


def send_manifest(s, m, announce=True, hashes=True, bundle=None):
    """The symbols of signed objects, whoever signed them."""
    bundle = m.bundle if bundle is None else bundle
    if announce:
        yield from s.object(ANNOUNCE, bundle, m.announce)
    if hashes:
        yield from s.object(HASHES, bundle, m.hashes)


def send_data(s, m):
    if m.data.length:
        yield from s.symbols(DATA, m.bundle, m.data.read, m.data.length, m.symbol, m.most)


def send_whole(s, m):
    yield from send_manifest(s, m, hashes=False)
    yield from send_data(s, m)
    yield from send_manifest(s, m, announce=False)


def interleave(*generators):
    """One of each in turn, until all have ended."""
    left = list(generators)
    while left:
        for g in list(left):
            try:
                yield next(g)
            except StopIteration:
                left.remove(g)


def write_recording(path, datagrams):
    with open(path, "wb") as file:
        for d in datagrams:
            file.write(struct.pack(">I", len(d)) + d)


def read_recording(path):
    with open(path, "rb") as file:
        while size := file.read(4):
            yield file.read(struct.unpack(">I", size)[0])
