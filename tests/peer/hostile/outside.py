"""Attacks of somebody who has no key at all, but can put datagrams on the wire."""

from checkvalve_peer.datagram import BEACON, DATA, INSECURE, Sealer, header

from .base import attack, random64

EXTREMES = [0, 1, 0x7F, 0x80, 0xFF, (1 << 16) - 1, (1 << 24) - 1, (1 << 32) - 1, 1 << 44, (1 << 44) + 1, (1 << 63), (1 << 64) - 1]


@attack("none")
def noise(p):
    """Random bytes of random lengths: crash the parser, fill logs."""
    while True:
        yield p.noise(p.rng.choice([0, 1, 3, 4, 47, 48, 51, 52, 63, 64, 65, 1000, 9300]))


@attack("none")
def short_datagrams(p):
    """Every length from 0 to 130 of a right header and zeros, in both modes: read beyond the end."""
    while True:
        for n in range(131):
            for mark in (0, INSECURE):
                yield (header(DATA | mark, 1, 1, 1, 0, 0, 64, 64, 1, p.key_byte) + bytes(100))[:n]


@attack("none")
def giant_datagrams(p):
    """As long as UDP goes, with headers that look right: overrun the receive buffer, get fragments to be reassembled."""
    while True:
        for n in (9216 + 64, 9217 + 64, 16_384, 65_507):
            yield p.forge(BEACON, p.noise(n - 48 - p.trailer))
            yield p.forge(DATA, p.noise(n - 48 - p.trailer), bundle=random64(), length=1 << 30, symbol=9152, most=1024)


@attack("none")
def version_and_kind_sweep(p):
    """Every version and every kind: reach code of reserved kinds, or of version 1, without a tag."""
    while True:
        for version in (0, 1, 2, 3, 255):
            for kind in range(256):
                yield header(kind, 1, kind, 1, 0, 0, 64, 64, 1, p.key_byte, version=version) + p.noise(64 + p.trailer)


@attack("none")
def header_extremes(p):
    """Every field of the header at its extremes: overflow or division by zero before the tag is checked."""
    while True:
        pick = lambda: p.rng.choice(EXTREMES)
        symbol = p.rng.choice([0, 1, 63, 64, 65, 9152, 9216, 65535])
        most = p.rng.choice([0, 1, 2, 1024, 1025, 65535])
        size = symbol if symbol <= 9152 else 64
        fields = dict(bundle=pick(), sbn=pick(), esi=pick(), length=pick(), symbol=symbol, most=most)
        yield p.forge(p.rng.randrange(5), p.noise(size), pick(), pick(), **fields)


@attack("none")
def forged_unknown_sessions(p):
    """A random session for each datagram: derive a key for each, and shut honest new sessions out of that budget."""
    while True:
        yield p.forge(DATA, p.noise(64), bundle=random64(), length=1 << 20, symbol=64, most=256)


@attack("none")
def forged_few_sessions(p):
    """A few dozen unknown sessions in turn, as busy as a real one: look like sessions that deserve to be kept."""
    sessions = [random64() for _ in range(48)]
    while True:
        for session in sessions:
            yield p.forge(BEACON, p.noise(200), session)


@attack("none")
def forged_known_session(p):
    """Forged tags under sessions seen on the wire: get a known session blamed, locked or evicted."""
    sessions = list({int.from_bytes(d[4:12], "big") for d in p.need_recorded()})
    while True:
        for session in sessions:
            fields = p.place()
            yield p.forge(DATA, p.noise(fields["symbol"]), session, sbn=0, esi=p.rng.randrange(256), **fields)


@attack("none")
def forged_counters_known_session(p):
    """Forged tags with extreme counters under a known session: move counters or loss figures before the tag is checked."""
    sessions = list({int.from_bytes(d[4:12], "big") for d in p.need_recorded()})
    while True:
        for counter in (0, 1, (1 << 53) - 1, 1 << 63, (1 << 64) - 1):
            yield p.forge(BEACON, p.noise(64), p.rng.choice(sessions), counter)


@attack("none")
def other_mode(p):
    """Right datagrams of an insecure link on a sealed one, and sealed ones (of another key) on an insecure one."""
    from checkvalve_peer.keys import LinkKey

    other = Sealer(None if p.link else LinkKey(p.noise(32)), random64())
    counter = 0
    while True:
        fields = p.place()
        yield other.seal(DATA, counter, p.noise(fields["symbol"]), sbn=0, esi=counter % 256, **fields)
        yield other.seal(BEACON, counter + 1, p.noise(100))
        counter += 2


@attack("none")
def other_link_key(p):
    """Well sealed under another link key, with this link's byte in the header: as costly as can be before it is dropped."""
    from checkvalve_peer.keys import LinkKey

    other = Sealer(LinkKey(p.noise(32)), random64())
    counter = 0
    while True:
        yield other.seal(DATA, counter, bytes(9152), key=p.key_byte, bundle=1 << 24, length=1 << 40, symbol=9152, most=1024)
        counter += 1
