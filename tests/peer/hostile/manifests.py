"""Attacks with announces and hashes that must change nothing: garbage, unsigned, or signed by who has no say."""

from checkvalve_peer.datagram import ANNOUNCE, HASHES
from checkvalve_peer.encoding import uint
from checkvalve_peer.objects import FILE, Entry, Hashes, digest, sign
from checkvalve_peer.sender import Manifest

from .base import attack, random64, send_manifest, send_whole


@attack("link")
def garbage_announce(p):
    """Complete announces of random bytes under a victim's id: have the bundle condemned for them."""
    s = p.sender()
    while True:
        for v in p.victims:
            yield from s.object(ANNOUNCE, v.bundle, p.noise(p.rng.randrange(1, 5000)))


@attack("link")
def garbage_hashes(p):
    """The same with hashes."""
    s = p.sender()
    while True:
        for v in p.victims:
            yield from s.object(HASHES, v.bundle, b"CVS2" + p.noise(p.rng.randrange(1, 5000)))


@attack("link")
def garbage_of_one_oti(p):
    """Complete wrong announces and hashes of one length, over and over: the place of the right ones, if that is known."""
    s = p.sender()
    while True:
        for v in p.victims:
            for size in (150, 200, 250):
                yield from s.object(ANNOUNCE, v.bundle, p.noise(size))
                yield from s.object(HASHES, v.bundle, p.noise(size))


@attack("link")
def unsigned_manifest(p):
    """Well-formed announce and hashes of a victim's bundle that nobody signed."""
    s = p.sender()
    while True:
        for v in p.victims:
            m = p.bundle_under(v, p.stranger)
            m.announce = sign("announce", m.fields.encode(), None)
            m.hashes = sign("hashes", m.hash_fields.encode(), None)
            yield from send_manifest(s, m)


@attack("link")
def stranger_manifest(p):
    """Well-formed announce and hashes of a victim's bundle, signed by a key that nobody trusts."""
    s = p.sender()
    while True:
        for v in p.victims:
            yield from send_manifest(s, p.bundle_under(v, p.stranger))


@attack("link")
def stranger_withdrawal(p):
    """A victim's bundle withdrawn by a key that nobody trusts, with terminal escapes for a reason."""
    s = p.sender()
    while True:
        for v in p.victims:
            h = Hashes(v.bundle, p.noise(32), reason="\x1b]0;gone\x07\x1b[2J\r\n{\"ok\":true}")
            yield from s.object(HASHES, v.bundle, sign("hashes", h.encode(), p.stranger))


@attack("link")
def wrongly_signed_flood(p):
    """Ever new complete announces of random bundles, well-formed, with a wrong signature: a check and a log line for each."""
    s = p.sender()
    while True:
        m = Manifest(p.stranger, p.channel, p.rng.randrange(1, 1000), "flood", p.noise(100), bundle=random64())
        yield from s.object(ANNOUNCE, m.bundle, m.announce[:12] + p.noise(64) + m.announce[76:])


@attack("link")
def trusted_id_wrong_signature(p):
    """Announces that claim the id of a key seen in recorded manifests or beacons, with a wrong signature."""
    ids = [d.payload[4:12] for d in p.opened() if d.payload[:4] == b"CVS2" and d.esi == 0] or [p.noise(8)]
    s = p.sender()
    while True:
        for v in p.victims:
            m = p.bundle_under(v, p.stranger)
            yield from s.object(ANNOUNCE, v.bundle, b"CVS2" + p.rng.choice(ids) + p.noise(64) + m.announce[76:])


@attack("link")
def stranger_bundles(p):
    """Whole, flawless bundles of keys that nobody trusts, in ever new channels: kept until the key is trusted?"""
    s, n = p.sender(), 0
    while True:
        n += 1
        m = Manifest(p.stranger, f"stranger-{n}", 1, f"s{n}", p.noise(20_000))
        yield from send_whole(s, m)


@attack("link")
def largest_garbage_announce(p):
    """Announces of exactly 64 MiB under a victim's id: the largest buffer, then one hash over all of it."""
    s = p.sender()
    while True:
        for v in p.victims:
            block = p.noise(1 << 20)
            read = lambda start, n: (block * 2)[start % (1 << 20) :][:n].ljust(n, b"x")
            yield from s.symbols(ANNOUNCE, v.bundle, read, 1 << 26, 8896, 1024)


@attack("link")
def one_object_of_every_length(p):
    """Announce and hashes of 1 to 200 bytes: each edge of the container."""
    s = p.sender()
    while True:
        for n in range(1, 201):
            for v in p.victims:
                yield from s.object(ANNOUNCE, v.bundle, (b"CVS2" + bytes(200))[:n], symbol=64)
                yield from s.object(HASHES, v.bundle, (b"CVS2" + p.noise(200))[:n], symbol=64)


def foreign(p, role, payload):
    return sign(role, payload, p.key)


@attack("signer")
def foreign_announce(p):
    """A victim's bundle announced by another trusted key: take it over, or have it refused."""
    s = p.sender()
    while True:
        for v in p.victims:
            yield from send_manifest(s, p.bundle_under(v, p.key), hashes=False)


@attack("signer")
def foreign_hashes(p):
    """Hashes for a victim's bundle by another trusted key: condemn right content."""
    s = p.sender()
    while True:
        for v in p.victims:
            yield from send_manifest(s, p.bundle_under(v, p.key), announce=False)


@attack("signer")
def foreign_withdrawal(p):
    """A victim's bundle withdrawn by another trusted key."""
    announces = {d.bundle: d.payload[: d.length] for d in p.opened() if d.kind == ANNOUNCE and d.length <= d.symbol}
    s = p.sender()
    while True:
        for v in p.victims:
            right = digest(announces[v.bundle]) if v.bundle in announces else p.noise(32)
            h = Hashes(v.bundle, right, reason="withdrawn by another")
            yield from s.object(HASHES, v.bundle, foreign(p, "hashes", h.encode()))


@attack("signer")
def foreign_broken(p):
    """Announces of a victim's bundle by another trusted key that break rules: refused for good, or discarded?"""
    s = p.sender()
    broken = [{"sequence": 0}, {"entries": []}, {"channel": "/"}, {"symbol": 65}, {"extensions": [(1, b"")]}]
    while True:
        for v in p.victims:
            for fields in broken:
                yield from send_manifest(s, p.bundle_under(v, p.key, announce=fields), hashes=False)


@attack("signer")
def own_id_under_victims(p):
    """A flawless announce of one's own bundle, sent under a victim's id in the header, and the other way round."""
    s = p.sender()
    while True:
        for v in p.victims:
            m = Manifest(p.key, p.channel, p.sequence, "own", p.noise(100))
            yield from send_manifest(s, m, bundle=v.bundle)
            yield from send_manifest(s, p.bundle_under(v, p.key), bundle=m.bundle)


@attack("signer")
def undecodable_rightly_signed(p):
    """Payloads that end before bundle or channel, rightly signed, under a victim's id and under one's own."""
    s = p.sender()
    while True:
        for v in p.victims:
            own = p.key.bundle_id()
            payloads = [b"", b"\xfd\0", uint(v.bundle), uint(own), uint(own) + b"\xfc\xff\xff\xff\xff", uint(own) + b"\x02\xff\xfe"]
            for payload in payloads:
                for bundle in (v.bundle, own):
                    yield from s.object(ANNOUNCE, bundle, foreign(p, "announce", payload))
                    yield from s.object(HASHES, bundle, foreign(p, "hashes", payload))


@attack("signer")
def hashes_without_announce(p):
    """Hashes of ever new own bundles whose announce never comes, of 20,000 hashes each."""
    s = p.sender()
    while True:
        h = Hashes(p.key.bundle_id(), p.noise(32), [bytes(32)] * 20_000)
        yield from s.object(HASHES, h.bundle, foreign(p, "hashes", h.encode()))


@attack("signer")
def empty_files_million(p):
    """An announce of nearly as many empty files as may be (or `--count`): entries, inodes, state, listings."""
    s = p.sender()
    count = p.count or (1 << 20) - 1
    entries = [Entry(b"m", 1, mode=0o755)] + [Entry(b"m/%07d" % i, FILE) for i in range(count)]
    while True:
        m = Manifest(p.key, p.channel, p.sequence, "m", b"", announce={"entries": entries}, symbol=1408)
        empty = digest(b"")
        m.hashes = sign("hashes", Hashes(m.bundle, digest(m.announce), [empty] * count).encode(), p.key)
        yield from send_manifest(s, m)


@attack("signer")
def empty_files_in_many_bundles(p):
    """Whole bundles of 5,000 empty files each (or `--count`), one after the other: keep all threads that publish at work."""
    s, n, count = p.sender(), p.sequence, p.count or 5_000
    entries = [Entry(b"m", 1, mode=0o755)] + [Entry(b"m/%07d" % i, FILE) for i in range(count)]
    while True:
        m = Manifest(p.key, p.channel, n, "m", b"", announce={"entries": entries}, symbol=1408)
        m.hashes = sign("hashes", Hashes(m.bundle, digest(m.announce), [digest(b"")] * count).encode(), p.key)
        yield from send_manifest(s, m)
        n += 1


@attack("signer")
def two_million_bytes_of_paths(p):
    """Deep trees: 128 components in each path, 4,096 bytes long, as many as 16 MiB hold."""
    s = p.sender()
    path, entries = b"d", [Entry(b"d", 1, mode=0o755)]
    for _ in range(126):
        path += b"/" + b"n" * 30
        entries.append(Entry(path, 1, mode=0o755))
    entries += [Entry(path + b"/%06d" % i, FILE) for i in range(p.count or 4000)]
    while True:
        m = Manifest(p.key, p.channel, p.sequence, "d", b"", announce={"entries": entries})
        yield from send_manifest(s, m, hashes=False)
