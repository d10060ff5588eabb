"""Keys: their files, ids and tags, signatures, the key of a session. SPEC.md section "Keys"."""

import os
import re

from blake3 import blake3
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

LINK = "checkvalve-link-1"
SIGNING = "checkvalve-signing-1"
PUBLIC = "checkvalve-public-1"
DIGITS = re.compile(r"[0-9a-fA-F]{64}")


class LinkKey:
    """32 bytes that both sides of a link share."""

    def __init__(self, secret):
        assert len(secret) == 32
        self.secret = secret
        self.id = blake3(secret, derive_key_context="checkvalve link key id v1").digest()[:8]

    def session_key(self, session):
        """The key of AES-256-GCM of one session (an integer)."""
        info = session.to_bytes(8, "big")
        return HKDF(SHA256(), 32, b"checkvalve session v2", info).derive(self.secret)

    def file(self):
        return f"{LINK} {self.secret.hex()}\n"


class PublicKey:
    def __init__(self, raw, comment=""):
        self.raw = raw
        self.comment = comment
        self.id = blake3(raw).digest()[:8]
        self.tag = int.from_bytes(self.id[:3], "big")

    def verifies(self, signature, message):
        try:
            Ed25519PublicKey.from_public_bytes(self.raw).verify(signature, message)
            return True
        except (InvalidSignature, ValueError):
            return False

    def file(self):
        return f"{PUBLIC} {self.raw.hex()} {self.comment}".rstrip() + "\n"


class SigningKey:
    def __init__(self, seed, comment=""):
        self.seed = seed
        self._key = Ed25519PrivateKey.from_private_bytes(seed)
        raw = self._key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        self.public = PublicKey(raw, comment)
        self.id = self.public.id
        self.tag = self.public.tag

    @classmethod
    def random(cls):
        return cls(os.urandom(32))

    def sign(self, message):
        return self._key.sign(message)

    def bundle_id(self, high=None):
        """A bundle id of this key; its upper 40 bits are random unless given."""
        if high is None:
            high = int.from_bytes(os.urandom(5), "big")
        return (high << 24 | self.tag) or 1 << 24

    def file(self):
        return f"{SIGNING} {self.seed.hex()}\n"


def _fields(text, kind, most):
    """The fields of the single line of a key file, after its first."""
    fields = re.split(r"[ \t]+", text.strip(" \t\r\n"), maxsplit=most)
    if fields[0] != kind or len(fields) < 2 or not DIGITS.fullmatch(fields[1]):
        raise ValueError(f"not a {kind}")
    return bytes.fromhex(fields[1]), fields[2:]


def parse_link(text):
    secret, rest = _fields(text, LINK, 0)
    if rest:
        raise ValueError("something follows the digits")
    return LinkKey(secret)


def parse_signing(text):
    seed, rest = _fields(text, SIGNING, 0)
    if rest:
        raise ValueError("something follows the digits")
    return SigningKey(seed)


def parse_public(text):
    raw, rest = _fields(text, PUBLIC, 2)
    comment = rest[0] if rest else ""
    if len(comment.encode()) > 256 or re.search(r"[\x00-\x1f\x7f-\x9f]", comment):
        raise ValueError("the comment is too long, or has control characters")
    return PublicKey(raw, comment)


def read(path, parse):
    with open(path, encoding="utf-8") as file:
        return parse(file.read())
