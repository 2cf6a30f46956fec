"""The short way to a service's list: it is taken for plain requests alone, and says what the route says."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from quorate_core.plain_requests import Headers
from quorate_registry.plain_lists import Consistency, plain_lists
from quorate_sdk.wire import NAME_PATTERN
from starlette.responses import Response
from support.registry_server import WAIT_S_MAX, NodeServer
from support.store_local import local_store

Asked = tuple[str, str, str, str | None, str]
NAMES = st.from_regex(NAME_PATTERN, fullmatch=True).map(str.strip)
SERVICE = "/v1/registry/default/services/shop"


def asked(path: str, query: str = "", headers: Headers | None = None) -> Asked | None:
    """What a plain GET asks for; None when it is the route's."""
    found: list[Asked] = []

    async def answer(
        namespace: str, service: str, consistency: Consistency, *, if_none_match: str | None, accept_encoding: str
    ) -> Response:
        found.append((namespace, service, consistency, if_none_match, accept_encoding))
        return Response()

    respond = plain_lists(answer)(path, query, headers or [])
    if respond is None:
        return None
    asyncio.run(respond())
    return found[0]


@given(NAMES, NAMES)
def test_every_name_is_found_as_it_stands(namespace: str, service: str) -> None:
    assert asked(f"/v1/registry/{namespace}/services/{service}") == (namespace, service, "linearizable", None, "")


@pytest.mark.parametrize(
    ("query", "consistency"),
    [("", "linearizable"), ("consistency=linearizable", "linearizable"), ("consistency=stale", "stale")],
)
def test_the_consistency_is_that_of_the_query(query: str, consistency: str) -> None:
    assert asked(SERVICE, query) == ("default", "shop", consistency, None, "")


@pytest.mark.parametrize(
    ("path", "query"),
    [
        (SERVICE + "/", ""), (SERVICE + "/settings", ""), (SERVICE + "/instances/a", ""),
        ("/v1/registry/default/services", ""),
        ("/v1/registry/services/shop", ""), ("/v1/registry/Default/services/shop", ""),
        ("/v1/registry/default/services/-shop", ""), ("/v1/registry/default/services/" + "a" * 64, ""),
        ("/v1/registry/default/services/..", ""), ("/v1/config/default/services/shop", ""), (SERVICE + "\n", ""),
        (SERVICE, "consistency=maybe"), (SERVICE, "consistency="), (SERVICE, "consistency=stale&wait=1"),
        (SERVICE, "min_revision=7"), (SERVICE, "tag=a"), (SERVICE, "wait=1"), (SERVICE, "Consistency=stale"),
    ],
)  # fmt: skip
def test_whatever_says_more_or_is_something_else_is_the_routes(path: str, query: str) -> None:
    assert asked(path, query) is None


def test_what_an_answer_may_depend_on_is_handed_on_and_left_to_the_route_when_it_comes_twice() -> None:
    etag, gzip = (b"if-none-match", b'W/"7"'), (b"accept-encoding", b"gzip")
    assert asked(SERVICE, "", [(b"host", b"a"), etag, gzip]) == ("default", "shop", "linearizable", 'W/"7"', "gzip")
    assert asked(SERVICE, "", [etag, etag]) is None
    assert asked(SERVICE, "", [gzip, gzip]) is None


@asynccontextmanager
async def started(folder: Path) -> AsyncIterator[NodeServer]:
    async with local_store(folder) as store, NodeServer(store) as node:
        yield node


async def say(node: NodeServer, *parts: bytes) -> tuple[bytes, bytes]:
    """Head and body of the answer, without what differs from one to the next."""
    host, port = node.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    async with asyncio.timeout(WAIT_S_MAX):
        for part in parts:
            writer.write(part)
            await writer.drain()
        head = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"(?i)content-length: (\d+)", head)
        assert length is not None
        body = await reader.readexactly(int(length[1]))
    writer.close()
    return re.sub(rb"(?i)(date|x-request-id): [^\r]*\r\n", b"", head), body


GZIP = b"Accept-Encoding: gzip, deflate\r\n"


@pytest.mark.parametrize("fields", [b"", GZIP, b"Accept-Encoding: identity\r\n", b'If-None-Match: "none"\r\n'])
@pytest.mark.parametrize("target", [SERVICE, f"{SERVICE}?consistency=stale", "/v1/registry/default/services/nobody"])
async def test_both_ways_say_the_same(tmp_path: Path, target: str, fields: bytes) -> None:
    """A head whose path has an escape goes through the parser and FastAPI; one without does not."""
    plain = b"GET %b HTTP/1.1\r\nHost: 127.0.0.1\r\n%b\r\n" % (target.encode(), fields)
    body = json.dumps({"host": "127.0.0.1", "port": 8000, "metadata": {"large": "x" * 1024}}).encode()
    head = (
        f"PUT {SERVICE}/instances/a HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: "
    )
    put = head.encode() + b"%d\r\n\r\n%b" % (len(body), body)
    async with started(tmp_path) as node:
        assert (await say(node, put))[0].startswith(b"HTTP/1.1 201")
        direct = await say(node, plain)
        usual = await say(node, plain.replace(b"/services/", b"/%73ervices/"))
        assert direct == usual
        assert direct[0].startswith(b"HTTP/1.1 200")
        assert (b"content-encoding: gzip" in direct[0].lower()) == (fields == GZIP and "nobody" not in target)
