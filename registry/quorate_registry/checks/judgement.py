"""What results in a row decide of one instance. Pure.

Nothing is decided until the first result, which decides alone. From then on a result that agrees ends every row of
those that do not; `unhealthy_after` bad ones in a row turn good into bad, `healthy_after` good ones bad into good. A
node that takes over goes on from what its predecessor has decided, with no row begun.
"""

from quorate_sdk.wire import HealthCheck


class Judgement:
    def __init__(self, check: HealthCheck, is_passing: bool | None) -> None:
        """`is_passing`: what is decided already; None: nothing."""
        self.is_passing = is_passing
        self._check = check
        self._contrary_in_a_row = 0

    def reinstate(self) -> None:
        """It is well: what it was thought to be was in doubt."""
        self.is_passing = True
        self._contrary_in_a_row = 0

    def take(self, is_good: bool) -> bool:
        """Whether this result has decided anew."""
        if is_good == self.is_passing:
            self._contrary_in_a_row = 0
            return False
        self._contrary_in_a_row += 1
        needed = self._check.healthy_after if is_good else self._check.unhealthy_after
        if self.is_passing is not None and self._contrary_in_a_row < needed:
            return False
        self.is_passing = is_good
        self._contrary_in_a_row = 0
        return True
