"""What one check of one instance has found. Pure."""

from typing import NamedTuple, Self

OUTPUT_CHARS_MAX = 256


class Target(NamedTuple):
    """Where an instance is asked."""

    scheme: str
    host: str
    port: int


class Outcome(NamedTuple):
    """`output` is for people: one printable line of at most OUTPUT_CHARS_MAX characters, whatever the peer has sent."""

    is_good: bool
    output: str

    @classmethod
    def of(cls, is_good: bool, text: str) -> Self:
        # Cut first: a peer's text may be long. What cannot be printed could act on a terminal.
        line = " ".join(text[: 4 * OUTPUT_CHARS_MAX].split())
        shown = "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in line)
        return cls(is_good, shown if len(shown) <= OUTPUT_CHARS_MAX else shown[: OUTPUT_CHARS_MAX - 1] + "…")


class Undecided(Exception):
    """Nothing was found out about the instance, because of this node; says why."""


class Unhealthy(Exception):
    """The peer has not answered as one that is well; says what it did."""
