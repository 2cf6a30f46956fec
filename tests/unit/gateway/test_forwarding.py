"""Who the client is behind trusted proxies, and what the service is told of it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from quorate_gateway.proxy.forwarding import HOPS_MAX, Forwarding
from quorate_gateway.proxy.framing import read_request_fields

PROXIES = Forwarding(("10.0.0.0/8", "2001:db8:1::/48"))
PEER = b"10.0.0.1"


def behind(fields: bytes, peer: bytes = PEER, forwarding: Forwarding = PROXIES) -> bytes:
    """The client's address."""
    read = read_request_fields(b"\r\nHost: shop" + fields)
    return forwarding.describe(peer, read, is_secure=False).client


def told(fields: bytes, peer: bytes = PEER, *, is_secure: bool = False) -> dict[str, str]:
    """What the service is told."""
    read = read_request_fields(b"\r\nHost: shop" + fields)
    lines = PROXIES.describe(peer, read, is_secure=is_secure).fields.decode().split("\r\n")[1:]
    found = dict(line.split(": ", 1) for line in lines)
    assert len(found) == len(lines)
    return found


def test_nobody_is_trusted_unless_it_is_said() -> None:
    assert not Forwarding().trusts(b"127.0.0.1")
    assert PROXIES.trusts(b"10.9.9.9")
    assert PROXIES.trusts(b"2001:db8:1::7")
    assert PROXIES.trusts(b"::ffff:10.1.2.3")
    assert not PROXIES.trusts(b"11.0.0.1")
    assert not PROXIES.trusts(b"unknown")


def test_a_network_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="has host bits set"):
        Forwarding(("10.0.0.1/8",))


@pytest.mark.parametrize(
    ("fields", "client"),
    [
        (b"", b"10.0.0.1"),
        (b"\r\nX-Forwarded-For: 192.0.2.7", b"192.0.2.7"),
        (b"\r\nX-Forwarded-For: 8.8.8.8, 192.0.2.7", b"192.0.2.7"),  # the client said 8.8.8.8
        (b"\r\nX-Forwarded-For: 8.8.8.8, 192.0.2.7, 10.0.0.2,10.0.0.3", b"192.0.2.7"),
        (b"\r\nX-Forwarded-For: 8.8.8.8\r\nX-Forwarded-For: 192.0.2.7", b"192.0.2.7"),
        (b"\r\nX-Forwarded-For: 10.0.0.5, 10.0.0.2", b"10.0.0.5"),  # proxies all the way
        (b"\r\nX-Forwarded-For: 192.0.2.7:4711", b"192.0.2.7"),
        (b"\r\nX-Forwarded-For: [2001:db8:2::1]:80", b"2001:db8:2::1"),
        (b"\r\nX-Forwarded-For: 2001:db8:2::1, 2001:db8:1::9", b"2001:db8:2::1"),
        (b"\r\nX-Forwarded-For: ::ffff:192.0.2.7", b"192.0.2.7"),
        (b"\r\nX-Forwarded-For: 8.8.8.8, junk, 10.0.0.2", b"10.0.0.2"),  # no further than what can be read
        (b"\r\nX-Forwarded-For: 8.8.8.8, unknown", b"10.0.0.1"),
        (b"\r\nX-Forwarded-For: ,", b"10.0.0.1"),
        (b"\r\nForwarded: for=192.0.2.7;proto=https", b"192.0.2.7"),
        (b'\r\nForwarded: for=8.8.8.8, For="[2001:db8:2::1]:80" ;by=_x', b"2001:db8:2::1"),
        (b'\r\nForwarded: for="8.8.8.8, for=192.0.2.7"', b"10.0.0.1"),
        (b"\r\nForwarded: for=192.0.2.7;;", b"10.0.0.1"),
        (b"\r\nForwarded: for=_hidden, for=10.0.0.2", b"10.0.0.2"),
        (b"\r\nForwarded: for=192.0.2.7\r\nX-Forwarded-For: 192.0.2.7", b"192.0.2.7"),
        (b"\r\nForwarded: for=8.8.8.8\r\nX-Forwarded-For: 192.0.2.7", b"10.0.0.1"),  # one was the client's own
    ],
)
def test_the_client_is_the_right_most_that_is_not_trusted(fields: bytes, client: bytes) -> None:
    assert behind(fields) == client


def test_a_chain_is_followed_through_so_many_proxies_and_no_further() -> None:
    hops = b", ".join([b"192.0.2.7"] + [b"10.0.0.2"] * HOPS_MAX)
    assert behind(b"\r\nX-Forwarded-For: " + hops) == b"10.0.0.2"
    assert behind(b"\r\nX-Forwarded-For: " + hops.removesuffix(b", 10.0.0.2")) == b"192.0.2.7"


ADDRESSES = st.ip_addresses(v=4).map(lambda address: str(address).encode())


@given(st.lists(ADDRESSES, max_size=4), ADDRESSES)
def test_what_a_client_says_before_an_honest_proxy_changes_nothing(said: list[bytes], client: bytes) -> None:
    """The proxy appends the address that it saw; whatever the client wrote stands left of it."""
    if PROXIES.trusts(client):
        return
    assert behind(b"\r\nX-Forwarded-For: " + b", ".join([*said, client])) == client


def test_the_chain_goes_on_with_the_peer_appended() -> None:
    found = told(b"\r\nX-Forwarded-For: 192.0.2.7, 10.0.0.2\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: a.example")
    assert found == {
        "x-forwarded-for": "192.0.2.7, 10.0.0.2, 10.0.0.1",
        "x-forwarded-proto": "https",
        "x-forwarded-host": "a.example",
        "forwarded": 'for=192.0.2.7, for=10.0.0.2, for=10.0.0.1;host="a.example";proto=https',
        "via": "1.1 quorate",
    }


def test_forwarded_goes_on_as_it_came_and_the_list_is_made_of_it() -> None:
    found = told(b'\r\nForwarded: for="[2001:db8:2::1]:80";proto=https;host=a.example, for=10.0.0.2')
    assert found["forwarded"].startswith('for="[2001:db8:2::1]:80";proto=https;host=a.example, for=10.0.0.2, for=10.')
    assert found["x-forwarded-for"] == "[2001:db8:2::1]:80, 10.0.0.2, 10.0.0.1"
    assert (found["x-forwarded-proto"], found["x-forwarded-host"]) == ("https", "a.example")


@pytest.mark.parametrize(
    "fields",
    [
        b"\r\nX-Forwarded-Proto: gopher\r\nX-Forwarded-Host: a/b",
        b"\r\nX-Forwarded-Proto: http\r\nX-Forwarded-Proto: http\r\nX-Forwarded-Host: a\r\nX-Forwarded-Host: a",
        b"",
    ],
)
def test_what_a_proxy_says_and_cannot_mean_is_replaced_by_what_is_seen(fields: bytes) -> None:
    found = told(b"\r\nX-Forwarded-For: 192.0.2.7" + fields, is_secure=True)
    assert (found["x-forwarded-proto"], found["x-forwarded-host"]) == ("https", "shop")


def test_chains_that_disagree_are_not_passed_on() -> None:
    found = told(b"\r\nForwarded: for=8.8.8.8\r\nX-Forwarded-For: 192.0.2.7")
    assert (found["x-forwarded-for"], found["forwarded"]) == ("10.0.0.1", 'for=10.0.0.1;host="shop";proto=http')


@pytest.mark.parametrize(
    ("fields", "listed", "forwarded"),
    [
        (b'\r\nX-Forwarded-For: ", 192.0.2.7', '", 192.0.2.7, 10.0.0.1', "for=192.0.2.7, for=10.0.0.1;"),
        (b"\r\nX-Forwarded-For: 8.8.8.8;by=x, 192.0.2.7", "8.8.8.8;by=x, 192.0.2.7, 10.0.0.1",
         "for=192.0.2.7, for=10.0.0.1;"),
        (b'\r\nForwarded: for="8.8.8.8, 9.9.9.9", for=192.0.2.7', "192.0.2.7, 10.0.0.1",
         'for="8.8.8.8, 9.9.9.9", for=192.0.2.7, for=10.0.0.1;'),
    ],
)  # fmt: skip
def test_what_cannot_be_read_in_one_chain_is_not_written_into_the_other(
    fields: bytes, listed: str, forwarded: str
) -> None:
    found = told(fields)
    assert found["x-forwarded-for"] == listed
    assert found["forwarded"].startswith(forwarded)


def test_a_peer_of_ipv6_is_quoted_and_a_request_without_host_says_none() -> None:
    read = read_request_fields(b"")
    found = Forwarding().describe_direct(b"2001:db8::1", read, is_secure=False, minor=0)
    assert found.client == b"2001:db8::1"
    assert found.fields == (
        b"\r\nx-forwarded-for: 2001:db8::1\r\nx-forwarded-proto: http"
        b'\r\nforwarded: for="[2001:db8::1]";proto=http\r\nvia: 1.0 quorate'
    )
