"""The leader's view of one follower: what it is known to have, what was sent, and how much more may be sent.

States, as in etcd-io/raft's tracker:
- PROBE: the leader does not know where the logs agree, only that it has entries that the follower lacks (its no-op at
  least). One request at a time; the answer, or a heartbeat's, allows the next.
- REPLICATE: they agree up to `match_index`. Requests follow each other without waiting, up to the window.

PROBE -> REPLICATE when a request is accepted. REPLICATE -> PROBE when one is rejected: something was lost.
"""

from collections import deque
from enum import Enum, auto


class ProgressState(Enum):
    PROBE = auto()
    REPLICATE = auto()


class Progress:
    """Invariant: `match_index < next_index`."""

    __slots__ = (
        "_inflight", "_inflight_bytes", "_inflight_bytes_max", "_inflight_messages_max", "commit_sent",
        "is_recently_active", "is_told_to_wait", "match_index", "next_index", "state",
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
        self.is_told_to_wait = False
        """PROBE: a request is out, its answer is awaited."""
        self._inflight: deque[tuple[int, int]] = deque()
        self._inflight_bytes = 0
        self._inflight_messages_max = inflight_messages_max
        self._inflight_bytes_max = inflight_bytes_max

    @property
    def may_send(self) -> bool:
        if self.state is ProgressState.PROBE:
            return not self.is_told_to_wait
        return not self.is_window_full

    @property
    def is_window_full(self) -> bool:
        return len(self._inflight) >= self._inflight_messages_max or self._inflight_bytes >= self._inflight_bytes_max

    def on_sent(self, last_index: int, size_bytes: int) -> None:
        """A request with entries up to `last_index` left."""
        if self.state is ProgressState.PROBE:
            self.is_told_to_wait = True
            return
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
            self._become_probe(self.match_index + 1)
            return True
        if self.next_index - 1 != previous_index:
            return False
        self._become_probe(max(min(previous_index, next_probe_index + 1), self.match_index + 1))
        return True

    def _become_probe(self, next_index: int) -> None:
        self.state = ProgressState.PROBE
        self.next_index = next_index
        self.is_told_to_wait = False
        self._inflight.clear()
        self._inflight_bytes = 0

    def _free_to(self, index: int) -> None:
        inflight = self._inflight
        while inflight and inflight[0][0] <= index:
            self._inflight_bytes -= inflight.popleft()[1]
