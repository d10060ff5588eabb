"""Checks this implementation against every test vector, in both directions where there are two.

    python3 tests/peer/test_vectors.py
"""

import collections
import tomllib
import unittest
from pathlib import Path

from checkvalve_peer import keys, ticket
from checkvalve_peer.admit import Trust, admit
from checkvalve_peer.beacon import STATES, decode_beacon
from checkvalve_peer.datagram import KINDS, Opener, Partition, Sealer
from checkvalve_peer.encoding import Reader, fold, uint
from checkvalve_peer.errors import Refused
from checkvalve_peer.objects import DOMAINS, decode_announce, decode_hashes, digest, open_signed, sign
from checkvalve_peer.paths import check_path, check_target

VECTORS = Path(__file__).resolve().parents[2] / "protocol" / "vectors"
RAN = collections.Counter()
KEYS = tomllib.loads((VECTORS / "keys.toml").read_text())
LINK = keys.LinkKey(bytes.fromhex(KEYS["link"]["bytes"]))
SIGNERS = {name: keys.SigningKey(bytes.fromhex(KEYS[name]["seed"]), name) for name in ("trusted", "neighbour", "stranger")}
TRUSTED = SIGNERS["trusted"]


def rule(call, *args):
    """The broken rule, or `ok`; with the result."""
    try:
        return "ok", call(*args)
    except Refused as e:
        return e.rule, e


def number(n):
    return n if n < 1 << 63 else str(n)


def folder(name):
    for path in sorted((VECTORS / name).glob("*.toml")):
        RAN[name] += 1
        yield path.name, tomllib.loads(path.read_text())


class Vectors(unittest.TestCase):
    maxDiff = None

    def test_no_vector_is_left_out(self):
        known = {"admit", "beacon", "datagram", "manifest", "ticket"}
        known |= {f"{n}.toml" for n in ("keys", "integers", "paths", "partition", "symbols")}
        self.assertEqual({p.name for p in VECTORS.iterdir()}, known)

    def test_keys(self):
        self.assertEqual(LINK.id.hex(), KEYS["link"]["id"])
        self.assertEqual(LINK.file(), KEYS["link"]["file"])
        self.assertEqual(keys.parse_link(KEYS["link"]["file"]).secret, LINK.secret)
        for name, key in SIGNERS.items():
            RAN["keys"] += 1
            v = KEYS[name]
            self.assertEqual(key.public.raw.hex(), v["public"])
            self.assertEqual(key.id.hex(), v["id"])
            self.assertEqual(format(key.tag, "06x"), v["tag"])
            self.assertEqual(key.file(), v["file"])
            self.assertEqual(key.public.file(), v["public_file"])
            self.assertEqual(keys.parse_signing(v["file"]).id, key.id)
            self.assertEqual(keys.parse_public(v["public_file"]).comment, name)
            for role in DOMAINS:
                expect = v[f"signature_of_payload_as_{role}"]
                self.assertEqual(sign(role, b"payload", key)[12:76].hex(), expect, role)

    def test_integers(self):
        v = tomllib.loads((VECTORS / "integers.toml").read_text())

        def read(kind, data):
            r = Reader(data)
            if kind == "option":
                n = r.option(r.uint)
            else:
                n = (r.sint if kind[0] == "i" else r.uint)(int(kind[1:]) // 8)
            r.end()
            return n

        for case in v["good"] + v["read"] + v["bad"]:
            RAN["integers"] += 1
            got, n = rule(read, case["type"], bytes.fromhex(case["hex"]))
            self.assertEqual(got, case.get("expect", "ok"), case)
            if got == "ok":
                self.assertEqual(n, int(case["value"]), case)
        for case in v["good"]:
            n = int(case["value"])
            if case["type"][0] == "i":
                n = fold(n, int(case["type"][1:]))
            self.assertEqual(uint(n).hex(), case["hex"])

    def test_paths(self):
        v = tomllib.loads((VECTORS / "paths.toml").read_text())
        for case in v["path"]:
            RAN["paths"] += 1
            self.assertEqual(rule(check_path, case["path"].encode())[0], case["expect"], case)
        for case in v["symlink"]:
            RAN["paths"] += 1
            got = rule(check_target, case["link"].encode(), case["target"].encode())[0]
            self.assertEqual(got, case["expect"], case)

    def test_partition(self):
        for case in tomllib.loads((VECTORS / "partition.toml").read_text())["object"]:
            RAN["partition"] += 1
            p = Partition(case["transfer_length"], case["symbol_size"], case["max_block_symbols"])
            self.assertEqual(p.blocks, case["blocks"])
            self.assertEqual(p.block(0)[1], case["first_block_symbols"])
            self.assertEqual(p.block(p.blocks - 1)[1], case["last_block_symbols"])
            self.assertEqual(p.span(p.blocks - 1), (case["last_block_offset"], case["last_block_bytes"]))

    def test_symbols(self):
        """Repair symbols are not made here; only that each vector is one, and has 64 bytes."""
        for case in tomllib.loads((VECTORS / "symbols.toml").read_text())["repair"]:
            RAN["symbols (shape only)"] += 1
            self.assertGreaterEqual(case["esi"], case["symbols"])
            self.assertEqual(len(bytes.fromhex(case["symbol"])), 64)

    def test_datagrams(self):
        for name, case in folder("datagram"):
            link = LINK if case["kind"] == "datagram" else None
            data = bytes.fromhex(case["hex"])
            got, d = rule(Opener(link).open, data)
            self.assertEqual(got, case["expect"], name)
            if got != "ok":
                continue
            value = {"kind": {n: k for k, n in KINDS.items()}[d.kind], "counter": str(d.counter)}
            value |= {"session": format(d.session, "016x"), "payload": d.payload.hex()}
            place = dict(bundle=d.bundle, sbn=d.sbn, esi=d.esi, length=d.length, symbol=d.symbol, most=d.most)
            if value["kind"] != "beacon":
                value |= {"bundle": format(d.bundle, "016x"), "sbn": d.sbn, "esi": d.esi}
                value |= {"transfer_length": d.length, "symbol_size": d.symbol, "max_block_symbols": d.most}
            self.assertEqual(value, case["value"], name)
            again = Sealer(link, d.session).seal(d.kind, d.counter, d.payload, **place)
            self.assertEqual(again.hex(), data.hex(), name)

    def signed(self, name, case):
        """Opens, decodes, and encodes and signs again."""
        role, data = case["kind"], bytes.fromhex(case["hex"])

        def decode():
            signer, payload = open_signed(role, data, {TRUSTED.id: TRUSTED.public})
            if role == "beacon":
                return decode_beacon(payload, signer)
            return (decode_announce if role == "announce" else decode_hashes)(payload)

        got, value = rule(decode)
        self.assertEqual(got, case["expect"], name)
        if got != "ok":
            return None
        self.assertEqual(sign(role, value.encode(), TRUSTED).hex(), data.hex(), name)
        self.assertEqual(case["value"].pop("signer"), TRUSTED.id.hex())
        return value

    def test_manifests(self):
        for name, case in folder("manifest"):
            v = self.signed(name, case)
            if v is None:
                continue
            value = {"bundle": format(v.bundle, "016x")}
            if case["kind"] == "hashes":
                value["announce"] = v.announce.hex()
                if v.reason is None:
                    value["files"] = [h.hex() for h in v.hashes]
                else:
                    value["withdrawn"] = v.reason
            else:
                value |= {"channel": v.channel, "sequence": v.sequence, "name": v.name.hex(), "data_len": v.data_len()}
                value |= {"created_ms": number(v.created), "symbol_size": v.symbol, "block_symbols": v.most}
                value |= {"digest": digest(bytes.fromhex(case["hex"])).hex(), "entries": [entry(e) for e in v.entries]}
            self.assertEqual(value, case["value"], name)

    def test_beacons(self):
        for name, case in folder("beacon"):
            b = self.signed(name, case)
            if b is None:
                continue
            value = {"epoch_number": b.epoch, "epoch_id": format(b.epoch_id, "016x"), "session_number": b.session}
            value |= {"session": format(b.session_id, "016x"), "counter": b.counter, "clock_ms": number(b.clock)}
            value |= {"rate_bits": number(b.rate), "datagrams": number(b.datagrams)}
            if b.on_wire:
                o = b.on_wire
                value["on_wire"] = {"bundle": format(o.bundle, "016x"), "channel": o.channel, "sequence": o.sequence}
                value["on_wire"] |= {"pass": o.number, "passes": o.passes, "blocks": o.blocks, "blocks_sent": o.sent}
            if b.channel:
                c = b.channel
                recent = [
                    {"sequence": r.sequence, "bundle": format(r.bundle, "016x"), "bytes": r.bytes}
                    | {"state": STATES[r.state], "name": r.name.hex()}
                    for r in c.recent
                ]
                value["channel"] = {"name": c.name, "priority": c.priority, "newest": c.newest, "recent": recent}
            self.assertEqual(value, case["value"], name)

    def test_admit(self):
        trusted = (SIGNERS["trusted"], SIGNERS["neighbour"])
        trust = Trust({k.id: k.public for k in trusted}, {"other": {SIGNERS["neighbour"].id}})
        for name, case in folder("admit"):
            hashes = bytes.fromhex(case["hashes"]) if "hashes" in case else None
            got = admit(int(case["bundle"], 16), bytes.fromhex(case["announce"]), hashes, trust)
            self.assertEqual(got[:2], (case["verdict"], case["expect"]), name)

    def test_tickets(self):
        for name, case in folder("ticket"):
            got, t = rule(ticket.read, case["text"])
            self.assertEqual(got, case["expect"], name)
            self.assertEqual(getattr(t, "lines", None), case.get("lines"), name)
            if got != "ok":
                continue
            value = dict(t)
            if "bundle" in t:
                value["bundle"] = format(t["bundle"], "016x")
                if not isinstance(t["data"], str):
                    value["data"] = [{"first": f, "blocks": b, "need": n} for f, b, n in t["data"]]
            self.assertEqual(value, case["value"], name)
            if "typed" not in name:
                self.assertEqual(ticket.write(t), case["text"], name)

    def test_ticket_line_check(self):
        """What the specification says follows from the check of a line."""
        line = [(i * 7 + 3) % 32 for i in range(28)]
        full = line + ticket.line_check(line, 45)
        self.assertEqual(ticket.sums(enumerate(full)), [0, 0, 1, 13])
        for i in range(32):
            for j in range(i + 1, 32):
                s = ticket.sums([(i, 9), (j, 22)])
                self.assertTrue(any(s))


def entry(e):
    value = {"kind": ("file", "directory", "symlink")[e.kind], "path": e.path.hex()}
    value |= {"mtime_secs": e.seconds, "mtime_nanos": e.nanos}
    if e.kind == 2:
        return value | {"target": e.target.hex()}
    return value | {"mode": e.mode} | ({"size": e.size} if e.kind == 0 else {})


def tearDownModule():
    print("cases:", ", ".join(f"{n} {c}" for n, c in sorted(RAN.items())), "=", RAN.total())


if __name__ == "__main__":
    unittest.main()
