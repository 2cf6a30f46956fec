"""What the data plane counts: plain integers on the hot path, read only when metrics are scraped."""

from bisect import bisect_left

LATENCY_BOUNDS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Upper bounds of the latency histogram; one bucket more for what is above."""
CLIENT_GONE = 0
"""In the place of a status: the client left before its answer had ended."""


class RouteCounters:
    """One route's. `ended` is by hundreds of the status, with CLIENT_GONE at 0."""

    __slots__ = ("active", "ended", "latency_buckets", "latency_sum_s", "retries", "retries_refused")

    def __init__(self) -> None:
        self.active = 0
        self.ended = [0, 0, 0, 0, 0, 0]
        self.latency_buckets = [0] * (len(LATENCY_BOUNDS_S) + 1)
        self.latency_sum_s = 0.0
        self.retries = 0
        self.retries_refused = 0
        """Tries that there were no more for want of budget."""

    def count(self, status: int, latency_s: float) -> None:
        """One request has ended, `latency_s` after its head was read."""
        self.ended[status // 100] += 1
        self.latency_buckets[bisect_left(LATENCY_BOUNDS_S, latency_s)] += 1
        self.latency_sum_s += latency_s


class PlaneCounters:
    """The whole data plane's. `refusals` are by rule; rules are few and fixed."""

    __slots__ = ("connections_accepted", "connections_refused", "refusals", "routes", "truncated")

    def __init__(self) -> None:
        self.connections_accepted = 0
        self.connections_refused = 0
        self.truncated = 0
        """Answers that could not be passed on to their end."""
        self.refusals: dict[str, int] = {}
        self.routes: dict[str, RouteCounters] = {}

    def route(self, name: str) -> RouteCounters:
        found = self.routes.get(name)
        if found is None:
            found = self.routes[name] = RouteCounters()
        return found

    def refused(self, rule: str) -> None:
        self.refusals[rule] = self.refusals.get(rule, 0) + 1

    def keep_routes(self, names: frozenset[str]) -> None:
        """Forget routes that are no more and have nothing running, so that names which come and go stay bounded."""
        gone = [name for name, counters in self.routes.items() if name not in names and not counters.active]
        for name in gone:
            del self.routes[name]
