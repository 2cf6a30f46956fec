"""Which share of a split takes a request: by chance in proportion to the weights, or always the same one for a key.

With a key, it is weighted rendezvous hashing (Thaler and Ravishankar, 1998; weighted by Schindelhauer and Schomaker,
2005): each share draws a number for the key, skewed by its weight, and the highest takes it. So a share whose weight
grows only gains keys, each from the others, and one whose weight shrinks only loses some: a canary that goes from 5 %
to 10 % keeps whom it had. What is drawn depends on the key and on what the share leads to, nothing else: all gateways,
and all routes that split between the same versions alike, send a caller to the same one.
"""

import math
import random
from collections.abc import Callable, Sequence
from hashlib import blake2b
from itertools import accumulate

from quorate_core.errors import InvariantViolation

from quorate_gateway.documents.destinations import Destination
from quorate_gateway.policies.caller import Caller
from quorate_gateway.policies.limit_keys import KeyOf
from quorate_gateway.proxy.framing import RequestFields

ChooseDestination = Callable[[RequestFields, Caller], Destination]

_DRAW_BITS = 53
"""As many as a float holds exactly."""


def compile_split(
    destinations: Sequence[Destination], key_of: KeyOf | None, chance: random.Random
) -> ChooseDestination:
    """`key_of` is None when each request is for itself. So is one that has no key: all of these together could be most
    of the traffic, and would go to one share."""
    open_to = _open_shares(destinations)
    only = only_share(destinations)
    if only is not None:
        return lambda _fields, _caller: only
    by_chance = _by_chance(open_to, chance)
    if key_of is None:
        return lambda _fields, _caller: by_chance()
    by_key = _by_key(open_to)

    def choose(fields: RequestFields, caller: Caller) -> Destination:
        key = key_of(fields, caller)
        return by_key(key) if key else by_chance()

    return choose


def only_share(destinations: Sequence[Destination]) -> Destination | None:
    """The one that takes all requests; None when there are several that take some."""
    open_to = _open_shares(destinations)
    return open_to[0] if len(open_to) == 1 else None


def _open_shares(destinations: Sequence[Destination]) -> tuple[Destination, ...]:
    open_to = tuple(one for one in destinations if one.weight)
    if not open_to:
        raise InvariantViolation("a split has no share with a weight, which the document's validation refuses")
    return open_to


def _by_chance(shares: Sequence[Destination], chance: random.Random) -> Callable[[], Destination]:
    bounds = tuple(accumulate(share.weight for share in shares))
    total, draw = bounds[-1], chance.random
    pairs = tuple(zip(bounds[:-1], shares, strict=False))
    last = shares[-1]

    def choose() -> Destination:
        point = draw() * total
        for bound, share in pairs:
            if point < bound:
                return share
        return last

    return choose


def _by_key(shares: Sequence[Destination]) -> Callable[[bytes], Destination]:
    drawn = tuple((_salt(share), share.weight, share) for share in shares)

    def choose(key: bytes) -> Destination:
        best, best_score = drawn[0][2], -1.0
        for salt, weight, share in drawn:
            digest = blake2b(key, digest_size=8, key=salt).digest()
            # In (0, 1), never its ends: the logarithm of 0 is none, and that of 1 would win whatever the weight.
            draw = ((int.from_bytes(digest, "big") >> (64 - _DRAW_BITS)) + 0.5) / (1 << _DRAW_BITS)
            score = -weight / math.log(draw)
            if score > best_score:
                best, best_score = share, score
        return best

    return choose


def _salt(share: Destination) -> bytes:
    return blake2b(f"{share.service}\0{share.version or ''}".encode(), digest_size=32).digest()
