"""Attacks with symbols, by somebody with the link key: fill memory, burn time, spoil what others send."""

from checkvalve_peer.datagram import ANNOUNCE, BEACON, DATA, HASHES, Partition

from .base import Victim, attack, random64

SYMBOL_KINDS = (ANNOUNCE, DATA, HASHES)


def symbol(p, s, kind, **fields):
    return s.next(kind, p.noise(fields["symbol"]), **fields)


@attack("link")
def counter_extremes(p):
    """Counters 0 and 2^64 - 1 alternating in one session: overflow loss figures, or a window over counters."""
    s = p.sender()
    while True:
        for counter in (0, (1 << 64) - 1):
            s.counter = counter
            yield symbol(p, s, DATA, sbn=0, esi=0, **p.place(Victim(random64(), 1 << 16)))


@attack("link", spoils=True)
def counter_random(p):
    """Random counters in one session."""
    s = p.sender()
    while True:
        s.counter = random64()
        yield symbol(p, s, DATA, sbn=0, esi=p.rng.randrange(46), **p.place())


@attack("link", spoils=True)
def session_per_datagram(p):
    """A session for each datagram, rightly sealed: fill the table of sessions with ones that are proven."""
    while True:
        yield symbol(p, p.sender(), DATA, sbn=0, esi=0, **p.place())


@attack("link")
def many_sessions(p):
    """A thousand sessions, rightly sealed, in turn: push the honest sender's out of the table."""
    senders = [p.sender() for _ in range(p.count or 1000)]
    while True:
        for s in senders:
            yield symbol(p, s, DATA, sbn=0, esi=0, bundle=random64(), length=1 << 16, symbol=1408, most=256)


@attack("link", spoils=True)
def wrong_symbol_per_block(p):
    """One wrong symbol for each block of a victim's data, before the right ones: make each block decode wrongly."""
    s = p.sender()
    while True:
        for v in p.victims:
            for sbn in range(Partition(v.length, v.symbol, v.most).blocks):
                yield symbol(p, s, DATA, sbn=sbn, esi=0, **p.place(v))


@attack("link", spoils=True)
def wrong_repair_symbols(p):
    """Wrong repair symbols for a victim's blocks, with ESIs that the sender may use next."""
    s = p.sender()
    while True:
        for v in p.victims:
            blocks = Partition(v.length, v.symbol, v.most).blocks
            for esi in [*range(v.most, v.most + 40), 0xFFFFFF]:
                yield symbol(p, s, DATA, sbn=p.rng.randrange(blocks), esi=esi, **p.place(v))


@attack("link", spoils=True)
def wrong_symbols_all(p):
    """Every source symbol of a victim's data, wrong: complete its blocks with rubbish, over and over."""
    s = p.sender()
    while True:
        for v in p.victims:
            yield from s.symbols(DATA, v.bundle, lambda start, n: p.noise(n), v.length, v.symbol, v.most)


@attack("link", spoils=True)
def two_versions_of_one_symbol(p):
    """The same place with ever other bytes."""
    s = p.sender()
    while True:
        yield symbol(p, s, DATA, sbn=0, esi=1, **p.place())


@attack("link")
def many_otis(p):
    """A victim's bundle id with many other OTIs, of all kinds: have the first one believed, or room taken for each."""
    s = p.sender()
    while True:
        for v in p.victims:
            t = 64 * p.rng.randrange(1, 144)
            place = dict(length=p.rng.randrange(1, 1 << p.rng.randrange(1, 45)), symbol=t, most=p.rng.randrange(64, 1025))
            yield symbol(p, s, p.rng.choice(SYMBOL_KINDS), bundle=v.bundle, sbn=0, esi=p.rng.randrange(1 << 24), **place)


def junk(p, count):
    s = p.sender()
    ids = [(random64(), p.rng.choice(SYMBOL_KINDS), p.rng.randrange(1, 1 << 26), p.rng.randrange(1, 144) * 64) for _ in range(count)]
    while True:
        for bundle, kind, length, t in ids:
            blocks = Partition(length, t, 256).blocks
            place = dict(sbn=p.rng.randrange(blocks), esi=p.rng.randrange(256), length=length, symbol=t, most=256)
            yield symbol(p, s, kind, bundle=bundle, **place)


@attack("link")
def junk_16(p):
    """16 objects of random ids, kinds and OTIs, for ever: hold the few places for what nobody knows."""
    return junk(p, 16)


@attack("link")
def junk_300(p):
    """The same with 300 objects."""
    return junk(p, 300)


@attack("link")
def junk_100000(p):
    """The same with 100,000 objects: files, tables, journal."""
    return junk(p, 100_000)


@attack("link")
def junk_of_victims_tag(p):
    """Objects of random ids that end in a victim's key tag: look like bundles of a trusted key."""
    s = p.sender()
    while True:
        bundle = p.rng.randrange(1 << 40) << 24 | p.rng.choice(p.victims).bundle & 0xFFFFFF
        yield symbol(p, s, p.rng.choice(SYMBOL_KINDS), bundle=bundle, sbn=0, esi=0, length=1 << 26, symbol=1408, most=256)


@attack("link")
def tiny_symbols(p):
    """T of 64, one symbol for each block of huge objects: state of a block for 64 bytes on the wire."""
    s, bundle, sbn = p.sender(), random64(), 0
    part = Partition(1 << 44, 64, 1024)
    while True:
        yield symbol(p, s, DATA, bundle=bundle, sbn=sbn % part.blocks, esi=0, length=1 << 44, symbol=64, most=1024)
        sbn += 7919


@attack("link")
def one_symbol_blocks(p):
    """B of 1: each symbol completes a block, at random places of a huge object (sparse files, maps of blocks)."""
    s, bundle = p.sender(), random64()
    length = 64 * ((1 << 32) - 1)
    while True:
        sbn = p.rng.randrange((1 << 32) - 1)
        yield symbol(p, s, DATA, bundle=bundle, sbn=sbn, esi=0, length=length, symbol=64, most=1)


@attack("link")
def most_blocks(p):
    """Ever new objects that claim 2^32 - 1 blocks: a bitmap of the blocks is half a gigabyte."""
    s = p.sender()
    while True:
        for kind in SYMBOL_KINDS:
            fields = dict(length=64 * ((1 << 32) - 1), symbol=64, most=1)
            yield symbol(p, s, kind, bundle=random64(), sbn=(1 << 32) - 2, esi=0, **fields)


@attack("link")
def esi_extremes(p):
    """ESIs around K and at 2^24 - 1, for blocks of 1, 2, 10 and 1,024 symbols, enough of them to decode."""
    s = p.sender()
    while True:
        for k in (1, 2, 10, 1024):
            bundle = random64()
            for i in range(k + 2):
                fields = dict(length=64 * k, symbol=64, most=1024, sbn=0)
                yield symbol(p, s, ANNOUNCE, bundle=bundle, esi=0xFFFFFF - i, **fields)
                yield symbol(p, s, DATA, bundle=bundle, esi=k + i, **fields)


@attack("link")
def decoder_burner(p):
    """Blocks of 1,024 tiny symbols, completed by random repair symbols only: a whole decoding for each 64 KiB."""
    s = p.sender()
    while True:
        bundle = random64()
        for i in range(1026):
            yield symbol(p, s, ANNOUNCE, bundle=bundle, sbn=0, esi=0x800000 + i, length=65_536, symbol=64, most=1024)


@attack("link")
def decoder_burner_redundant(p):
    """One symbol short of decoding, then linearly dependent ones: the same repair symbol under ever new attempts."""
    s = p.sender()
    while True:
        bundle = random64()
        for i in range(1023):
            yield symbol(p, s, HASHES, bundle=bundle, sbn=0, esi=1024 + i, length=65_536, symbol=64, most=1024)
        for _ in range(500):
            yield symbol(p, s, HASHES, bundle=bundle, sbn=0, esi=1024, length=65_536, symbol=64, most=1024)


@attack("link")
def almost_complete_blocks(p):
    """Blocks of the largest symbols that lack one each: 9 MB held for each block, of many bundles."""
    s = p.sender()
    while True:
        bundle = random64()
        for sbn in range(4):
            for esi in range(1023):
                fields = dict(length=9152 * 1024 * 4, symbol=9152, most=1024)
                yield symbol(p, s, DATA, bundle=bundle, sbn=sbn, esi=esi, **fields)


@attack("link")
def objects_too_long(p):
    """Announces and hashes of more than 64 MiB, up to 2^44 bytes: buffers for what must be refused anyway."""
    s = p.sender()
    while True:
        for length in ((1 << 26) + 1, 1 << 32, 1 << 44):
            for kind in (ANNOUNCE, HASHES):
                for v in p.victims:
                    yield symbol(p, s, kind, bundle=v.bundle, sbn=0, esi=0, length=length, symbol=9152, most=1024)


@attack("link")
def reserved_kinds(p):
    """Kinds 0 and 5 to 127 and F = 0, rightly sealed."""
    s = p.sender()
    while True:
        for kind in [0, *range(5, 128)]:
            yield symbol(p, s, kind, sbn=0, esi=0, **p.place())
        yield symbol(p, s, DATA, bundle=random64(), sbn=0, esi=0, length=0, symbol=64, most=1)


@attack("link")
def impossible_places(p):
    """Places that cannot be, rightly sealed: F, T, B, SBN beyond, payloads of another length, beacons with a place."""
    s = p.sender()
    while True:
        for length, t, most, sbn in (
            ((1 << 64) - 1, 64, 1024, 0), ((1 << 44) + 1, 1408, 256, 0), (1 << 44, 64, 1, 0), (100, 0, 1, 0),
            (100, 65, 1, 0), (100, 9216, 1, 0), (100, 64, 0, 0), (100, 64, 1025, 0), (64, 64, 1, 1),
            (1 << 20, 1408, 256, 3), (1, 64, 1, (1 << 32) - 1),
        ):
            yield symbol(p, s, DATA, bundle=random64(), sbn=sbn, esi=0, length=length, symbol=t, most=most)
        yield s.next(DATA, p.noise(63), bundle=1, length=64, symbol=64, most=1)
        yield s.next(BEACON, p.noise(64), bundle=1)
        yield s.next(BEACON, p.noise(9217))


@attack("link")
def bundle_ids_at_the_edges(p):
    """Bundle ids of 0, of a zero tag, of all ones."""
    s = p.sender()
    while True:
        for bundle in (0, 1, 0xFFFFFF, 1 << 24, (1 << 64) - 1):
            for kind in SYMBOL_KINDS:
                yield symbol(p, s, kind, bundle=bundle, sbn=0, esi=0, length=3000, symbol=1408, most=256)
