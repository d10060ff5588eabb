"""A second implementation of the checkvalve protocol, version 2, from protocol/SPEC.md alone."""
