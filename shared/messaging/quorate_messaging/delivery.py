"""What becomes of an event after an attempt to deliver it. Pure: time and randomness are arguments.

States of an outbox row, and every transition:

    PENDING   --delivered-->                        DELIVERED
    PENDING   --retry, attempts left-->             PENDING, due after a backoff
    PENDING   --retry, attempts used up-->          DEAD
    PENDING   --refused for good-->                 DEAD
    DEAD      --requeued by an operator-->          PENDING (outbox.py)

A DEAD event holds back the later events of its aggregate: they tell of something that the consumer has not been told
the beginning of. An event that is claimed for delivery stays PENDING and is due again when the lease of the claim
ends, so nothing needs to happen for the events of a relay that died.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

LAST_ERROR_CHARS_MAX = 500
_EXPONENT_MAX = 30

ANOTHER_TIME_OR_PLACE = frozenset({401, 403, 404, 405, 408, 409, 421, 425, 429})
"""The 4xx answers that speak of when, where or by whom the event was sent, not of the event itself. An address may be
stale and belong to another service by now (404, 405, 421), and a credential can be put right (401, 403)."""


class Verdict(StrEnum):
    DELIVERED = "delivered"
    RETRY = "retry"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one attempt ended; `detail` is for people, empty when delivered."""

    verdict: Verdict
    detail: str = ""


DELIVERED = Outcome(Verdict.DELIVERED)


class DeliveryStatus(StrEnum):
    PENDING = "PENDING"
    DELIVERED = "DELIVERED"
    DEAD = "DEAD"


@dataclass(frozen=True, slots=True)
class RelayPolicy:
    """The limits of a relay. `lease_s` is longer than `send_timeout_s`, so that a claim outlives its attempt."""

    send_timeout_s: float = 5.0
    lease_s: float = 15.0
    backoff_s_first: float = 0.2
    backoff_s_max: float = 30.0
    attempts_max: int = 3_000
    """About a day at the longest backoff."""
    concurrency_max: int = 32
    """Events under way at once, each of another aggregate."""
    poll_interval_s: float = 1.0
    """How soon an event of another process is seen, when that process does not send it itself."""


@dataclass(frozen=True, slots=True)
class DeliveryState:
    status: DeliveryStatus
    next_attempt_at_s: float
    last_error: str


def verdict_of_status(status: int) -> Verdict:
    """What an HTTP status says about an event that was sent (RFC 9110, section 15)."""
    if 200 <= status < 300:
        return Verdict.DELIVERED
    if 400 <= status < 500 and status not in ANOTHER_TIME_OR_PLACE:
        return Verdict.REFUSED
    return Verdict.RETRY


def backoff_s(policy: RelayPolicy, attempts: int, random: Callable[[], float]) -> float:
    """Seconds until the next attempt after `attempts` failed ones: doubling, capped, the upper half by lot.

    `random` gives a number in [0, 1). The lot keeps relays that failed together from coming back together.
    """
    longest = min(policy.backoff_s_max, policy.backoff_s_first * 2.0 ** min(attempts - 1, _EXPONENT_MAX))
    return longest * (0.5 + 0.5 * random())


def state_after(
    policy: RelayPolicy, attempts: int, outcome: Outcome, now_s: float, random: Callable[[], float]
) -> DeliveryState:
    """The state of an event after its attempt number `attempts` (from 1) ended at `now_s` with `outcome`."""
    error = outcome.detail[:LAST_ERROR_CHARS_MAX]
    if outcome.verdict is Verdict.DELIVERED:
        return DeliveryState(DeliveryStatus.DELIVERED, now_s, error)
    if outcome.verdict is Verdict.REFUSED or attempts >= policy.attempts_max:
        return DeliveryState(DeliveryStatus.DEAD, now_s, error)
    return DeliveryState(DeliveryStatus.PENDING, now_s + backoff_s(policy, attempts, random), error)
