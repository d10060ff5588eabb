"""Tickets: the content's bits, the lines and their checks. SPEC.md section "Ticket"."""

from blake3 import blake3

from .errors import Refused
from .paths import CHANNEL

ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
VALUE = {c: i for i, c in enumerate(ALPHABET)}
VALUE |= {c.lower(): i for c, i in VALUE.items()} | {"O": 0, "o": 0, "I": 1, "i": 1, "L": 1, "l": 1}
PASSED = set(" \t\r\f\v-\u00a0\u00ad\u2010\u2011\u2012\u2013\u2014\u2015\u2212")
CHANNEL_CODE = "abcdefghijklmnopqrstuvwxyz0123456789_-"
MATRIX = [(1, 28, 21, 26), (18, 6, 15, 26), (12, 27, 4, 26), (9, 1, 30, 26)]
MOST_LINES = 1023


# ---- GF(32)

def times(a, b):
    product = 0
    for bit in range(5):
        if b >> bit & 1:
            product ^= a << bit
    for bit in range(8, 4, -1):
        if product >> bit & 1:
            product ^= 0b100101 << (bit - 5)
    return product


def sums(symbols):
    """The four sums over the symbols (values by place)."""
    s = [0, 0, 0, 0]
    for i, c in symbols:
        part = times(c, i // 4 + 1)
        for j in range(4):
            s[j] ^= part
            part = times(part, i)
    return s


def line_check(symbols, n):
    """The check of line n, whose content has up to 28 symbols."""
    lacking = sums(enumerate(symbols))
    lacking[2] ^= n // 32
    lacking[3] ^= n % 32
    check = []
    for row in MATRIX:
        value = 0
        for factor, s in zip(row, lacking):
            value ^= times(factor, s)
        check.append(value)
    return check


# ---- bits

class Bits:
    def __init__(self, text=""):
        self.text = text
        self.at = 0

    def put(self, n, bits):
        self.text += format(n, f"0{bits}b") if bits else ""

    def golomb(self, v, k):
        h = format((v >> k) + 1, "b")
        self.text += "0" * (len(h) - 1) + h
        self.put(v & (1 << k) - 1, k)

    def get(self, bits):
        if self.at + bits > len(self.text):
            raise Refused("not-canonical")
        piece = self.text[self.at : self.at + bits]
        self.at += bits
        return int(piece, 2) if bits else 0

    def get_golomb(self, k):
        one = self.text.find("1", self.at)
        if one < 0 or one - self.at > 64:
            raise Refused("not-canonical")
        zeros = one - self.at
        self.at = one
        return (self.get(zeros + 1) - 1 << k) | self.get(k)


def golomb_bits(v, k):
    return 2 * ((v >> k) + 1).bit_length() - 1 + k


def best_order(values, most):
    return min(range(most + 1), key=lambda k: (sum(golomb_bits(v, k) for v in values), k))


# ---- content: dicts with the names of the test vectors; a range is (first, blocks, need)

def encode_content(t):
    out = Bits()
    out.put(1, 3)
    out.put("channel" in t, 1)
    out.put(t["loss"], 4)
    if "channel" in t:
        out.put(len(t["channel"]) - 1, 5)
        for c in t["channel"]:
            out.put(CHANNEL_CODE.index(c), 6)
        out.golomb(t["first"] - 1, 0)
        out.golomb(t["count"] - 1, 0)
    else:
        data = t["data"]
        out.put(t["announce"], 1)
        out.put(t["hashes"], 1)
        out.put({"nothing": 0, "all": 1}.get(data, 2) if isinstance(data, str) else 2, 2)
        out.put(t["bundle"], 64)
        if not isinstance(data, str):
            encode_ranges(out, data)
    out.text += "0" * (-len(out.text) % 20)
    return [int(out.text[i : i + 5], 2) for i in range(0, len(out.text), 5)]


def encode_ranges(out, ranges):
    end = 0
    rows = []
    for first, blocks, need in ranges:
        rows.append((first - end, blocks - 1, need))
        end = first + blocks
    orders = [best_order([row[i] for row in rows], most) for i, most in enumerate((31, 31, 15))]
    out.golomb(len(rows) - 1, 0)
    for order, bits in zip(orders, (5, 5, 4)):
        out.put(order, bits)
    for row in rows:
        for value, order in zip(row, orders):
            out.golomb(value, order)


def decode_content(symbols):
    """The content of these symbols, if they are the one way to write it."""
    bits = Bits("".join(format(s, "05b") for s in symbols))
    if bits.get(3) != 1:
        raise Refused("version")
    about_sequences, loss = bits.get(1), bits.get(4)
    t = decode_sequences(bits) if about_sequences else decode_bundle(bits)
    t["loss"] = loss
    if encode_content(t) != list(symbols):
        raise Refused("not-canonical")
    return t


def decode_sequences(bits):
    codes = [bits.get(6) for _ in range(bits.get(5) + 1)]
    if max(codes) >= len(CHANNEL_CODE):
        raise Refused("not-canonical")
    t = {"channel": "".join(CHANNEL_CODE[c] for c in codes)}
    t["first"], t["count"] = bits.get_golomb(0) + 1, bits.get_golomb(0) + 1
    if not CHANNEL.fullmatch(t["channel"]) or t["first"] + t["count"] - 1 >= 1 << 64:
        raise Refused("not-canonical")
    return t


def decode_bundle(bits):
    t = {"announce": bool(bits.get(1)), "hashes": bool(bits.get(1))}
    data = bits.get(2)
    t["bundle"] = bits.get(64)
    if data == 3 or not (t["announce"] or t["hashes"] or data):
        raise Refused("not-canonical")
    t["data"] = decode_ranges(bits) if data == 2 else ("nothing", "all")[data]
    return t


def decode_ranges(bits):
    count = bits.get_golomb(0) + 1
    a, b, c = bits.get(5), bits.get(5), bits.get(4)
    ranges, end = [], 0
    while len(ranges) < count:
        gap, blocks, need = bits.get_golomb(a), bits.get_golomb(b) + 1, bits.get_golomb(c)
        if need > 1024 or (ranges and gap == 0 and ranges[-1][2] == need):
            raise Refused("not-canonical")
        ranges.append((end + gap, blocks, need))
        end += gap + blocks
        if end > (1 << 32) - 1:
            raise Refused("not-canonical")
    return ranges


# ---- lines

def whole_check(symbols):
    head = blake3("".join(ALPHABET[s] for s in symbols).encode()).digest()
    bits = int.from_bytes(head[:3], "big") >> 4
    return [bits >> shift & 31 for shift in (15, 10, 5, 0)]


def write(t):
    """The text of a ticket."""
    content = encode_content(t)
    symbols = content + whole_check(content)
    lines = []
    for n, start in enumerate(range(0, len(symbols), 28), 1):
        line = symbols[start : start + 28]
        line = line + line_check(line, n)
        text = "".join(ALPHABET[s] for s in line)
        lines.append(" ".join(text[i : i + 4] for i in range(0, len(text), 4)) + "\n")
    return "".join(lines)


def wrong_lines(lines):
    wrong = []
    for n, line in enumerate(lines, 1):
        last = n == len(lines)
        shape = len(line) % 4 == 0 and (8 <= len(line) <= 32 if last else len(line) == 32)
        if not shape or None in line or line_check(line[:-4], n) != line[-4:]:
            wrong.append(n)
    return wrong


def read(text):
    """The content of a text as a person may have typed it."""
    lines = []
    for line in text.split("\n"):
        if line.lstrip().startswith("#"):
            continue
        symbols = [VALUE.get(c) for c in line if c not in PASSED]
        if symbols:
            lines.append(symbols)
    if not lines:
        raise Refused("empty")
    wrong = wrong_lines(lines)
    if wrong:  # perhaps only the line breaks are others
        joined = [s for line in lines for s in line]
        again = [joined[i : i + 32] for i in range(0, len(joined), 32)]
        if wrong_lines(again):
            raise Refused("lines", wrong)
        lines = again
    if len(lines) > MOST_LINES:
        raise Refused("too-many-lines")
    symbols = [s for line in lines for s in line[:-4]]
    content, check = symbols[:-4], symbols[-4:]
    if not content or whole_check(content) != check:
        raise Refused("whole")
    return decode_content(content)
