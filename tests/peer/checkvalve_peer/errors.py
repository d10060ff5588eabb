"""The one exception of this package: a rule of the specification is broken."""


class Refused(Exception):
    """Carries the name that the specification gives to the broken rule."""

    def __init__(self, rule, lines=None):
        super().__init__(rule)
        self.rule = rule
        self.lines = lines  # numbers of the wrong lines of a ticket
