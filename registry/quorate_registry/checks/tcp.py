"""The TCP check: a connection is good. It is closed at once, and nothing is sent."""

from quorate_sdk.wire import TcpCheck

from quorate_registry.checks.dialing import connect
from quorate_registry.checks.outcome import Outcome, Target
from quorate_registry.checks.resolver import Resolver


async def check_tcp(check: TcpCheck, target: Target, resolver: Resolver) -> Outcome:
    """Raises NotConnected."""
    (await connect(resolver, target.host, target.port, check.timeout_s)).close()
    return Outcome.of(True, "connected")
