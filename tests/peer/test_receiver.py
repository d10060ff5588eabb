"""The real receiver under each attack of `hostile`, under a flood, and with names of every byte.

    python3 tests/peer/test_receiver.py [--long] [--seconds N] [--rate N] [--only NAME...]

Honest bundles of the real sender are published before, during and after each attack, which runs for 2 seconds. With --long
it runs for a minute, together with others of its kind, which take turns. Everything is sent over loopback. The programs are
taken from $CHECKVALVE_BIN, or else from target/release.
"""

import argparse
import json
import multiprocessing
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import unicodedata
import unittest
from pathlib import Path

import attacks
import hostile  # noqa: F401 (registers the attacks)
from checkvalve_peer.beacon import Channel, Recent
from checkvalve_peer.datagram import DATA, HASHES
from checkvalve_peer.keys import SigningKey
from checkvalve_peer.objects import DIRECTORY, FILE, SYMLINK, Entry, Hashes, digest, sign
from checkvalve_peer.sender import Manifest, Sender, Udp, random64
from daemons import Pair, wait
from hostile.base import ATTACKS, POSITIONS, Position, Victim, send_data, send_manifest, send_whole
from hostile.storm import ALONE

SECONDS = 2.0
ONLY = []
RATE = 1500  # datagrams a second of each attacker
TOGETHER = 8  # attacks that take turns in a minute of --long
LOG_LINES = 200  # most that one attack may have written
MORE_LINES = 800  # as many more if it is of a trusted key for its own channel, beside two for each bundle that it had published
MEMORY = 96 << 20  # `memory` of the receiver, which it keeps mapped to use again
ALLOCATOR = 192 << 20  # at most what its allocator keeps of what was freed
JOURNAL = 1 << 20  # staging's journal is written anew only when it is longer
MINUTE = 60
FORK = multiprocessing.get_context("fork")

# Who can put wrong symbols in the place of a victim's spoils its content, and nothing but sending it again helps. What was sent
# again may be spoilt too, by what came between the spoiling's being found and the attack's end.
TICKETS = 3


class Attacker:
    """Attacks that take turns, in a process of their own."""

    def __init__(self, names, position, to, seconds):
        self.process = FORK.Process(target=attacks.run, args=(names, position, to, seconds, RATE), daemon=True)
        self.process.start()

    def join(self, seconds):
        self.process.join(seconds)
        if self.process.is_alive():  # it builds something large still
            self.process.kill()
            self.process.join()
            return True
        return self.process.exitcode == 0


class Site:
    """A pair of daemons that is under attack, and what was seen of it before."""

    def __init__(self, insecure):
        self.what = "insecure" if insecure else "sealed"
        self.directory = Path(tempfile.mkdtemp(prefix=f"checkvalve-{self.what}-"))
        self.pair = Pair(self.directory, insecure, memory=MEMORY)
        self.tickets, self.carried = [], {}
        try:
            self.pair.start()
            for _ in range(3):  # so that its memory is that of a receiver at work
                name = self.pair.drop(2_000_000)
                wait(name, lambda: self.pair.installed(name))
            self.before = self.idle()
        except BaseException:
            self.stop()
            raise

    def idle(self):
        """What it uses once nothing is under way."""
        wait(self.usage, lambda: not any(self.usage()[:4]))
        return *self.pair.staging(), self.pair.receiver.rss()

    def usage(self):
        status = self.pair.receiver.status()
        link = status["link"]
        return link["objects"], link["open_blocks"], link["memory"], status["staging"]["bytes"], self.pair.staging()

    def stop(self):
        self.pair.stop()
        shutil.rmtree(self.directory, ignore_errors=True)

    def positions(self, names, victims, sequence):
        """The attackers of attacks of one position: (channel, key)."""
        pair = self.pair
        if ATTACKS[names[0]].position != "signer":
            who = [("default", None)]
        elif not pair.link:
            who = [("default", pair.neighbour)]
        else:
            who = [("default", pair.neighbour), ("other", pair.neighbour), ("default", SigningKey.random())]
        for channel, key in who:
            count = 20_000 if "empty_files_million" in names and SECONDS < MINUTE else 0
            newest = sequence if channel == "default" else 1
            yield Position(pair.link, key, victims, channel, newest, list(pair.recorded), count)

    def begin(self, names):
        """Drops a bundle, and attacks it as soon as it has an id."""
        self.lines = self.pair.receiver.log().count(b"\n")
        self.during = self.pair.drop(int(max(SECONDS, 1) * 750_000))
        low = wait(self.pair.sender.status, lambda: next(iter(self.pair.sender.bundles(name=self.during, state="transmitting")), None))
        victims = [Victim(int(low["id"], 16), low["bytes"], self.pair.symbol, self.pair.most)]
        victims += [Victim(victims[0].bundle + (1 << 24)), Victim(random64() & ~0xFFFFFF | self.pair.honest.tag)]
        self.attackers = [
            Attacker(names, p, self.pair.to, SECONDS) for p in self.positions(names, victims, low["sequence"] + 1)
        ]

    def end(self, names):
        """Waits for the attack's end, and checks that what it was meant to do has not happened."""
        receiver = self.pair.receiver
        end = time.monotonic() + SECONDS + 8
        ended = [a.join(max(0.1, end - time.monotonic())) for a in self.attackers]
        assert all(ended), f"the attack itself failed: {ended}"
        receiver.alive()
        after = self.pair.drop(20_000)
        # A ticket brings as much as was dropped, which takes most of an attack's time to send.
        most = 60 + SECONDS * TICKETS
        wait(lambda: self.told(self.during, names), lambda: self.arrived(self.during, names), most)
        wait(lambda: self.told(after, names), lambda: self.pair.installed(after))
        bad = [b for b in receiver.bundles(channel="default") if b["state"] in ("quarantined", "held", "rejected", "withdrawn", "failed")]
        assert not bad, bad
        receiver.command("status")
        log = receiver.log()
        assert b"panicked" not in log, receiver.tail()
        lines = log.split(b"\n")[self.lines : -1]
        own = self.pair.link and ATTACKS[names[0]].position == "signer"
        lines = [x for x in lines if not re.search(rb"INFO (published|installed)", x)]
        most = LOG_LINES + (MORE_LINES if own else 0)
        assert len(lines) <= most * (1 + SECONDS // MINUTE), f"{len(lines)} lines in the log, the last: {receiver.tail()}"

    def told(self, bundle, names):
        return f"{self.what}, {' '.join(names)}: low {self.pair.low(bundle)}, high {self.pair.high(bundle)}, {self.pair.receiver.tail()}"

    def arrived(self, bundle, names):
        """Whether it is installed; if it may have been spoilt, its ticket is carried to the sender first."""
        if self.pair.installed(bundle):
            return True
        high = self.pair.high(bundle)
        if high and high["state"] == "incomplete" and high["ticket"] and self.pair.transmitted(bundle):
            again = time.monotonic() - self.carried.get(bundle, 0) > 4
            if again and self.tickets.count((names, bundle)) < TICKETS and any(ATTACKS[n].spoils for n in names):
                self.tickets.append((names, bundle))
                ticket = self.pair.receiver.command("ticket", f"default/{high['sequence']}")
                self.pair.sender.command("resend", "--ticket", "-", input=ticket)
                self.carried[bundle] = time.monotonic()
        return False

    def is_as_before(self):
        """Within a minute everything that attacks took is free again."""
        files, size, rss = self.before
        def now():
            now = self.pair.staging()
            memory = self.pair.receiver.rss()
            return not any(self.usage()[:4]) and now[0] <= files and now[1] <= size + JOURNAL and memory <= rss + MEMORY + ALLOCATOR
        wait(lambda: f"{self.what}: {self.usage()}, {self.pair.receiver.rss() >> 20} MiB; before: {self.before}", now, MINUTE, 0.5)


class Attacks(unittest.TestCase):
    """Tests are made below, one for each attack; they run in the order of their names."""

    sites = ()

    @classmethod
    def setUpClass(cls):
        cls.sites = []
        cls.addClassCleanup(lambda: [s.stop() for s in cls.sites])
        for insecure in (False, True):
            cls.sites.append(Site(insecure))

    @classmethod
    def tearDownClass(cls):
        for site in cls.sites:
            names = [n for names, _ in site.tickets for n in names if ATTACKS[n].spoils]
            counts = ", ".join(f"{name} ({names.count(name)})" for name in sorted(set(names)))
            print(f"{site.what}: tickets were needed under {counts or 'no attack'}")

    def attack(self, names):
        """Attacks on each site that they are for. A machine that stands still for seconds can spoil a try: then a second one counts."""
        failed = self.attempt(names)
        if failed:
            failed = self.attempt(names)
        self.assertFalse(failed, "\n".join(failed))

    def attempt(self, names):
        sites = [s for s in self.sites if s.pair.link or ATTACKS[names[0]].position != "signer"]
        for site in sites:
            site.begin(names)
        failed = []
        for site in sites:
            try:
                site.end(names)
            except Exception as e:  # whatever it is, the other site is looked at too, and the next attack finds a new one
                failed.append(f"{site.what}: {e!r}")
                print(failed[-1], end=" ", flush=True)
                site.stop()
                self.sites[self.sites.index(site)] = Site(not site.pair.link)
        return failed

    def rest(self):
        for site in self.sites:
            with self.subTest(site.what):
                site.is_as_before()

    def test_3_signer_removed(self):
        """What a key took for its own channel is free again when the key is trusted no more."""
        for site in self.sites:
            site.pair.receiver.command("trust", "remove", site.pair.neighbour.id.hex())
        self.rest()


def in_turns(chosen):
    """Some attacks of one kind at a time; those that spoil bundles apart, so that no other is excused."""
    kinds = {}
    for name in chosen:
        kinds.setdefault((ATTACKS[name].__module__, ATTACKS[name].spoils, name if name in ALONE else None), []).append(name)
    for names in kinds.values():
        parts = -(-len(names) // TOGETHER)
        yield from (tuple(names[i::parts]) for i in range(parts))


def make_tests():
    for i, position in enumerate(POSITIONS, 1):
        chosen = [n for n, a in ATTACKS.items() if a.position == position and (not ONLY or n in ONLY)]
        for n, names in enumerate(in_turns(chosen) if SECONDS >= MINUTE else [(n,) for n in chosen]):
            title = names[0] if len(names) == 1 else f"{names[0]}_to_{names[-1]}"
            setattr(Attacks, f"test_{i}_{position}_{n:02}_{title}", lambda self, names=names: self.attack(names))
        if position != "signer":
            setattr(Attacks, f"test_{i}_{position}_rest", lambda self: self.rest())


class Flood(unittest.TestCase):
    """Forged datagrams as fast as the receiver takes half of, while a transfer goes on."""

    def setUp(self):
        self.directory = Path(tempfile.mkdtemp(prefix="checkvalve-flood-"))
        self.addCleanup(shutil.rmtree, self.directory, True)

    def flood(self, pair, rate, stop):
        """Sends forged datagrams until `stop`; how many there were."""
        s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        s.connect(("127.0.0.1", pair.port))
        s.setsockopt(socket.IPPROTO_UDP, 103, 1472)  # UDP_SEGMENT: the kernel cuts what is sent into datagrams
        position = Position(pair.link)
        batches = [
            b"".join(position.forge(DATA, os.urandom(1408), bundle=random64(), length=1 << 20, symbol=1408, most=256) for _ in range(40))
            for _ in range(64)
        ]
        sent, start = 0, time.monotonic()
        while not stop.is_set():
            try:
                s.send(batches[sent // 40 % 64])
            except OSError:
                pass
            sent += 40
            if rate:
                wait = start + sent / rate - time.monotonic()
                if wait > 0:
                    time.sleep(wait)
        return sent

    def flooding(self, pair, rate, seconds):
        """Floods for so long, in another process, and gives (datagrams sent, seconds)."""
        stop, sent = FORK.Event(), FORK.Value("Q", 0)

        def run():
            sent.value = self.flood(pair, rate, stop)

        process = FORK.Process(target=run, daemon=True)
        process.start()
        return process, stop, sent

    def test_flood(self):
        pair = Pair(self.directory / "a")
        self.addCleanup(pair.stop)
        pair.start()
        link = lambda: pair.receiver.status()["link"]
        before, start = link(), time.monotonic()
        process, stop, sent = self.flooding(pair, 0, 3)
        time.sleep(3)
        after, seconds = link(), time.monotonic() - start
        stop.set()
        process.join(10)
        capacity = (after["datagrams"] - before["datagrams"]) / seconds
        print(f"\nforged datagrams: sent {sent.value / seconds:,.0f} a second, the receiver took {capacity:,.0f}")
        self.assertGreater(capacity, 1000)
        pair.stop()

        rate = capacity / 10
        pair = Pair(self.directory / "b", rate=f"{int(rate * 1538 * 8 / 1000)} kbit/s")
        self.addCleanup(pair.stop)
        pair.start()
        seconds = max(5.0, SECONDS)
        process, stop, sent = self.flooding(pair, capacity / 2, seconds)
        start = time.monotonic()
        try:
            time.sleep(0.5)
            names = []
            while time.monotonic() < start + seconds or not names:
                name = pair.drop(int(min(rate * 1408 * 3, 256 << 20)))
                wait(lambda: f"{pair.low(name)} {pair.high(name)} {link()}", lambda: pair.installed(name), 120)
                names.append(name)
        finally:
            stop.set()
            process.join(10)
        seconds = time.monotonic() - start
        pair.receiver.alive()
        drops = pair.receiver.status()["link"]
        print(f"{sent.value / seconds:,.0f} forged a second; {len(names)} bundles came; kernel dropped {drops['kernel_drops']}")
        self.assertGreater(drops["dropped"]["tag"], 1000)
        self.assertLess(pair.receiver.log().count(b"\n"), LOG_LINES)


EVERY = bytes(b for b in range(1, 256) if b != 47)
HOOK = """#!/bin/sh
n=$(ls "{0}" | wc -l)
cat > "{0}/$n.json"
env > "{0}/env-$CHECKVALVE_SEQUENCE"
printf '%s' "$CHECKVALVE_NAME"
"""


class EveryByte(unittest.TestCase):
    """Bundles whose names, targets and reasons have every byte that there is."""

    def setUp(self):
        self.directory = Path(tempfile.mkdtemp(prefix="checkvalve-bytes-"))
        self.addCleanup(shutil.rmtree, self.directory, True)
        self.heard = self.directory / "heard"
        self.heard.mkdir()
        hook = self.directory / "hook"
        hook.write_text(HOOK.format(self.heard))
        hook.chmod(0o755)
        self.pair = Pair(self.directory / "pair", hook=hook)
        self.addCleanup(self.pair.stop)
        self.pair.receiver.start()

    def tree(self, name, sequence):
        """A tree with a file and a symlink for each byte, and one for all of them."""
        names = [bytes([b]) for b in EVERY if b != 46] + [b"x" + EVERY]
        entries = [Entry(name, DIRECTORY, mode=0o755)]
        entries += [Entry(name + b"/f" + n[:254], FILE, 1) for n in names]
        entries += [Entry(name + b"/l" + n[:254], SYMLINK, target=n) for n in names]
        entries[1:] = sorted(entries[1:], key=lambda e: e.path)
        contents = {e.path[len(name) + 1 :]: b"1" for e in entries if e.kind == FILE}
        return Manifest(self.pair.honest, "default", sequence, name, contents, announce={"entries": entries})

    def text(self, data, what):
        """Valid UTF-8 without control characters."""
        text = data.decode()
        bad = {c for c in text if c != "\n" and (unicodedata.category(c) in ("Cc", "Cf", "Zl", "Zp", "Cs"))}
        self.assertFalse(bad, f"{what}: {bad!r}")
        return text

    def test_every_byte(self):
        pair, key = self.pair, self.pair.honest
        s = Sender(pair.link, key)
        name = EVERY
        make = lambda sequence, name=name, content=b"1", **more: Manifest(key, "default", sequence, name, content, **more)
        whole, tree = make(1), self.tree(EVERY[::-1], 2)
        self.assertEqual(len(tree.fields.entries), 1 + 2 * 254)
        singles = [make(3 + i, bytes([b])) for i, b in enumerate(b for b in EVERY if b != 46)]
        n = 3 + len(singles)
        withdrawn, broken, lacking, spoilt = make(n), make(n + 1, announce={"mode": 0, "symbol": 65}), make(n + 2, content=bytes(9000)), make(n + 3)
        gone = Hashes(withdrawn.bundle, digest(withdrawn.announce), reason="".join(map(chr, range(1, 256))) + "\u202e\u2066\ufeff\u2028")
        spoilt.hashes = sign("hashes", Hashes(spoilt.bundle, digest(spoilt.announce), [bytes(32)]).encode(), key)
        never = [Recent(n + 4, key.bundle_id(), 100, 2, EVERY)]

        def datagrams():
            for m in [whole, tree, *singles]:
                yield from send_whole(s, m)
            yield from send_manifest(s, withdrawn, hashes=False)
            yield from s.object(HASHES, withdrawn.bundle, sign("hashes", gone.encode(), key))
            yield from send_manifest(s, broken)
            yield from send_manifest(s, lacking)
            yield from list(send_data(s, lacking))[:-2]
            yield from send_whole(s, spoilt)
            for i in range(3):
                yield s.beacon(Channel("default", 0, n + 4, never))

        udp = Udp(pair.to, 3000)
        udp.send_all(datagrams())
        state = lambda m: next((b["state"] for b in pair.receiver.bundles(id=f"{m.bundle:016x}")), None)
        wait(lambda: pair.receiver.tail(), lambda: all(state(m) == "installed" for m in (whole, tree, singles[-1])))
        known = lambda m: (pair.receiver.bundles(id=f"{m.bundle:016x}"), pair.receiver.status()["discarded"], pair.receiver.tail())
        wait(lambda: known(withdrawn), lambda: state(withdrawn) == "withdrawn")
        wait(lambda: known(broken), lambda: state(broken) == "quarantined")
        wait(lambda: state(lacking), lambda: udp.send(s.beacon("default")) or state(lacking) == "incomplete")

        # byte-exactly in the inbox
        inbox = os.fsencode(pair.directory / "inbox" / "default")
        self.assertEqual(os.listdir(inbox + b"/00000001"), [EVERY])
        for m in singles:
            self.assertEqual(os.listdir(inbox + b"/%08d" % m.fields.sequence), [m.fields.name])
        root = inbox + b"/00000002"
        for e in tree.fields.entries:
            path = root + b"/" + e.path
            if e.kind == SYMLINK:
                self.assertEqual(os.readlink(path), e.target)
            elif e.kind == FILE:
                self.assertEqual(Path(os.fsdecode(path)).read_bytes(), b"1")
        self.assertEqual(len(os.listdir(root + b"/" + tree.fields.name)), 2 * 254)

        # every command says text
        number = lambda m: f"default/{m.fields.sequence}"
        path = lambda m: inbox + b"/%08d/" % m.fields.sequence + m.fields.name
        odd = "\x1b[31m\r\n\x9b\u202e"
        commands = [
            ["status"], ["ticket", "--all"], ["trust", "list"], ["check-config"], ["verify", odd], ["ticket", odd], ["reject", odd],
            *(["ticket", number(m)] for m in (lacking, spoilt, whole, withdrawn, broken)), ["ticket", f"default/{n + 4}"],
            *(["verify", path(m)] for m in (whole, tree, *singles[:40])), ["verify", inbox + b"/" + EVERY], ["verify", inbox],
            *(["approve", number(m)] for m in (whole, broken)), ["retry", number(whole)], ["retry", number(broken)], ["reject", number(lacking)],
            ["reject", number(spoilt)], ["retry", number(lacking)], ["reject", number(withdrawn)], ["approve", odd], ["retry", odd], ["status"],
        ]
        for command in commands:
            for more in ([], ["--json"]):
                out = pair.receiver.run(*command, *more)
                self.text(out.stderr, (command, more, "stderr"))
                text = self.text(out.stdout, (command, more))
                self.assertNotIn(out.returncode, (70, 101, 134), (command, out))
                if more and out.returncode == 0:
                    json.loads(text)
                if command[0] in ("status", "trust", "check-config") or command[:2] in (["verify", path(m)] for m in (whole, tree)):
                    self.assertEqual(out.returncode, 0, (command, more, out))
        watch = [pair.receiver.program, "--config", pair.receiver.config, "status", "--watch"]
        for more in ([], ["--json"]):
            process = subprocess.Popen([*watch, *more], stdout=subprocess.PIPE)
            time.sleep(1.5)
            process.terminate()
            self.text(process.communicate()[0], ("--watch", more))

        # and so do the log, the audit trail, the hook's standard input and what is kept beside bundles
        self.text(pair.receiver.log(), "the log")
        heard = [json.loads(p.read_bytes()) for p in self.heard.glob("*.json")]
        self.assertEqual(len(heard), len(singles) + 2)
        for root in ("high", "quarantine"):
            for file in (pair.directory / root).rglob("*.json*"):
                text = self.text(file.read_bytes(), file)
                for value in text.splitlines() if file.suffix == ".jsonl" else [text]:
                    json.loads(value)
        pair.receiver.alive()
        self.assertNotIn(b"panicked", pair.receiver.log())


def main():
    global SECONDS, RATE, ONLY
    p = argparse.ArgumentParser(description="The real receiver under attack.")
    p.add_argument("--long", action="store_true", help="a minute for each attack, some at a time")
    p.add_argument("--seconds", type=float, help="each attack for so long")
    p.add_argument("--rate", type=float, default=RATE, help="datagrams a second of each attacker")
    p.add_argument("--only", nargs="+", default=[], metavar="NAME", help="only these attacks, or `flood`, or `bytes`")
    a = p.parse_args()
    SECONDS, RATE, ONLY = a.seconds or (60.0 if a.long else 2.0), a.rate, a.only
    make_tests()
    classes = {"flood": Flood, "bytes": EveryByte}
    chosen = [c for n, c in classes.items() if n in ONLY or not ONLY]
    if not ONLY or set(ONLY) & set(ATTACKS):
        chosen.append(Attacks)
    suite = unittest.TestSuite(unittest.defaultTestLoader.loadTestsFromTestCase(c) for c in chosen)
    return not unittest.TextTestRunner(verbosity=2).run(suite).wasSuccessful()


if __name__ == "__main__":
    sys.exit(main())
