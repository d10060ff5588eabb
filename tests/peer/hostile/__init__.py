"""Hostile behaviours, by the position that they need; see attacks.py."""

from . import beacons, bundles, manifests, objects, outside, replays, storm  # noqa: F401 (each registers its attacks)
