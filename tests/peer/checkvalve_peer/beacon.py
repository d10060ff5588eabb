"""Beacons and their order. SPEC.md sections "Beacon" and "Epochs and sessions"."""

from dataclasses import dataclass, field
from typing import Any

from .encoding import Reader, Writer
from .errors import Refused
from .objects import MOST_BEACON, MOST_SEQUENCE, check_sequence, read_extensions, write_extensions
from .paths import check_channel

STATES = ["queued", "transmitting", "transmitted", "withdrawn"]


@dataclass
class OnWire:
    bundle: Any
    channel: Any
    sequence: Any
    number: Any = 1  # of this pass
    passes: Any = 1
    blocks: Any = 1
    sent: Any = 0


@dataclass
class Recent:
    sequence: Any
    bundle: Any
    bytes: Any = 0
    state: Any = 2
    name: Any = b""


@dataclass
class Channel:
    name: Any
    priority: Any = 0
    newest: Any = 0
    recent: Any = field(default_factory=list)


@dataclass
class Beacon:
    epoch: Any
    epoch_id: Any
    session: Any
    session_id: Any
    counter: Any
    clock: Any = 0
    rate: Any = 0
    datagrams: Any = 0
    on_wire: Any = None
    channel: Any = None
    extensions: Any = field(default_factory=list)

    def encode(self):
        w = Writer()
        for n in (self.epoch, self.epoch_id, self.session, self.session_id, self.counter):
            w.uint(n)
        w.uint(self.clock).uint(self.rate).uint(self.datagrams)
        w.option(self.on_wire, lambda o: write_on_wire(w, o))
        w.option(self.channel, lambda c: write_channel(w, c))
        write_extensions(w, self.extensions)
        return w.done()

    def fit(self, most=MOST_BEACON - 76):
        """Leaves out what a sender leaves out until the payload has at most `most` bytes."""
        while len(payload := self.encode()) > most:
            recent = self.channel.recent if self.channel else []
            if len(recent) > 1:
                recent.pop()
            elif recent and recent[0].name:
                recent[0].name = b""
            elif recent:
                recent.pop()
            elif self.channel:
                self.channel = None
            elif self.on_wire:
                self.on_wire = None
            else:
                break
        return payload


def write_on_wire(w, o):
    w.uint(o.bundle).bytes(o.channel).uint(o.sequence)
    w.uint(o.number).uint(o.passes).uint(o.blocks).uint(o.sent)


def write_channel(w, c):
    w.bytes(c.name).sint(c.priority, 16).uint(c.newest)
    w.list(c.recent, lambda b: w.uint(b.sequence).uint(b.bundle).uint(b.bytes).uint(b.state).bytes(b.name))


def decode_beacon(payload, signer):
    """`signer` is the public key that signed."""
    r = Reader(payload)
    u, u4 = r.uint, lambda: r.uint(4)
    b = Beacon(u(), u(), u(), u(), u(), u(), u(), u())
    b.on_wire = r.option(lambda: OnWire(u(), r.text(), u(), u4(), u4(), u4(), u4()))
    b.channel = r.option(
        lambda: Channel(
            r.text(), r.sint(2), u(), r.list(lambda: Recent(u(), u(), u(), r.choice(3), r.bytes()))
        )
    )
    b.extensions = read_extensions(r)
    r.end()
    for n in (b.epoch, b.session, b.counter):
        if not 1 <= n <= MOST_SEQUENCE:
            raise Refused("number")
    if b.on_wire:
        check_channel(b.on_wire.channel)
        check_sequence(b.on_wire.sequence)
        check_foreign(b.on_wire.bundle, signer)
    if b.channel:
        check_recent(b.channel, signer)
    return b


def check_foreign(bundle, signer):
    if bundle & 0xFFFFFF != signer.tag:
        raise Refused("foreign-bundle")


def check_recent(channel, signer):
    check_channel(channel.name)
    if channel.newest > MOST_SEQUENCE:
        raise Refused("sequence-too-large")
    before = channel.newest + 1
    for bundle in channel.recent:
        check_sequence(bundle.sequence)
        if bundle.sequence >= before:
            raise Refused("order")
        if len(bundle.name) > 255:
            raise Refused("name-too-long")
        check_foreign(bundle.bundle, signer)
        before = bundle.sequence


class Order:
    """What a receiver keeps of one key: the newest epoch and its newest sessions, 17 with the newest of all."""

    def __init__(self):
        self.epoch = None  # number, id
        self.sessions = {}  # number: [id, highest counter]

    def judge(self, b, datagram_session):
        """`counts`, or why it does not. Only a beacon that counts changes anything."""
        if b.session_id != datagram_session:
            return "sent on"
        if self.epoch is not None:
            if b.epoch < self.epoch[0]:
                return "old epoch"
            if b.epoch == self.epoch[0] and b.epoch_id != self.epoch[1]:
                return "another state"
        if self.epoch is None or b.epoch > self.epoch[0]:
            self.epoch = (b.epoch, b.epoch_id)
            self.sessions = {b.session: [b.session_id, b.counter]}
            return "counts"
        kept = self.sessions.get(b.session)
        newest = max(self.sessions)
        if kept and kept[0] != b.session_id:
            return "reused session"
        if kept and b.session < newest and b.counter > kept[1]:
            return "late session"
        if (kept is None and b.session < newest) or (kept and b.counter <= kept[1]):
            return "repeated"
        self.sessions[b.session] = [b.session_id, b.counter]
        for number in sorted(self.sessions)[:-17]:
            del self.sessions[number]
        return "counts"
