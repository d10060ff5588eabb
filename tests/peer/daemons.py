"""Starts the real daemons on loopback, and asks them; for test_receiver.py.

The programs are taken from $CHECKVALVE_BIN, or else from target/release.
"""

import json
import os
import re
import resource
import signal
import socket
import subprocess
import time
from pathlib import Path

from checkvalve_peer.datagram import DATA, Opener
from checkvalve_peer.errors import Refused
from checkvalve_peer.keys import LinkKey, SigningKey

# What the receiver may have open, and what it may ask for: so little that an attack finds its end.
OPEN_FILES = (256, 512)
BIN = Path(os.environ.get("CHECKVALVE_BIN") or Path(__file__).resolve().parents[2] / "target" / "release")


def wait(what, poll, seconds=60, pause=0.05):
    """The first true value of `poll`; fails after so many seconds."""
    end = time.monotonic() + seconds
    while True:
        value = poll()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f"after {seconds} s: {what() if callable(what) else what}")
        time.sleep(pause)


def free_port():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def secret(path, text):
    path.write_text(text)
    path.chmod(0o600)
    return path


class Daemon:
    """One daemon's process, and the commands that talk to it."""

    def __init__(self, side, directory, config):
        self.program = BIN / f"checkvalve-{side}"
        self.config = directory / f"{side}.toml"
        self.config.write_text(config)
        self.log_path = directory / f"{side}.log"
        self.process = None
        self.command("check-config")

    def start(self):
        environment = {k: v for k, v in os.environ.items() if k not in ("RUST_BACKTRACE", "CHECKVALVE_LOG")}
        limited = self.program.name == "checkvalve-receiver"
        with open(self.log_path, "ab") as log:
            self.process = subprocess.Popen(
                [self.program, "--config", self.config, "run"], stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment,
                preexec_fn=(lambda: resource.setrlimit(resource.RLIMIT_NOFILE, OPEN_FILES)) if limited else None,
            )
        wait(self.tail, lambda: self.alive() and self.run("status").returncode == 0, 30)

    def stop(self):
        if self.process and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def alive(self):
        if self.process.poll() is not None:
            raise AssertionError(f"{self.program.name} ended with {self.process.returncode}: {self.tail()}")
        return True

    def run(self, *args, **options):
        return subprocess.run([self.program, "--config", self.config, *args], capture_output=True, timeout=60, **options)

    def command(self, *args, **options):
        out = self.run(*args, **options)
        if out.returncode:
            raise AssertionError(f"{self.program.name} {args}: {out.returncode} {out.stderr!r}")
        return out.stdout

    def status(self):
        return json.loads(self.command("status", "--json"))

    def bundles(self, **fields):
        return [b for b in self.status()["bundles"] if all(b[k] == v for k, v in fields.items())]

    def log(self):
        return self.log_path.read_bytes()

    def tail(self):
        return b"\n".join(self.log().split(b"\n")[-8:]).decode("utf-8", "replace")

    def rss(self):
        """Bytes of memory, as the kernel counts them."""
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+)", text)[1]) * 1024


class Pair:
    """A sender and a receiver of one link, and the keys of those who attack it.

    `default` is the honest channel, which has a hook, and `other` that of the neighbour's key.
    """

    def __init__(self, directory, insecure=False, rate="16 Mbit/s", hook=None, memory=192 << 20):
        self.directory = directory
        self.link = None if insecure else LinkKey(os.urandom(32))
        self.honest, self.neighbour = (SigningKey.random() for _ in range(2))
        self.port = free_port()
        self.recorded = []
        self.symbol, self.most = 1408, 256
        for folder in ("spool", "low", "high", "inbox", "quarantine", "trusted", "made"):
            (directory / folder).mkdir(parents=True, mode=0o755)
        for name, key in (("honest", self.honest), ("neighbour", self.neighbour)):
            (directory / "trusted" / f"{name}.pub").write_text(key.public.file())
        secret(directory / "signing.key", self.honest.file())
        link = "insecure = true" if insecure else ""
        keys = ""
        if self.link:
            keys = f'link = "{secret(directory / "link.key", self.link.file())}"'
        if hook is None:
            hook = directory / "hook"
            hook.write_text("#!/bin/sh\nexit 0\n")
            hook.chmod(0o755)
        self.receiver = Daemon("receiver", directory, f"""
inbox = "{directory}/inbox"
quarantine = "{directory}/quarantine"
state = "{directory}/high"
control = "{directory}/high.sock"
silence = "5 s"
memory = "{memory >> 20} MiB"
[channel.default]
signers = ["{self.honest.id.hex()}"]
[channel.default.hook]
install = "{hook}"
[channel.other]
signers = ["{self.neighbour.id.hex()}"]
[link]
listen = "127.0.0.1:{self.port}"
{link}
[keys]
trusted = "{directory}/trusted"
{keys}
""")
        self.sender = Daemon("sender", directory, f"""
spool = "{directory}/spool"
state = "{directory}/low"
control = "{directory}/low.sock"
[channel.default]
[link]
destination = "127.0.0.1:{self.port}"
rate = "{rate}"
{link}
[fec]
repair = "30 %"
burst = "50 ms"
[keys]
signing = "{directory}/signing.key"
{keys}
""")

    @property
    def to(self):
        return f"127.0.0.1:{self.port}"

    def start(self):
        """Records a bundle while no receiver runs, then starts one and brings it what was recorded."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
            s.bind(("127.0.0.1", self.port))
            s.settimeout(0.2)
            self.sender.start()
            name = self.drop(200_000)
            beacons = 0
            end = time.monotonic() + 60
            while time.monotonic() < end and beacons < 3:
                try:
                    self.recorded.append(s.recv(65536))
                except TimeoutError:
                    beacons = sum(d[3] & 127 == 4 for d in self.recorded) if self.transmitted(name) else 0
        self.receiver.start()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
            for d in self.recorded:
                s.sendto(d, ("127.0.0.1", self.port))
        wait(lambda: self.receiver.bundles(), lambda: self.installed(name))
        opener = Opener(self.link)
        for d in self.recorded:
            try:
                d = opener.open(d)
            except Refused:
                continue
            if d.kind == DATA:
                self.symbol, self.most = d.symbol, d.most

    def stop(self):
        self.sender.stop()
        self.receiver.stop()

    def drop(self, size):
        """Renames a new file of random bytes into the spool; its name."""
        name = f"honest-{os.urandom(6).hex()}"
        content = os.urandom(size)
        (self.directory / "made" / name).write_bytes(content)
        (self.directory / "part").write_bytes(content)
        (self.directory / "part").rename(self.directory / "spool" / "default" / name)
        return name

    def low(self, name):
        """What the sender knows of a bundle of that name."""
        found = self.sender.bundles(name=name)
        return found[0] if found else None

    def high(self, name):
        found = self.receiver.bundles(name=name, channel="default")
        return found[0] if found else None

    def transmitted(self, name):
        found = self.low(name)
        return found and found["state"] == "transmitted"

    def installed(self, name):
        """Whether it is installed; then also byte for byte what was dropped."""
        found = self.high(name)
        if not found or found["state"] != "installed":
            return None
        path = self.directory / "inbox" / "default" / f"{found['sequence']:08}" / name
        assert path.read_bytes() == (self.directory / "made" / name).read_bytes(), name
        return found

    def staging(self):
        """Files and their bytes where unfinished bundles are."""
        files, size = 0, 0
        for folder, folders, names in os.walk(self.directory / "high" / "staging"):
            for name in names + folders:
                try:
                    size += os.lstat(os.path.join(folder, name)).st_blocks * 512
                    files += 1
                except FileNotFoundError:
                    pass
        return files, size
