"""Hostile behaviours, to be run against a receiver of one's own.

    attacks.py --list
    attacks.py NAME --to HOST:PORT (--link-key FILE | --insecure) [--signing-key FILE] [--seconds 10] [--rate 2000]
               [--victim BUNDLE_ID[:LENGTH[:T[:B]]] ...] [--recorded FILE] [--channel default] [--sequence 2]

Each attack is a generator of datagrams; see the modules of `hostile`. It ends after --seconds, and sends to the address
given and to no other. An attack of position `none` takes but one byte of the link key's id, which the wire shows.
"""

import argparse
import random
import sys
import time

from checkvalve_peer import keys
from checkvalve_peer.sender import Udp, random64
from hostile.base import ATTACKS, POSITIONS, Position, Victim, interleave, read_recording
import hostile  # noqa: F401 (registers the attacks)


def run(names, position, to, seconds, rate=2000):
    """Runs attacks, which take turns; returns how many datagrams were sent."""
    for name in names:
        if ATTACKS[name].position == "signer" and position.key is None:
            raise SystemExit(f"{name} needs a signing key")
    if not position.victims:
        position.victims = [Victim(random64())]
    udp = Udp(to, rate)
    udp.send_all(interleave(*(ATTACKS[name](position) for name in names)), time.monotonic() + seconds)
    return udp.sent


def victim(text):
    bundle, *oti = text.split(":")
    return Victim(int(bundle, 16), *map(int, oti))


def listing():
    for position, what in POSITIONS.items():
        print(f"{position}: {what}")
        for name, attack in ATTACKS.items():
            if attack.position == position:
                print(f"  {name}: {attack.__doc__}")


def arguments():
    p = argparse.ArgumentParser(description="Runs one hostile behaviour against a receiver.")
    p.add_argument("name", nargs="?", choices=sorted(ATTACKS), metavar="NAME")
    p.add_argument("--list", action="store_true")
    p.add_argument("--to")
    p.add_argument("--link-key")
    p.add_argument("--insecure", action="store_true")
    p.add_argument("--signing-key", help="a trusted key that is not the victim's")
    p.add_argument("--seconds", type=float, default=10)
    p.add_argument("--rate", type=float, default=2000, help="datagrams a second")
    p.add_argument("--victim", type=victim, nargs="*", default=[], metavar="BUNDLE_ID[:LENGTH[:T[:B]]]")
    p.add_argument("--recorded", help="datagrams as send.py --record writes them")
    p.add_argument("--channel", default="default", help="the victim's channel")
    p.add_argument("--sequence", type=int, default=2, help="the next sequence of that channel")
    p.add_argument("--count", type=int, default=0, help="of objects, where the attack has a number of them")
    p.add_argument("--seed", type=int, help="for the same random choices again")
    return p, p.parse_args()


def main():
    parser, a = arguments()
    if a.list:
        listing()
        return 0
    if not a.name or not a.to or bool(a.link_key) == a.insecure:
        parser.error("NAME, --to, and either --link-key or --insecure are needed")
    position = Position(
        keys.read(a.link_key, keys.parse_link) if a.link_key else None,
        keys.read(a.signing_key, keys.parse_signing) if a.signing_key else None,
        a.victim,
        a.channel,
        a.sequence,
        list(read_recording(a.recorded)) if a.recorded else [],
        a.count,
        random.Random(a.seed),
    )
    print(f"{a.name}: {run([a.name], position, a.to, a.seconds, a.rate)} datagrams")
    return 0


if __name__ == "__main__":
    sys.exit(main())
