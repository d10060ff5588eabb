"""Everything at once."""

from .base import ATTACKS, attack, interleave

# They build something large first, and would hold up those that they take turns with; or are many by themselves.
ALONE = {
    "largest_garbage_announce", "empty_files_million", "two_million_bytes_of_paths", "junk_100000",
    "storm_outside", "storm_link", "storm_signer",
}


def all_of(p, *positions):
    chosen = [a for n, a in ATTACKS.items() if a.position in positions and n not in ALONE]
    p.rng.shuffle(chosen)
    return interleave(*(a(p) for a in chosen))


@attack("none")
def storm_outside(p):
    """All attacks of somebody without keys, one datagram of each in turn."""
    return all_of(p, "none")


@attack("link", spoils=True)
def storm_link(p):
    """The same with the link key: room held by one attack helps the next."""
    return all_of(p, "none", "link")


@attack("signer", spoils=True)
def storm_signer(p):
    """The same with a trusted key of another channel."""
    return all_of(p, "none", "link", "signer")
