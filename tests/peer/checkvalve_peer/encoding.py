"""Integers, bytes, lists, options and choices. SPEC.md section "Encoding".

The writer checks nothing: any field may be a `Raw`, whose bytes are written as they are, so that malformed objects
can be made too.
"""

from .errors import Refused

WIDEST = {2: 251, 4: 252, 8: 253}  # bytes of the field's type: the widest marker


class Raw(bytes):
    """Bytes to be written in the place of a field, as they are."""


def fold(n, bits=64):
    """A signed integer as an unsigned one."""
    return (2 * n if n >= 0 else -2 * n - 1) & ((1 << bits) - 1)


def uint(n):
    if n <= 250:
        return bytes([n])
    for marker, size in ((251, 2), (252, 4), (253, 8)):
        if n < 1 << 8 * size:
            return bytes([marker]) + n.to_bytes(size, "little")
    return b"\xfe" + n.to_bytes(16, "little")  # a value that no field can hold


class Writer:
    def __init__(self):
        self.parts = []

    def raw(self, data):
        self.parts.append(bytes(data))
        return self

    def uint(self, n):
        return self.raw(n if isinstance(n, Raw) else uint(n))

    def sint(self, n, bits=64):
        return self.raw(n if isinstance(n, Raw) else uint(fold(n, bits)))

    def bytes(self, data):
        """Bytes or text, with their number in front."""
        if isinstance(data, Raw):
            return self.raw(data)
        if isinstance(data, str):
            data = data.encode()
        self.uint(len(data))
        return self.raw(data)

    def list(self, items, write):
        """A list; `write` is called with each element."""
        if isinstance(items, Raw):
            return self.raw(items)
        self.uint(len(items))
        for item in items:
            write(item)
        return self

    def option(self, value, write):
        if isinstance(value, Raw):
            return self.raw(value)
        self.raw(b"\0" if value is None else b"\1")
        if value is not None:
            write(value)
        return self

    def done(self):
        return b"".join(self.parts)


class Reader:
    def __init__(self, data):
        self.data = data
        self.at = 0

    def take(self, n):
        if n > len(self.data) - self.at:
            raise Refused("truncated")
        piece = self.data[self.at : self.at + n]
        self.at += n
        return piece

    def uint(self, size=8):
        """An unsigned integer of a type of `size` bytes."""
        marker = self.take(1)[0]
        if marker <= 250:
            return marker
        if marker > WIDEST[size]:
            raise Refused("integer")
        return int.from_bytes(self.take(2 << (marker - 251)), "little")

    def sint(self, size=8):
        n = self.uint(size)
        return n >> 1 if n & 1 == 0 else -(n >> 1) - 1

    def bytes(self):
        return self.take(self.uint())

    def text(self):
        try:
            return self.bytes().decode("utf-8")
        except UnicodeDecodeError:
            raise Refused("utf8") from None

    def list(self, read):
        # Nothing is reserved: what is declared and not there ends the reading at the first element that is missing.
        count = self.uint()
        items = []
        while len(items) < count:
            items.append(read())
        return items

    def option(self, read):
        mark = self.take(1)[0]
        if mark > 1:
            raise Refused("tag")
        return read() if mark else None

    def choice(self, most):
        tag = self.uint(4)
        if tag > most:
            raise Refused("value")
        return tag

    def left(self):
        return len(self.data) - self.at

    def end(self):
        if self.left():
            raise Refused("trailing-bytes")
