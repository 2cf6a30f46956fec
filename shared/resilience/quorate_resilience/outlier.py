"""Outlier ejection: a single endpoint that keeps failing is passed over for a while, although others vouch for it.

Theory of operation. A member is *in* or *ejected*. So many failures one after the other, with no success between them,
eject a member that is in, unless as many are ejected as may be: when most of a service fails, the service is what
fails, and leaving endpoints out only loads the rest. An ejection ends by itself, and the member is in again *on trial*:
a single failure ejects it once more, until it has succeeded once. Ejections in a row last longer, each by the first
one's time, up to a maximum; in a row are those that begin before the member has stayed in for as long as it was out.
What becomes of requests that were begun before an ejection says nothing about the time after it, and does not count.

The owner says who is a member (`keep`), and what became of each request (`succeeded`, `failed`). State follows the
member's identity, and goes when it goes. Time is an argument, and does not go back.
"""

import math
from collections.abc import Collection
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EjectionSettings:
    """Raises ValueError for values that can mean nothing."""

    consecutive_failures: int = 5
    ejection_s: float = 10.0
    """Of the first ejection; each further one in a row lasts so much longer."""
    ejection_s_max: float = 300.0
    ejected_percent_max: float = 50.0
    """Of the members. Of two or more, one may always be ejected, and one always stays."""

    def __post_init__(self) -> None:
        if self.consecutive_failures < 1:
            raise ValueError(f"consecutive_failures must be at least 1, not {self.consecutive_failures}")
        for name, value in (("ejection_s", self.ejection_s), ("ejection_s_max", self.ejection_s_max)):
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} must be a finite number above 0, not {value}")
        if not 0 <= self.ejected_percent_max <= 100:
            raise ValueError(f"ejected_percent_max must be 0 to 100, not {self.ejected_percent_max}")


class _Record:
    __slots__ = ("ejected_until_s", "ejections", "failures", "is_ejected", "lasted_s")

    def __init__(self) -> None:
        self.failures = 0
        """One after the other."""
        self.is_ejected = False
        self.ejected_until_s = -math.inf
        """Of the last ejection, whether it has ended or not."""
        self.ejections = 0
        """Those in a row, as of when the last one began."""
        self.lasted_s = 0.0
        """The last one, by its beginning."""


class OutlierEjection:
    """The members of one service, by identity."""

    __slots__ = ("_ejected", "_records", "ejections", "returns_s", "settings")

    def __init__(self, settings: EjectionSettings | None = None) -> None:
        self.settings = settings or EjectionSettings()
        self._records: dict[str, _Record] = {}
        self._ejected: dict[str, _Record] = {}
        self.ejections = 0
        """From the beginning on."""
        self.returns_s = math.inf
        """When the next one is in again; inf while nobody is ejected. `advance` is then due."""

    def keep(self, members: Collection[str]) -> None:
        """Let these be the members. Those that are left in too small a number by others that went are in again, the
        nearest to its time first."""
        wanted = frozenset(members)
        for identity in self._records.keys() - wanted:
            del self._records[identity]
            self._ejected.pop(identity, None)
        for identity in wanted - self._records.keys():
            self._records[identity] = _Record()
        while len(self._ejected) > self._ejected_max():
            self._let_in(min(self._ejected, key=lambda identity: (self._ejected[identity].ejected_until_s, identity)))
        self._set_returns()

    def succeeded(self, member: str) -> None:
        record = self._records.get(member)
        if record is not None and not record.is_ejected:
            record.failures = 0

    def failed(self, member: str, now_s: float) -> bool:
        """Whether it is ejected for it. Call `advance` before, when it is due."""
        record = self._records.get(member)
        if record is None or record.is_ejected:
            return False
        record.failures += 1
        if record.failures < self.settings.consecutive_failures or len(self._ejected) >= self._ejected_max():
            return False
        settings = self.settings
        if now_s >= record.ejected_until_s + record.lasted_s:
            record.ejections = 0
        record.ejections += 1
        record.lasted_s = min(record.ejections * settings.ejection_s, settings.ejection_s_max)
        record.ejected_until_s = now_s + record.lasted_s
        record.is_ejected = True
        record.failures = settings.consecutive_failures - 1  # on trial when it is back
        self._ejected[member] = record
        self.ejections += 1
        self._set_returns()
        return True

    def advance(self, now_s: float) -> list[str]:
        """Let those in again whose time is over, and say who they are."""
        if now_s < self.returns_s:
            return []
        back = [identity for identity, record in self._ejected.items() if now_s >= record.ejected_until_s]
        for identity in back:
            self._let_in(identity)
        self._set_returns()
        return back

    @property
    def ejected(self) -> Collection[str]:
        """As of the last `advance`."""
        return self._ejected.keys()

    def ejected_until_s(self, member: str) -> float | None:
        """None when it is in."""
        record = self._ejected.get(member)
        return None if record is None else record.ejected_until_s

    def failures(self, member: str) -> int:
        record = self._records.get(member)
        return 0 if record is None else record.failures

    def _ejected_max(self) -> int:
        members = len(self._records)
        return min(max(1, int(members * self.settings.ejected_percent_max / 100)), max(members - 1, 0))

    def _let_in(self, identity: str) -> None:
        self._ejected.pop(identity).is_ejected = False

    def _set_returns(self) -> None:
        self.returns_s = min((record.ejected_until_s for record in self._ejected.values()), default=math.inf)
