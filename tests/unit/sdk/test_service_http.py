"""The options of `http()`: each reaches what it belongs to, or is refused."""

import ssl

import httpx
import pytest
import quorate_sdk as quorate
from quorate_sdk import Client
from quorate_sdk.service_http import CLIENT_OPTIONS, CONNECTION_OPTIONS, split_options


def test_options_are_split_by_what_they_belong_to() -> None:
    limits = httpx.Limits(max_connections=1)
    options = {"verify": False, "limits": limits, "timeout": 3.0, "headers": {"a": "b"}}
    for_connections, for_client = split_options(options)
    assert for_connections == {"verify": False, "limits": limits}
    assert for_client == {"timeout": 3.0, "headers": {"a": "b"}}


async def test_options_of_connections_reach_the_connections() -> None:
    client = Client(["http://nobody:1"])
    http = client.http(verify=False, limits=httpx.Limits(max_connections=3), headers={"x-a": "b"})
    assert http.headers["x-a"] == "b"
    pool = client._transports[0]._inner._pool  # type: ignore[attr-defined]  # of httpx's own transport
    assert (pool._ssl_context.verify_mode, pool._max_connections) == (ssl.CERT_NONE, 3)
    await client.close()


@pytest.mark.parametrize("option", ["transport", "mounts", "proxy", "misspelt"])
async def test_other_options_are_refused_by_name(option: str) -> None:
    client = Client(["http://nobody:1"])
    with pytest.raises(TypeError, match=f"takes no {option};"):
        client.http(**{option: None})
    with pytest.raises(TypeError, match=f"takes no {option};"):
        quorate.http(**{option: None})
    await client.close()


async def test_every_option_that_is_named_is_one_of_httpx() -> None:
    defaults = {
        "verify": True, "cert": None, "http1": True, "http2": False, "limits": httpx.Limits(), "local_address": None,
        "socket_options": None, "auth": None, "params": None, "headers": None, "cookies": None, "timeout": 1.0,
        "follow_redirects": False, "max_redirects": 1, "event_hooks": None, "base_url": "", "default_encoding": "utf-8",
    }  # fmt: skip
    assert defaults.keys() == CONNECTION_OPTIONS | CLIENT_OPTIONS
    client = Client(["http://nobody:1"])
    client.http(**defaults)
    await client.close()
