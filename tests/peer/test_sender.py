"""What the sender sends is what a receiver admits; each attack runs, and keeps to its position.

    python3 tests/peer/test_sender.py
"""

import itertools
import os
import unittest

import hostile  # noqa: F401
from checkvalve_peer.admit import Trust, admit
from checkvalve_peer.beacon import Order, decode_beacon
from checkvalve_peer.datagram import ANNOUNCE, BEACON, DATA, HASHES, Opener, Partition
from checkvalve_peer.errors import Refused
from checkvalve_peer.keys import LinkKey, SigningKey
from checkvalve_peer.objects import open_signed
from checkvalve_peer.sender import Sender, content_hash
from hostile.base import ATTACKS, Position, Victim

LINK = LinkKey(b"l" * 32)
KEY = SigningKey(b"k" * 32)


def assemble(link, datagrams):
    """Objects by kind, and the bundle id."""
    opener, objects, lengths, bundle = Opener(link), {}, {}, 0
    for d in map(opener.open, datagrams):
        part = Partition(d.length, d.symbol, d.most)
        first, count = part.block(d.sbn)
        assert d.esi < count
        objects.setdefault(d.kind, {})[first + d.esi] = d.payload
        lengths[d.kind], bundle = d.length, d.bundle
    return {k: b"".join(o[i] for i in sorted(o))[: lengths[k]] for k, o in objects.items()}, bundle


class Sending(unittest.TestCase):
    def test_bundle(self):
        files = {"a/b": os.urandom(100_000), "a!": b"", "z": os.urandom(70_001), "e": None}
        for link in (LINK, None):
            objects, bundle = assemble(link, Sender(link, KEY, most=16).send_bundle("default", 1, "t", files))
            trust = Trust({KEY.id: KEY.public})
            verdict, rule, got = admit(bundle, objects[ANNOUNCE], objects[HASHES], trust)
            self.assertEqual((verdict, rule), ("admitted", "ok"))
            at = 0
            for entry, digest in zip(got.announce.files(), got.hashes.hashes):
                content = objects[DATA][at : at + entry.size]
                self.assertEqual(content, files[entry.path[2:].decode()])
                self.assertEqual(content_hash(content), digest)
                at += entry.size

    def beacons(self, *steps):
        """What becomes of beacons of (epoch, epoch id, session number, session id, counter)."""
        order, opener = Order(), Opener(LINK)
        for epoch, epoch_id, number, session, counter, expect in steps:
            s = Sender(LINK, KEY, epoch, epoch_id, number, session)
            d = opener.open(s.beacon(counter=counter))
            self.assertEqual(d.kind, BEACON)
            signer, payload = open_signed("beacon", d.payload, {KEY.id: KEY.public})
            self.assertEqual(order.judge(decode_beacon(payload, signer), d.session), expect, (epoch, number, counter))

    def test_order_of_beacons(self):
        self.beacons(
            (2, 7, 5, 50, 1, "counts"), (2, 7, 5, 50, 1, "repeated"), (2, 7, 5, 50, 3, "counts"), (2, 7, 5, 50, 2, "repeated"),
            (1, 6, 9, 90, 1, "old epoch"), (2, 8, 5, 50, 4, "another state"), (2, 7, 5, 51, 4, "reused session"),
            (2, 7, 8, 80, 1, "counts"), (2, 7, 5, 50, 4, "late session"), (2, 7, 6, 60, 1, "repeated"),
            (3, 9, 1, 10, 1, "counts"), (3, 9, 8, 80, 1, "counts"), (2, 7, 8, 80, 2, "old epoch"),
        )

    def test_beacon_fits(self):
        s = Sender(LINK, KEY)
        for n in range(60):
            for _ in s.send_bundle("default", n + 1, b"n" * 255, b""):
                pass
        self.assertLessEqual(len(Opener(LINK).open(s.beacon("default")).payload), 9216)

    def test_attacks_run(self):
        for link in (LINK, None):
            for name, attack in ATTACKS.items():
                p = Position(link, SigningKey(b"n" * 32), [Victim(0x0123456789E9698E)], count=100)
                if name == "largest_garbage_announce":
                    continue  # builds 64 MiB
                sent = list(itertools.islice(attack(p), 40))
                self.assertTrue(sent, name)
                if link and attack.position == "none" and not name.startswith(("replay", "storm")):
                    for d in sent:
                        with self.assertRaises(Refused, msg=name):
                            Opener(link).open(d)


if __name__ == "__main__":
    unittest.main()
