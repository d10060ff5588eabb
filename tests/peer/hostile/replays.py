"""Attacks with recorded datagrams (`--recorded`), by somebody without keys; the last ones by somebody with the link key."""

import zlib

from checkvalve_peer.datagram import BEACON, DATA

from .base import attack


def kind(d):
    return d[3] & 127


@attack("none")
def replay(p):
    """All recorded datagrams again and again: count as news, as loss, as a second sender; reopen what is over."""
    while True:
        yield from p.need_recorded()


@attack("none")
def replay_shuffled(p):
    """The same in random order, each up to 50 times."""
    while True:
        d = p.rng.choice(p.need_recorded())
        for _ in range(p.rng.randrange(1, 50)):
            yield d


@attack("none")
def replay_beacons(p):
    """Recorded beacons, the oldest last: turn the receiver's clock, its loss and the sequences back."""
    beacons = [d for d in p.need_recorded() if kind(d) == BEACON]
    while beacons:
        yield from reversed(beacons)


@attack("none")
def replay_data_only(p):
    """Data of bundles that are over, without announce or beacon: fill the room for bundles that nobody knows."""
    data = [d for d in p.need_recorded() if kind(d) == DATA]
    while data:
        yield from data


@attack("none")
def replay_flipped(p):
    """Recorded datagrams with one bit flipped. On an insecure link the CRC is made right again."""
    while True:
        for d in p.need_recorded():
            d = bytearray(d)
            at = p.rng.randrange(len(d) * 8)
            d[at // 8] ^= 1 << at % 8
            if not p.link and len(d) > 52:
                d[-4:] = zlib.crc32(d[:-4]).to_bytes(4, "big")
            yield bytes(d)


@attack("none")
def replay_truncated(p):
    """Recorded datagrams cut off anywhere."""
    while True:
        for d in p.need_recorded():
            yield d[: p.rng.randrange(len(d))]


@attack("none")
def replay_extended(p):
    """Recorded datagrams with something behind them, or twice in one."""
    while True:
        for d in p.need_recorded():
            yield d + p.rng.choice([b"\0", p.noise(16), d])


@attack("none")
def replay_crossed(p):
    """The header of one, the payload of another: move a symbol to another place."""
    while True:
        a, b = p.rng.choice(p.need_recorded()), p.rng.choice(p.need_recorded())
        d = a[:48] + b[48:]
        yield d if p.link else d[:-4] + zlib.crc32(d[:-4]).to_bytes(4, "big")


@attack("link")
def beacons_sent_on(p):
    """Recorded beacons, rightly signed, sealed anew in a session of one's own: pass for their signer."""
    beacons = [d for d in p.opened() if d.kind == BEACON]
    s = p.sender()
    while beacons:
        for d in beacons:
            yield s.next(BEACON, d.payload)


@attack("link")
def beacons_sealed_into_their_session(p):
    """Recorded beacons sealed anew under their own session id with random counters: so every link-key holder can."""
    from checkvalve_peer.datagram import Sealer

    beacons = [d for d in p.opened() if d.kind == BEACON]
    while beacons:
        for d in beacons:
            yield Sealer(p.link, d.session).seal(BEACON, p.rng.randrange(1 << 64), d.payload)


@attack("link", spoils=True)
def counters_of_their_session(p):
    """Sealed datagrams under a recorded session with counters far ahead: make the honest sender's look lost or late."""
    from checkvalve_peer.datagram import Sealer

    sessions = list({d.session for d in p.opened()})
    while sessions:
        for session in sessions:
            sealer = Sealer(p.link, session)
            for counter in (1 << 32, (1 << 53) - 1, 1 << 63, (1 << 64) - 2, (1 << 64) - 1, 0):
                fields = p.place()
                yield sealer.seal(DATA, counter, p.noise(fields["symbol"]), sbn=0, esi=7, **fields)


@attack("link")
def recorded_symbols_changed(p):
    """Each recorded symbol first with one byte wrong, then right, at the same place, session and counter."""
    from checkvalve_peer.datagram import Sealer

    sealers = {}
    while True:
        for d in p.opened():
            if d.kind == BEACON:
                continue
            sealer = sealers.setdefault(d.session, Sealer(p.link, d.session))
            place = dict(bundle=d.bundle, sbn=d.sbn, esi=d.esi, length=d.length, symbol=d.symbol, most=d.most)
            yield sealer.seal(d.kind, d.counter, bytes([d.payload[0] ^ 1]) + d.payload[1:], **place)
            yield sealer.seal(d.kind, d.counter, d.payload, **place)
