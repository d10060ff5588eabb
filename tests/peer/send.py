"""Sends a bundle over a link, and a beacon each second.

    send.py --to HOST:PORT (--link-key FILE | --insecure) --signing-key FILE [--channel default] [--sequence 1]
            --name NAME [--seconds 5] [--rate DATAGRAMS_PER_SECOND] [--record FILE] FILE...

One FILE that is no directory is the whole bundle; several, or directories, become a tree below the name.
"""

import argparse
import sys
import time
from pathlib import Path

from checkvalve_peer import keys
from checkvalve_peer.beacon import OnWire
from checkvalve_peer.sender import Manifest, Sender, Udp


def collect(paths):
    if len(paths) == 1 and not paths[0].is_dir():
        return paths[0]
    files = {}
    for path in paths:
        if not path.is_dir():
            files[path.name] = path
            continue
        for below in sorted(path.rglob("*")):
            if below.is_symlink():
                continue
            files[str(below.relative_to(path))] = None if below.is_dir() else below
    return files


def arguments():
    p = argparse.ArgumentParser(description="Sends a bundle, and a beacon each second.")
    p.add_argument("--to", required=True)
    link = p.add_mutually_exclusive_group(required=True)
    link.add_argument("--link-key")
    link.add_argument("--insecure", action="store_true")
    p.add_argument("--signing-key", required=True)
    p.add_argument("--channel", default="default")
    p.add_argument("--sequence", type=int, default=1)
    p.add_argument("--name", required=True)
    p.add_argument("--seconds", type=float, default=5)
    p.add_argument("--rate", type=float, default=5000)
    p.add_argument("--epoch", type=int, default=1)
    p.add_argument("--epoch-id", type=lambda s: int(s, 16), help="hexadecimal; random if missing")
    p.add_argument("--session-number", type=int, default=1)
    p.add_argument("--symbol", type=int, default=1408)
    p.add_argument("--most", type=int, default=256, help="source symbols in a block")
    p.add_argument("--bundle", type=lambda s: int(s, 16), help="bundle id in hexadecimal; random if missing")
    p.add_argument("--record", help="also write each datagram to this file, for attacks.py --recorded")
    p.add_argument("files", nargs="+", type=Path)
    return p.parse_args()


def main():
    a = arguments()
    link = keys.read(a.link_key, keys.parse_link) if a.link_key else None
    key = keys.read(a.signing_key, keys.parse_signing)
    udp = Udp(a.to, a.rate)
    record = open(a.record, "wb") if a.record else None

    def send(datagram):
        udp.send(datagram)
        if record:
            record.write(len(datagram).to_bytes(4, "big") + datagram)

    sender = Sender(link, key, a.epoch, a.epoch_id, a.session_number, symbol=a.symbol, most=a.most)
    sender.rate_bits = int(a.rate * (a.symbol + 64 + 42) * 8)
    end = time.monotonic() + a.seconds
    m = Manifest(key, a.channel, a.sequence, a.name, collect(a.files), a.bundle, a.symbol, a.most)
    print(f"bundle {m.bundle:016x}:{m.data.length}:{a.symbol}:{a.most}", flush=True)  # as attacks.py --victim takes it

    wire = OnWire(m.bundle, a.channel, a.sequence)
    send(sender.beacon(a.channel, wire))
    beacon_at = time.monotonic() + 1
    for datagram in sender.send_bundle(a.channel, a.sequence, a.name, None, manifest=m):
        send(datagram)
        if time.monotonic() >= beacon_at:
            send(sender.beacon(a.channel, wire))
            beacon_at += 1
    while True:
        send(sender.beacon(a.channel))
        rest = end - time.monotonic()
        if rest <= 0:
            break
        time.sleep(min(1, rest))
    if record:
        record.close()
    print(f"{udp.sent} datagrams")
    return 0


if __name__ == "__main__":
    sys.exit(main())
