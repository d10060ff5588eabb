"""Attacks of a trusted signer with bundles of its own: rightly signed, and meant to mislead, fill or take places."""

from checkvalve_peer.datagram import ANNOUNCE, DATA, HASHES
from checkvalve_peer.encoding import Raw
from checkvalve_peer.objects import DIRECTORY, FILE, SYMLINK, Entry, Hashes, digest, sign
from checkvalve_peer.sender import Manifest

from .base import attack, send_data, send_manifest, send_whole

ESCAPES = b"\x1b]0;pwned\x07\x1b[2J\x1b[31m\r\n\x9b31m\xe2\x80\xae\xef\xbb\xbf<script>\"'`$(id){}\\"


def own(p, name="own", content=b"x" * 100, channel=None, sequence=None, **options):
    return Manifest(p.key, channel or p.channel, sequence or p.sequence, name, content, **options)


@attack("signer")
def take_next_sequences(p):
    """The next sequences of another's channel, with announces alone: keep its bundles from being published."""
    s, n = p.sender(), 0
    while True:
        yield from send_manifest(s, own(p, sequence=p.sequence + n % 1000), hashes=False)
        n += 1


@attack("signer")
def take_next_sequences_complete(p):
    """The same with whole bundles: take a sequence that the other sender has yet to use."""
    s, n = p.sender(), 0
    while True:
        yield from send_whole(s, own(p, sequence=p.sequence + n % 20))
        n += 1


@attack("signer")
def many_claimants_of_one_sequence(p):
    """Ever new announces of one sequence: as many rivals as can be, each of which is held."""
    s = p.sender()
    while True:
        yield from send_manifest(s, own(p), hashes=False)


@attack("signer")
def sequence_jump(p):
    """Announces of 2^53 - 1 and thereabouts: everything below is missing, every later one is old."""
    s = p.sender()
    while True:
        for n in ((1 << 53) - 1, (1 << 53) - 2, 1 << 52, 1 << 32, p.sequence + 10_001):
            yield from send_manifest(s, own(p, sequence=n), hashes=False)


@attack("signer")
def sequence_creep(p):
    """Sequences in steps of just 10,000: make a million gaps, and a list of them, without a jump."""
    s, n = p.sender(), p.sequence
    while n < 1 << 53:
        yield from send_manifest(s, own(p, sequence=n), hashes=False)
        n += 10_000


@attack("signer")
def sequence_one_first(p):
    """Sequence 1 in ever new channels after a high one: move the baseline."""
    s, n = p.sender(), 0
    while True:
        n += 1
        for sequence in (9000, 1, 5000):
            yield from send_manifest(s, own(p, channel=f"base-{n % 60}", sequence=sequence), hashes=False)


@attack("signer")
def channel_flood(p):
    """Announces in ever new channels: take the room for channels that the config does not name."""
    s, n = p.sender(), 0
    while True:
        n += 1
        yield from send_manifest(s, own(p, channel=f"junk-{n}", sequence=1), hashes=False)


@attack("signer")
def huge_announced(p):
    """Ever new bundles of 2^44 bytes, with some symbols each: reserve disk for what never comes."""
    s = p.sender()
    while True:
        m = own(p, announce={"entries": [Entry(b"own", FILE, 1 << 44)]}, symbol=1408, most=1024)
        yield from send_manifest(s, m, hashes=False)
        for sbn in (0, 1, 12_000_000):
            fields = dict(bundle=m.bundle, length=1 << 44, symbol=1408, most=1024)
            yield s.next(DATA, p.noise(1408), sbn=sbn, esi=0, **fields)


@attack("signer")
def tiny_bundles_flood(p):
    """Ever new whole bundles of one byte in one channel: state, journal and directories of each."""
    s, n = p.sender(), p.sequence
    while True:
        yield from send_whole(s, own(p, name=f"b{n}", content=b"1", sequence=n))
        n += 1


@attack("signer")
def every_broken_rule(p):
    """Own bundles that break each rule, rightly signed: quarantine without end."""
    s = p.sender()
    d, long = Entry(b"own", DIRECTORY, mode=0o755), b"n" * 256
    entries = [
        [], [Entry(b"/etc/passwd")], [Entry(b"..")], [Entry(b"own/../x")], [d, Entry(b"own/..")], [d, Entry(b"own/" + long)],
        [d, Entry(b"own/a"), Entry(b"own/a")], [d, Entry(b"own/b"), Entry(b"own/a")], [d, Entry(b"own/x/y")],
        [d, Entry(b"own/l", SYMLINK, target=b"/etc"), Entry(b"own/l/x")], [d, Entry(b"own/l", SYMLINK, target=b"../..")],
        [Entry(b"own", mode=0o4755)], [Entry(b"own", nanos=10**9)], [Entry(b"own", FILE, (1 << 44) + 1)],
        [Entry(b"own", 3)], [d, Entry(b"own/\0")], [d, Entry(b"other")], Raw(b"\xfd" + b"\xff" * 8),
    ]
    fields = [{"entries": e} for e in entries] + [
        {"sequence": 0}, {"sequence": 1 << 53}, {"name": b"a/b"}, {"name": b"other"}, {"symbol": 65}, {"most": 0},
        {"extensions": [(1, b"")]}, {"extensions": [(4, b""), (4, b"")]}, {"extensions": [(2, bytes(4097))]},
        {"extensions": [(2 * i, b"") for i in range(33)]}, {"extensions": Raw(b"\x00\x00")}, {"channel": b"\xff"},
    ]
    while True:
        for change in fields:
            yield from send_manifest(s, own(p, announce=change), hashes=False)


@attack("signer")
def wrong_hashes(p):
    """Own bundles whose content never matches its hashes: received, discarded and asked for without end."""
    s = p.sender()
    m = own(p, content=p.noise(200_000))
    m.hashes = sign("hashes", Hashes(m.bundle, digest(m.announce), [bytes(32)]).encode(), p.key)
    while True:
        yield from send_whole(s, m)


@attack("signer")
def two_announces_of_one_bundle(p):
    """One bundle id with ever other announces (name, size, channel, sequence), each rightly signed, and hashes of each."""
    s, bundle, n = p.sender(), p.key.bundle_id(), 0
    while True:
        n += 1
        yield from send_whole(s, own(p, f"v{n}", p.noise(n % 5000), f"two-{n % 3}", 1 + n % 9, bundle=bundle))


@attack("signer")
def complete_and_withdrawn(p):
    """Hashes and a withdrawal of the same bundle, in either order, both rightly signed."""
    s, n = p.sender(), p.sequence
    while True:
        m = own(p, sequence=n)
        gone = sign("hashes", Hashes(m.bundle, digest(m.announce), reason="no").encode(), p.key)
        order = [m.hashes, gone] if n % 2 else [gone, m.hashes]
        yield from send_manifest(s, m, hashes=False)
        yield from s.object(HASHES, m.bundle, order[0])
        yield from send_data(s, m)
        yield from s.object(HASHES, m.bundle, order[1])
        n += 1


@attack("signer")
def names_of_every_byte(p):
    """Names of every byte but NUL and slash, one a bundle, and of all at once: displays, logs, shells, JSON, the host."""
    s = p.sender()
    names = [bytes([b]) for b in range(1, 256) if b not in b"/."]
    names += [bytes(b for b in range(1, 256) if b != 47), ESCAPES[:200].replace(b"/", b""), b"-rf", b"...", b"a" * 255]
    names += [b"\xff\xfe" * 100, b" ", b"con.txt", b".partial", b".tmp", b"lost+found", b"$(reboot)", b"%s%n", b"a\nb"]
    n = p.sequence
    while True:
        for name in names:
            yield from send_whole(s, own(p, name, b"1", sequence=n))
            n += 1


@attack("signer")
def escapes_everywhere(p):
    """Terminal escapes in names, paths, targets, channels and reasons."""
    s, n = p.sender(), p.sequence
    text = ESCAPES.replace(b"/", b"")
    while True:
        root = text[:60]
        entries = [Entry(root, DIRECTORY, mode=0o755), Entry(root + b"/" + text, FILE, 1), Entry(root + b"/\xff", SYMLINK, target=text)]
        m = own(p, root, b"1", sequence=n, announce={"entries": entries})
        yield from send_manifest(s, m, hashes=False)
        gone = Hashes(m.bundle, digest(m.announce), reason=ESCAPES[:1000].decode("latin-1"))
        yield from s.object(HASHES, m.bundle, sign("hashes", gone.encode(), p.key))
        yield from send_manifest(s, own(p, announce={"channel": ESCAPES.decode("latin-1")[:32]}), hashes=False)
        n += 1


@attack("signer")
def same_name_as_another(p):
    """Whole bundles with the names of others in ever other sequences, as files, as directories, in other case."""
    s, n = p.sender(), p.sequence
    while True:
        for name in ("own", "OWN", "Own", "own ", "own\u0301"):
            yield from send_whole(s, own(p, name, {"x": b"1"} if n % 2 else b"1", sequence=n))
            n += 1


@attack("signer")
def extensions_at_their_limits(p):
    """32 extensions of 4,096 bytes with the highest even tags, in announce and hashes, and one critical one at the end."""
    s, n = p.sender(), p.sequence
    most = [((1 << 32) - 64 + 2 * i, bytes(4096)) for i in range(32)]
    while True:
        yield from send_whole(s, own(p, sequence=n, announce={"extensions": most}, hashes={"extensions": most}))
        yield from send_manifest(s, own(p, sequence=n, hashes={"extensions": most[:31] + [((1 << 32) - 1, b"")]}))
        n += 1


@attack("signer")
def times_and_modes_extreme(p):
    """The earliest and latest times, modes 0 and 777, on files, directories and symlinks."""
    s, n = p.sender(), p.sequence
    while True:
        for seconds in (-(1 << 63), -1, 0, 1 << 33, 1 << 40, (1 << 63) - 1):
            entries = [
                Entry(b"own", DIRECTORY, mode=0, seconds=seconds, nanos=999_999_999),
                Entry(b"own/f", FILE, 1, mode=0, seconds=seconds),
                Entry(b"own/l", SYMLINK, target=b"f", seconds=seconds),
            ]
            change = {"entries": entries, "created": (1 << 64) - 1}
            yield from send_whole(s, own(p, content={"f": b"1"}, sequence=n, announce=change))
            n += 1


@attack("signer")
def symlink_chains(p):
    """Symlinks to symlinks, loops, long targets, targets of odd bytes: what each pass over the tree follows."""
    s, n = p.sender(), p.sequence
    while True:
        entries = [Entry(b"own", DIRECTORY, mode=0o755), Entry(b"own/d", DIRECTORY, mode=0o755)]
        entries += [Entry(b"own/d/%03d" % i, SYMLINK, target=b"%03d" % ((i + 1) % 500)) for i in range(500)]
        entries += [Entry(b"own/d/up", SYMLINK, target=b".."), Entry(b"own/d/z", SYMLINK, target=b"x/" * 2047 + b"x")]
        yield from send_manifest(s, own(p, sequence=n, content={"d": None}, announce={"entries": entries}))
        n += 1


@attack("signer")
def other_oti_after_announce(p):
    """An announced bundle whose data comes under ever other T and B: room for each, or the right one forgotten."""
    s = p.sender()
    m = own(p, content=p.noise(100_000))
    yield from send_manifest(s, m)
    while True:
        for t, most in ((64, 1024), (1408, 255), (9152, 1), (1408, 256)):
            yield from s.symbols(DATA, m.bundle, m.data.read, m.data.length, t, most)


@attack("signer")
def data_before_announce(p):
    """Whole data of ever new own bundles, then the hashes, the announce never: hold gigabytes for a tag that is trusted."""
    s = p.sender()
    while True:
        m = own(p, content=p.noise(300_000))
        yield from send_data(s, m)
        yield from send_manifest(s, m, announce=False)


@attack("signer")
def announce_symbol_short(p):
    """Own announces of many blocks of which the last symbol never comes."""
    s = p.sender()
    while True:
        bundle, data = p.key.bundle_id(), p.noise(1 << 20)
        held = None
        for datagram in s.object(ANNOUNCE, bundle, data):
            if held:
                yield held
            held = datagram


@attack("signer")
def unfinished_bundles(p):
    """A thousand own bundles of two blocks, of which one comes: a file for each is open, until there are no more to be had."""
    s = p.sender()
    for n in range(1000):
        m = own(p, f"u{n}", p.noise(128), sequence=p.sequence + 3000 + n, symbol=64, most=1)
        yield from send_manifest(s, m, hashes=False)
        yield from list(send_data(s, m))[:1]


@attack("signer")
def one_symbol_blocks(p):
    """Own bundles of very many blocks of one symbol, out of order: each is complete at once, and memory is full of what waits for the disk."""
    s, n = p.sender(), 0
    while True:
        n += 1
        m = own(p, f"one-{n}", p.noise(500_000), sequence=p.sequence + 5000 + n, symbol=64, most=1)
        yield from send_manifest(s, m, hashes=False)
        data = list(send_data(s, m))
        p.rng.shuffle(data)
        yield from data
        yield from send_manifest(s, m, announce=False)


@attack("signer")
def random_mutations(p):
    """Own announces and hashes with a few random bytes changed before they are signed: every path of the decoder."""
    s = p.sender()
    while True:
        m = own(p, content={"a/b": b"1", "c": b"", "d": None}, bundle=p.key.bundle_id())
        for role, kind, fields in (("announce", ANNOUNCE, m.fields), ("hashes", HASHES, m.hash_fields)):
            payload = bytearray(fields.encode())
            for _ in range(p.rng.randrange(1, 4)):
                payload[p.rng.randrange(9, len(payload))] = p.rng.choice([0, 1, 250, 251, 252, 253, 254, 255, p.rng.randrange(256)])
            yield from s.object(kind, m.bundle, sign(role, bytes(payload), p.key))
