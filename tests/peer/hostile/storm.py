"""Everything at once."""

from .base import ATTACKS, attack, interleave


def all_of(p, *positions):
    # Those that build large objects first would hold up the others.
    slow = {"largest_garbage_announce", "empty_files_million", "two_million_bytes_of_paths", "junk_100000"}
    chosen = [a for n, a in ATTACKS.items() if a.position in positions and n not in slow and not n.startswith("storm")]
    p.rng.shuffle(chosen)
    return interleave(*(a(p) for a in chosen))


@attack("none")
def storm_outside(p):
    """All attacks of somebody without keys, one datagram of each in turn."""
    return all_of(p, "none")


@attack("link")
def storm_link(p):
    """The same with the link key: room held by one attack helps the next."""
    return all_of(p, "none", "link")


@attack("signer")
def storm_signer(p):
    """The same with a trusted key of another channel."""
    return all_of(p, "none", "link", "signer")
