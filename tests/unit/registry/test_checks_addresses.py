"""Where a node may be sent by what users register, and where not; names are judged by what they lead to now."""

import asyncio
import resource
import socket
import threading
from collections.abc import Sequence
from ipaddress import ip_address

import pytest
from quorate_core.tasks import TaskOwner
from quorate_registry.checks import resolver as resolver_module
from quorate_registry.checks.addresses import refused_address, refused_host
from quorate_registry.checks.dialing import NotConnected, connect
from quorate_registry.checks.outcome import Undecided
from quorate_registry.checks.resolver import ADDRESSES_MAX, Resolver
from quorate_registry.probes import Finding, probe
from support.check_servers import full_listener, hold, scripted_server, unused_port
from support.registry_server import WAIT_S_MAX

REFUSED = [
    "169.254.169.254", "169.254.0.1", "169.254.170.2", "100.100.100.200", "168.63.129.16", "192.0.0.192",
    "0.0.0.0", "0.1.2.3", "224.0.0.1", "239.255.255.250", "255.255.255.255",
    "fe80::1", "febf::1", "fd00:ec2::254", "fd20:ce::254", "::", "ff02::1",
    "::ffff:169.254.169.254", "::ffff:0.0.0.0", "::169.254.169.254", "64:ff9b::169.254.169.254", "2002:a9fe:a9fe::1",
]  # fmt: skip
ALLOWED = [
    "127.0.0.1", "10.0.0.7", "172.17.0.2", "192.168.1.20", "100.64.0.1", "100.100.100.201", "8.8.8.8", "169.253.1.1",
    "::1", "fd00::1", "2001:db8::1", "::ffff:10.0.0.7", "64:ff9b::8.8.8.8",
]  # fmt: skip


@pytest.mark.parametrize("text", REFUSED)
def test_addresses_where_no_instance_is_are_refused(text: str) -> None:
    assert refused_address(ip_address(text)) is not None
    assert refused_host(text) is not None


@pytest.mark.parametrize("text", ALLOWED)
def test_private_loopback_and_public_addresses_are_allowed(text: str) -> None:
    assert refused_address(ip_address(text)) is None
    assert refused_host(text) is None


@pytest.mark.parametrize("text", ["0xa9fea9fe", "2852039166", "169.254.43518", "0251.0376.0251.0376", "169.16689662"])
def test_an_address_that_only_resolvers_read_as_one_is_refused_as_well(text: str) -> None:
    """As getaddrinfo has them, so that writing it in another way leads nowhere."""
    assert socket.gethostbyname(text) == "169.254.169.254"
    assert refused_host(text) is not None


@pytest.mark.parametrize("text", ["metadata.google.internal", "order-1", "a.b.c", "1.2.3.4.example"])
def test_a_name_is_judged_later(text: str) -> None:
    assert refused_host(text) is None


async def test_a_name_that_leads_to_a_metadata_service_by_now_is_not_asked() -> None:
    """DNS that changes between the registration and the check."""
    answers = {"order.example": ["127.0.0.1"]}
    resolver = Resolver(lambda host: answers[host])
    async with scripted_server(hold) as port:
        (await connect(resolver, "order.example", port, WAIT_S_MAX)).close()
        answers["order.example"] = ["169.254.169.254"]
        with pytest.raises(NotConnected, match=r"^not asked: order\.example leads to 169\.254\.169\.254") as raised:
            await connect(resolver, "order.example", port, WAIT_S_MAX)
    assert not raised.value.is_refused


async def test_one_dishonest_address_of_a_name_refuses_all_of_it() -> None:
    async with scripted_server(hold) as port:
        with pytest.raises(NotConnected, match=r"fe80::1"):
            await connect(Resolver(lambda _: ["127.0.0.1", "fe80::1"]), "order.example", port, WAIT_S_MAX)


async def test_the_next_address_is_tried_when_one_refuses() -> None:
    async with scripted_server(hold, "127.0.0.2") as port:
        connection = await connect(Resolver(lambda _: ["127.0.0.1", "127.0.0.2"]), "order.example", port, WAIT_S_MAX)
        assert connection.getpeername() == ("127.0.0.2", port)
        connection.close()


async def test_an_address_that_swallows_packets_leaves_time_for_the_next() -> None:
    with full_listener() as port:
        async with scripted_server(hold, "127.0.0.2", port):
            connection = await connect(Resolver(lambda _: ["127.0.0.1", "127.0.0.2"]), "order.example", port, 0.4)
            assert connection.getpeername()[0] == "127.0.0.2"
            connection.close()


async def test_nobody_who_listens_is_a_refusal_and_silence_is_none() -> None:
    with pytest.raises(NotConnected, match=r"nobody listens at 127\.0\.0\.1:") as refused:
        await connect(Resolver(), "127.0.0.1", unused_port(), WAIT_S_MAX)
    assert refused.value.is_refused
    with full_listener() as port, pytest.raises(NotConnected, match=r"no connection to .* within 0\.\d+ s") as silent:
        await connect(Resolver(), "127.0.0.1", port, 0.1)
    assert not silent.value.is_refused


async def test_a_refusal_by_one_address_and_silence_of_another_is_no_refusal() -> None:
    with full_listener() as port:
        names = Resolver(lambda _: ["127.0.0.1", "127.0.0.2"])
        with pytest.raises(NotConnected) as raised:
            await connect(names, "order.example", port, 0.2)
    assert not raised.value.is_refused


async def test_a_name_that_has_no_address_says_so() -> None:
    def unknown(host: str) -> Sequence[str]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    with pytest.raises(NotConnected, match=r"order\.example cannot be resolved: Name or service not known"):
        await connect(Resolver(unknown), "order.example", 80, WAIT_S_MAX)
    with pytest.raises(NotConnected, match="has no address"):
        await connect(Resolver(lambda _: []), "order.example", 80, WAIT_S_MAX)
    with pytest.raises(NotConnected, match="cannot be resolved"):
        await connect(Resolver(), "a" * 64 + ".example", 80, WAIT_S_MAX)


async def test_of_many_addresses_only_some_are_tried() -> None:
    found = await Resolver(lambda _: [f"10.0.0.{number}" for number in range(1, 20)]).resolve("order.example")
    assert len(found) == ADDRESSES_MAX


async def test_names_that_nobody_answers_for_hold_no_more_than_their_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop's own threads stay free, who waits is bounded, and each is given up in its time."""
    monkeypatch.setattr(resolver_module, "RESOLVER_THREADS_MAX", 2)
    answered = threading.Event()
    asked: list[str] = []

    def slow(host: str) -> Sequence[str]:
        asked.append(host)
        answered.wait(WAIT_S_MAX)
        return ["127.0.0.1"]

    resolver = Resolver(slow)
    before = threading.active_count()

    async def ask(number: int) -> str:
        try:
            (await connect(resolver, f"order-{number}.example", 1, 0.1)).close()
        except NotConnected as error:
            return str(error)
        return "connected"

    said = await asyncio.gather(*(ask(number) for number in range(50)))
    assert threading.active_count() == before + 2
    assert all("was not resolved within 0.1 s" in text for text in said)
    answered.set()
    # Those that were given up are not looked up any more.
    assert [str(address) for address in await resolver.resolve("last.example")] == ["127.0.0.1"]
    assert len(asked) == 3


async def test_more_names_than_may_wait_are_refused_at_once() -> None:
    answered = threading.Event()

    def slow(host: str) -> Sequence[str]:
        answered.wait(WAIT_S_MAX)
        return ["127.0.0.1"]

    resolver = Resolver(slow)
    async with TaskOwner("names") as tasks:
        waiting = {
            tasks.start(_refusal(resolver, f"order-{number}.example"), "name")
            for number in range(resolver_module.QUESTIONS_WAITING_MAX + resolver_module.RESOLVER_THREADS_MAX + 1)
        }
        done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED, timeout=WAIT_S_MAX)
        assert "wait for the resolver already" in done.pop().result()
        answered.set()
        assert "" in await asyncio.gather(*waiting)


async def _refusal(resolver: Resolver, host: str) -> str:
    try:
        await resolver.resolve(host)
    except Undecided as error:
        return str(error)
    return ""


async def test_what_this_node_is_short_of_says_nothing_of_the_instance() -> None:
    """No more file descriptors: the socket cannot be made, whoever listens."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    async with scripted_server(hold) as port:
        with socket.socket() as highest:
            resource.setrlimit(resource.RLIMIT_NOFILE, (highest.fileno() + 1, hard))
            try:
                with pytest.raises(Undecided, match="Too many open files"):
                    await connect(Resolver(), "127.0.0.1", port, WAIT_S_MAX)
                assert await probe(Resolver(), "127.0.0.1", port) is Finding.UNDECIDED
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        (await connect(Resolver(), "127.0.0.1", port, WAIT_S_MAX)).close()
