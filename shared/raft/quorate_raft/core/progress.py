"""The leader's view of one follower: what it is known to have, what was sent, and how much more may be sent.

States, as in etcd-io/raft's tracker:
- PROBE: the leader does not know where the logs agree. One request at a time, with entries or without; the answer, or a
  heartbeat's, allows the next.
- REPLICATE: they agree up to `match_index`. Requests follow each other without waiting, up to the window.
- SNAPSHOT: the follower needs entries that the log has no more, and is being sent a snapshot. No requests.

PROBE -> REPLICATE when a request is accepted. REPLICATE -> PROBE when one is rejected: something was lost. Both ->
SNAPSHOT when the next request would have to begin before the log does, or the follower asks for it; SNAPSHOT -> PROBE
when the snapshot has arrived, or was lost, or the follower turns out to have what was missing.
"""

from collections import deque
from enum import StrEnum

import msgspec


class ProgressState(StrEnum):
    PROBE = "probe"
    REPLICATE = "replicate"
    SNAPSHOT = "snapshot"


class FollowerStatus(msgspec.Struct, frozen=True):
    """A follower as its leader sees it, for people."""

    match_index: int
    next_index: int
    state: ProgressState
    is_recently_active: bool
    is_learner: bool


class Progress:
    """Invariant: `match_index < next_index`."""

    __slots__ = (
        "_inflight", "_inflight_bytes", "_inflight_bytes_max", "_inflight_messages_max", "commit_sent",
        "is_recently_active", "is_told_to_wait", "match_index", "next_index", "state", "was_active_before",
    )  # fmt: skip

    def __init__(self, next_index: int, inflight_messages_max: int, inflight_bytes_max: int) -> None:
        self.state = ProgressState.PROBE
        self.match_index = 0
        """The last entry known to be durable on the follower and equal to the leader's."""
        self.next_index = next_index
        """The next entry to send."""
        self.commit_sent = 0
        """The commit index that the last append request carried."""
        self.is_recently_active = False
        """Whether it answered since the last CheckQuorum."""
        self.was_active_before = False
        """The same for the time between the last two of them."""
        self.is_told_to_wait = False
        """PROBE: a request is out, or a snapshot was lost; an answer is awaited."""
        self._inflight: deque[tuple[int, int]] = deque()
        self._inflight_bytes = 0
        self._inflight_messages_max = inflight_messages_max
        self._inflight_bytes_max = inflight_bytes_max

    @property
    def may_send(self) -> bool:
        if self.state is ProgressState.REPLICATE:
            return not self.is_window_full
        return self.state is ProgressState.PROBE and not self.is_told_to_wait

    @property
    def is_window_full(self) -> bool:
        return len(self._inflight) >= self._inflight_messages_max or self._inflight_bytes >= self._inflight_bytes_max

    @property
    def is_alive(self) -> bool:
        """Whether it answered within the last election timeout or two."""
        return self.is_recently_active or self.was_active_before

    def begin_activity_period(self) -> None:
        """CheckQuorum looks, and begins to watch anew."""
        self.was_active_before = self.is_recently_active
        self.is_recently_active = False

    def on_sent(self, last_index: int, size_bytes: int) -> None:
        """REPLICATE: a request with entries up to `last_index` left."""
        self.next_index = last_index + 1
        self._inflight.append((last_index, size_bytes))
        self._inflight_bytes += size_bytes

    def on_accepted(self, match_index: int) -> bool:
        """The follower has everything up to `match_index`; says whether that is news."""
        is_news = match_index > self.match_index
        if is_news:
            self.match_index = match_index
        self.next_index = max(self.next_index, match_index + 1)
        if self.state is ProgressState.PROBE:
            # Only the answer to the newest probe says where the logs agree.
            if match_index == self.next_index - 1:
                self.state = ProgressState.REPLICATE
                self.is_told_to_wait = False
        else:
            self._free_to(match_index)
        return is_news

    def on_rejected(self, previous_index: int, next_probe_index: int) -> bool:
        """The request after `previous_index` did not fit. Says whether that was no stale answer, and probes if so."""
        if self.state is ProgressState.REPLICATE:
            if previous_index <= self.match_index:
                return False
            self.become_probe(self.match_index + 1)
            return True
        if self.state is ProgressState.SNAPSHOT or self.next_index - 1 != previous_index:
            return False
        self.become_probe(max(min(previous_index, next_probe_index + 1), self.match_index + 1))
        return True

    def become_probe(self, next_index: int, *, is_told_to_wait: bool = False) -> None:
        self._begin(ProgressState.PROBE)
        self.next_index = next_index
        self.is_told_to_wait = is_told_to_wait

    def become_snapshot(self) -> None:
        self._begin(ProgressState.SNAPSHOT)

    def _begin(self, state: ProgressState) -> None:
        self.state = state
        self._inflight.clear()
        self._inflight_bytes = 0

    def _free_to(self, index: int) -> None:
        inflight = self._inflight
        while inflight and inflight[0][0] <= index:
            self._inflight_bytes -= inflight.popleft()[1]
