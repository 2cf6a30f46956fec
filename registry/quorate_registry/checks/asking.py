"""One check of one instance: whatever the peer does, it ends in time, and with a sentence that says what was seen.

A bad result is definite when the other side has said something, be it a refusal, and doubtful when nothing was heard:
no connection, no route, no address for the name, no answer in time. One that took much longer than it may tells of this
node, which was stopped or busy, and not of the instance.
"""

import asyncio
import errno

import structlog
from quorate_sdk.wire import GrpcCheck, HealthCheck, HttpCheck, TcpCheck

from quorate_registry.checks.dialing import NotConnected
from quorate_registry.checks.grpc import check_grpc
from quorate_registry.checks.http import EXCERPT_WAIT_S, check_http
from quorate_registry.checks.outcome import Outcome, Target, Undecided, Unhealthy
from quorate_registry.checks.resolver import Resolver
from quorate_registry.checks.tcp import check_tcp

STALL_S = 0.5
"""By more than this no loop is late that does its work."""

NETWORK_ERRORS = (errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENETDOWN, errno.EHOSTDOWN)
"""On a connection that there was: said by the network between, and not by the peer."""

log = structlog.get_logger(__name__)


async def ask(check: HealthCheck, target: Target, resolver: Resolver) -> Outcome:
    """Takes `check.timeout_s` seconds at most, and a moment for the beginning of a bad answer's body. Raises Undecided
    for what is wrong with this node."""
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    outcome = await _outcome(check, target, resolver)
    late_s = loop.time() - began_s - check.timeout_s - EXCERPT_WAIT_S
    if not outcome.is_good and late_s > STALL_S:
        raise Undecided(f"this node was {late_s:.1f} s late")
    return outcome


async def _outcome(check: HealthCheck, target: Target, resolver: Resolver) -> Outcome:
    try:
        return await _ask(check, target, resolver)
    except Undecided:
        raise
    except NotConnected as error:
        return Outcome.of(False, str(error), is_doubtful=error.is_doubtful)
    except Unhealthy as error:
        return Outcome.of(False, str(error))
    except TimeoutError:
        return Outcome.of(False, f"connected, and no whole answer within {check.timeout_s:g} s", is_doubtful=True)
    except OSError as error:
        text = f"the connection failed: {error.strerror or error}"
        return Outcome.of(False, text, is_doubtful=error.errno in NETWORK_ERRORS)
    except Exception as error:
        # What a peer sends goes through two parsers; a defect there that one peer can reach must not end the node.
        log.exception("registry_check_failed_itself", host=target.host, port=target.port, check=check.type)
        return Outcome.of(False, f"the check itself failed: {type(error).__name__}")


async def _ask(check: HealthCheck, target: Target, resolver: Resolver) -> Outcome:
    match check:
        case HttpCheck():
            return await check_http(check, target, resolver)
        case GrpcCheck():
            return await check_grpc(check, target, resolver)
        case TcpCheck():
            return await check_tcp(check, target, resolver)
