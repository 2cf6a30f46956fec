"""What one check of one instance has found. Pure."""

from typing import NamedTuple, Self

OUTPUT_CHARS_MAX = 256


class Target(NamedTuple):
    """Where an instance is asked."""

    scheme: str
    host: str
    port: int


class Outcome(NamedTuple):
    """`output` is for people: one printable line of at most OUTPUT_CHARS_MAX characters, whatever the peer has sent.
    `is_doubtful`: it is bad, and the other side has said nothing, so that it may tell of the network between."""

    is_good: bool
    output: str
    is_doubtful: bool = False

    @classmethod
    def of(cls, is_good: bool, text: str, *, is_doubtful: bool = False) -> Self:
        # Cut first: a peer's text may be long. What cannot be printed could act on a terminal.
        line = " ".join(text[: 4 * OUTPUT_CHARS_MAX].split())
        shown = "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in line)
        cut = shown if len(shown) <= OUTPUT_CHARS_MAX else shown[: OUTPUT_CHARS_MAX - 1] + "…"
        return cls(is_good, cut, is_doubtful)


class Undecided(Exception):
    """Nothing was found out about the instance, because of this node; says why."""


class Unhealthy(Exception):
    """The peer has not answered as one that is well; says what it did."""
