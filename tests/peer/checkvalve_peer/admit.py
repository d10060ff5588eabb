"""What a receiver makes of announce and hashes. SPEC.md section "What a receiver believes"."""

from dataclasses import dataclass, field

from .encoding import Reader
from .errors import Refused
from .objects import decode_announce, decode_hashes, digest, open_signed


@dataclass
class Trust:
    keys: dict  # id: PublicKey
    channels: dict = field(default_factory=dict)  # channel: set of the ids of the only keys that may sign for it

    def allows(self, key, channel):
        return key.id in self.channels.get(channel, (key.id,))


@dataclass
class Admitted:
    announce: object
    digest: bytes
    signer: bytes
    hashes: object = None


class Verdict(Exception):
    """discard, unknown (discarded for now) or refuse, and why."""

    def __init__(self, verdict, rule):
        super().__init__(verdict, rule)
        self.verdict = verdict
        self.rule = rule


def _open(role, data, trust):
    try:
        return open_signed(role, data, trust.keys)
    except Refused as e:
        raise Verdict("unknown" if e.rule == "unknown-key" else "discard", e.rule) from None


def _rightly(key, claimed, bundle):
    if claimed & 0xFFFFFF != key.tag:
        raise Verdict("discard", "foreign-bundle")
    if claimed != bundle:
        raise Verdict("discard", "other-bundle")


def admit_announce(bundle, data, trust):
    key, payload = _open("announce", data, trust)
    r = Reader(payload)
    try:  # as far as the fields that the checks need
        claimed, channel = r.uint(), r.text()
    except Refused as e:
        raise Verdict("discard", e.rule) from None
    _rightly(key, claimed, bundle)
    if not trust.allows(key, channel):
        raise Verdict("unknown", "not-for-channel")
    try:
        return Admitted(decode_announce(payload), digest(data), key.id)
    except Refused as e:
        raise Verdict("refuse", e.rule) from None


def admit_hashes(bundle, data, admitted, trust):
    key, payload = _open("hashes", data, trust)
    try:
        claimed = Reader(payload).uint()
    except Refused as e:
        raise Verdict("discard", e.rule) from None
    _rightly(key, claimed, bundle)
    if not trust.allows(key, admitted.announce.channel):
        raise Verdict("unknown", "not-for-channel")
    try:
        hashes = decode_hashes(payload)
    except Refused as e:
        raise Verdict("refuse", e.rule) from None
    if hashes.announce != admitted.digest:
        raise Verdict("discard", "other-announce")
    if key.id != admitted.signer:
        raise Verdict("discard", "other-signer")
    if hashes.hashes is not None and len(hashes.hashes) != len(admitted.announce.files()):
        raise Verdict("refuse", "hash-count")
    return hashes


def admit(bundle, announce, hashes, trust):
    """(verdict, rule, Admitted or None) of signed objects that came under the id `bundle`; hashes may be None."""
    try:
        admitted = admit_announce(bundle, announce, trust)
        if hashes is not None:
            admitted.hashes = admit_hashes(bundle, hashes, admitted, trust)
        return "admitted", "ok", admitted
    except Verdict as v:
        return v.verdict, v.rule, None
