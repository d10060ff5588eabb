"""Path rules and names of channels. SPEC.md section "Path rules"."""

import re

from .errors import Refused

CHANNEL = re.compile(r"[a-z0-9_][a-z0-9_-]{0,31}")


def check_channel(name):
    if not CHANNEL.fullmatch(name):
        raise Refused("channel")


def check_path(path):
    if not path:
        raise Refused("path-empty")
    if path.startswith(b"/"):
        raise Refused("path-absolute")
    if len(path) > 4096:
        raise Refused("path-too-long")
    if b"\0" in path:
        raise Refused("path-nul")
    components = path.split(b"/")
    for component in components:
        if not component:
            raise Refused("path-empty-component")
        if component == b".":
            raise Refused("path-dot")
        if component == b"..":
            raise Refused("path-dotdot")
        if len(component) > 255:
            raise Refused("path-name-too-long")
    if len(components) > 128:
        raise Refused("path-too-deep")


def order(path):
    """Sorts paths as a walk through the tree meets them."""
    return path.replace(b"/", b"\0")


def check_target(path, target):
    """The target of a symlink at `path`."""
    if not target:
        raise Refused("target-empty")
    if target.startswith(b"/"):
        raise Refused("target-absolute")
    if len(target) >= 4096:
        raise Refused("target-too-long")
    if b"\0" in target:
        raise Refused("target-nul")
    depth = path.count(b"/") + 1
    ups = 0
    named = False
    for component in target.split(b"/"):
        if component in (b"", b"."):
            continue
        if component != b"..":
            named = True
        elif named:
            raise Refused("target-outside")
        else:
            ups += 1
    if depth == 1 or ups > depth - 2:
        raise Refused("target-outside")
