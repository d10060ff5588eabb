"""Attacks with beacons: mislead about what was sent, by whom, and how much was lost."""

from checkvalve_peer.beacon import Channel, OnWire, Recent
from checkvalve_peer.datagram import BEACON
from checkvalve_peer.encoding import Raw
from checkvalve_peer.objects import MOST_SEQUENCE as MOST

from .base import attack, interleave, random64
from .bundles import ESCAPES

NUMBERS = [0, 1, 2, 250, 251, 65_535, (1 << 32) - 1, 1 << 32, MOST, MOST + 1, (1 << 63) - 1, 1 << 63, (1 << 64) - 1]


def junk_channels(p, signer):
    """Beacons of ever new channels; `signer` None is nobody."""
    s, n = p.sender(), 0
    while True:
        n += 1
        name = p.rng.choice([f"junk-{n}", f"j{random64():x}", ESCAPES.decode("latin-1")[:20], "", "/", "..", "-x", "a" * 33])
        tag = (signer or p.stranger).tag
        recent = [Recent(i, random64() & ~0xFFFFFF | tag, 1 << 40, 1, b"junk") for i in range(9, 0, -1)]
        yield s.beacon(Channel(name, 32_767, 9, recent), key=signer)


@attack("link")
def junk_channels_unsigned(p):
    """Junk channels in beacons that nobody signed."""
    return junk_channels(p, None)


@attack("link")
def junk_channels_self_signed(p):
    """Junk channels in beacons signed by a key that nobody trusts."""
    return junk_channels(p, p.stranger)


@attack("signer")
def junk_channels_signed(p):
    """Junk channels in beacons of a trusted key: take the room for channels, and the operator's attention."""
    return junk_channels(p, p.key)


@attack("link")
def garbage_beacons(p):
    """Beacons of every length from 0 to 9,216, of random bytes and with a right magic."""
    s = p.sender()
    while True:
        for n in [*range(0, 200), 1000, 9215, 9216]:
            yield s.next(BEACON, (b"CVS2" + p.noise(n))[:n] if n % 2 else p.noise(n))


@attack("link")
def self_signed_beacons(p):
    """Flawless beacons of a key that nobody trusts, with victims on the wire: a sender that does not exist."""
    s = p.sender(p.stranger)
    while True:
        v = p.rng.choice(p.victims)
        wire = OnWire(v.bundle & ~0xFFFFFF | p.stranger.tag, p.channel, p.sequence)
        yield s.beacon(Channel(p.channel, 0, MOST), wire)


@attack("signer")
def beacon_extremes(p):
    """Extreme numbers in every field: first those that leave the order of beacons alone, then those too, at the end of all."""
    s, own, rounds = p.sender(), p.key.bundle_id(), 0
    while True:
        for n in NUMBERS:
            for field in ("clock", "rate", "datagrams"):
                yield s.beacon(**{field: n})
            yield s.beacon(clock=n, rate=n, datagrams=n)
            yield s.beacon(None, OnWire(own, "own", n or 1, n & 0xFFFFFFFF, 0, n & 0xFFFFFFFF, 0xFFFFFFFF))
            yield s.beacon(Channel("own", -32_768, n, [Recent(n or 1, own, n, 3, b"")]))
            if rounds > 5:
                for field in ("epoch_id", "counter", "session", "epoch"):
                    yield s.beacon(**{field: n})
        rounds += 1


@attack("signer")
def beacon_malformed(p):
    """Rightly signed beacons that break each rule: marks, states, orders, lengths, trailing bytes."""
    s, own = p.sender(), p.key.bundle_id()
    recent = lambda *numbers, **k: [Recent(n, own, **k) for n in numbers]
    while True:
        for channel in (
            Raw(b"\x02"), Raw(b"\xff" * 50), Channel("own", 0, 5, recent(6)), Channel("own", 0, 5, recent(5, 5)),
            Channel("own", 0, 5, recent(1, 2)), Channel("own", 0, 5, recent(0)), Channel("own", 0, 5, recent(3, state=4)),
            Channel("own", 0, 5, recent(3, name=b"n" * 256)), Channel("own", 0, 5, Raw(b"\xfd" + b"\xff" * 8)),
            Channel(Raw(b"\xfd" + b"\xff" * 8)), Channel("own", Raw(b"\xfc\0\0\0\0"), 5),
        ):
            yield s.next(BEACON, s_signed(s, channel=channel))
        for extensions in ([(1, b"")], [(2, b""), (0, b"")], [(2 * i, b"") for i in range(33)], Raw(b"\0\0")):
            yield s.next(BEACON, s_signed(s, extensions=extensions))


def s_signed(s, channel=None, **overrides):
    """A signed beacon that is not made to fit."""
    from checkvalve_peer.objects import sign

    return sign("beacon", s.beacon_fields(channel, **overrides).encode(), s.key)


@attack("signer")
def beacon_of_victims(p):
    """A trusted key's beacons about a victim's bundles: withdrawn, transmitted, or another sequence."""
    s = p.sender()
    while True:
        for v in p.victims:
            for state in range(4):
                yield s.beacon(Channel(p.channel, 0, p.sequence, [Recent(p.sequence, v.bundle, 1, state, b"x")]))
            yield s.beacon(None, OnWire(v.bundle, p.channel, p.sequence))


@attack("signer")
def beacon_in_victims_channel(p):
    """Own bundles told of in another's channel: make sequences missing that nobody sent, one by one or 10,000 at once."""
    s, newest = p.sender(), p.sequence
    while True:
        newest += p.rng.choice([1, 10_000])
        recent = [Recent(newest - i, p.key.bundle_id(), 1 << 44, 2, b"never") for i in range(64)]
        yield s.beacon(Channel(p.channel, 32_767, newest, [r for r in recent if r.sequence > 0]))


@attack("signer")
def beacon_sequence_jump(p):
    """A newest sequence of 2^53 - 1 in another's channel and in new ones."""
    s = p.sender()
    while True:
        for name in (p.channel, "own", f"new-{p.rng.randrange(1000)}"):
            yield s.beacon(Channel(name, 0, MOST, [Recent(MOST, p.key.bundle_id(), 1, 2, b"last")]))
            yield s.beacon(None, OnWire(p.key.bundle_id(), name, MOST))


@attack("signer")
def beacon_epochs(p):
    """Epochs up to the highest, then back; other ids of one epoch: lasting alarms, or a state that no later one replaces."""
    s = p.sender()
    while True:
        for epoch in (1, 2, 1 << 32, MOST - 1, MOST, 1):
            yield s.beacon(epoch=epoch)
            yield s.beacon(epoch=epoch, epoch_id=random64())


@attack("signer")
def beacon_sessions(p):
    """Two senders of one key at once, and ever new session numbers: 16 sessions kept, alarms, a journal entry for each."""
    a, b = p.sender(session_number=5), p.sender(session_number=5)
    b.epoch_id = a.epoch_id
    number = 6
    while True:
        yield from interleave(iter([a.beacon(), a.beacon()]), iter([b.beacon(), b.beacon()]))
        c = p.sender(epoch_id=a.epoch_id, session_number=number)
        yield c.beacon()
        yield a.beacon(counter=MOST)
        number = number + 1 if number % 40 else MOST


@attack("signer")
def beacon_states_flap(p):
    """Own bundles go from queued to withdrawn and back with each beacon; on the wire, then not; a hundred at once."""
    s, bundles = p.sender(), [p.key.bundle_id() for _ in range(100)]
    while True:
        for state in (0, 3, 1, 2, 3, 0):
            recent = [Recent(100 - i, b, i, state, b"flap-%d" % i) for i, b in enumerate(bundles)]
            yield s.beacon(Channel("flap", 0, 100, recent), OnWire(bundles[0], "flap", 100))


@attack("signer")
def beacon_one_bundle_many_sequences(p):
    """One bundle id at many sequences and in many channels, and one sequence with ever other bundles."""
    s, own, n = p.sender(), p.key.bundle_id(), 0
    while True:
        n += 1
        yield s.beacon(Channel(f"many-{n % 30}", 0, 50, [Recent(i, own, 1, i % 4, b"m") for i in range(50, 0, -1)]))
        yield s.beacon(Channel("one", 0, 1, [Recent(1, p.key.bundle_id(), 1, 2, b"m")]))


@attack("signer")
def beacon_loss(p):
    """Datagrams counts that jump to 2^64 - 1, back to 0 and on: losses of nothing or of everything."""
    s = p.sender()
    while True:
        for n in (0, 1 << 63, (1 << 64) - 1, 5, 0, 1 << 40):
            yield s.beacon(datagrams=n, rate=p.rng.choice(NUMBERS), clock=p.rng.choice(NUMBERS))


@attack("signer")
def beacon_of_another_session(p):
    """Beacons of its own key under the victim's session, with wild counts: hide its losses, or make some up."""
    sessions = {datagram.session for datagram in p.opened()}
    senders = [p.sender(session=session, session_number=n + 1) for n, session in enumerate(sessions)]
    while True:
        for n in (1 << 60, 0, 5_000, (1 << 64) - 1):
            yield p.rng.choice(senders).beacon(datagrams=n, rate=p.rng.choice(NUMBERS))


@attack("signer")
def beacon_names(p):
    """Names of bundles in beacons with terminal escapes, newlines and every byte."""
    s = p.sender()
    names = [ESCAPES, bytes(range(1, 256)), b"\xff" * 255, b"\n" * 255, b"/etc/passwd", b"..", b"\0"]
    while True:
        recent = [Recent(90 - i, p.key.bundle_id(), 1, 1, name) for i, name in enumerate(names)]
        yield s.beacon(Channel("names", 0, 90, recent))
