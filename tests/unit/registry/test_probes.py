"""A probe tells a process that is gone from a network that is."""

import socket

from quorate_registry.checks.resolver import Resolver
from quorate_registry.probes import Finding, probe
from support.check_servers import full_listener, hold, scripted_server, unused_port


async def test_somebody_who_listens_is_connected_to() -> None:
    async with scripted_server(hold) as port:
        assert await probe(Resolver(), "127.0.0.1", port) is Finding.CONNECTED


async def test_a_process_that_is_stopped_still_has_its_port() -> None:
    """SIGSTOP leaves the listening socket with the kernel: it is connected to, and so not taken for dead."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(8)
        assert await probe(Resolver(), "127.0.0.1", listener.getsockname()[1]) is Finding.CONNECTED


async def test_only_a_refusal_says_that_it_is_gone() -> None:
    assert await probe(Resolver(), "127.0.0.1", unused_port()) is Finding.REFUSED


async def test_silence_no_name_and_a_forbidden_address_are_undecided() -> None:
    with full_listener() as port:
        assert await probe(Resolver(), "127.0.0.1", port, timeout_s=0.1) is Finding.UNDECIDED
    assert await probe(Resolver(lambda _: []), "gone.example", 80) is Finding.UNDECIDED
    assert await probe(Resolver(), "169.254.169.254", 80) is Finding.UNDECIDED
