"""A service whose every answer says what was asked, as a process of its own: `python echo_service.py NAME [PORT]`.

It prints its port. An answer is JSON about the request as it arrived, so that a client knows whether what it reads is
the answer to what it sent: who answered, method, target, and length and SHA-256 of the body. `/…/stream/N` answers with
N numbered lines, each a chunk; `/…/bytes/N` with N bytes of a known pattern.
"""

import asyncio
import hashlib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if __name__ == "__main__":
    # NB: in the place of this folder, in which `platform` is not Python's own.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

if TYPE_CHECKING:
    from support.gateway_upstream import Exchange

PATTERN = bytes(range(256)) * 256


def pattern(count: int) -> bytes:
    return (PATTERN * (count // len(PATTERN) + 1))[:count]


def described(method: str, target: str, body: bytes) -> dict[str, object]:
    """What an answer says of a request, beside who gives it."""
    return {"method": method, "target": target, "length": len(body), "sha256": hashlib.sha256(body).hexdigest()}


async def echo(name: str, exchange: "Exchange") -> None:
    request = exchange.request
    body = await exchange.read_body()
    *_, kind, count = ("", "", *request.target.split("/"))
    if kind == "stream":
        await exchange.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for number in range(int(count)):
            line = b"line %d\n" % number
            await exchange.send(b"%x\r\n%b\r\n" % (len(line), line))
        await exchange.send(b"0\r\n\r\n")
    elif kind == "bytes":
        await exchange.reply(pattern(int(count)))
    else:
        said = {"by": name, **described(request.method, request.target, body)}
        await exchange.reply(json.dumps(said).encode())


async def serve(name: str, port: int) -> None:
    from support.gateway_upstream import Upstream

    upstream = Upstream(lambda exchange: echo(name, exchange), port=port, keeps_requests=False)
    await upstream.start()
    print(upstream.port, flush=True)  # noqa: T201 - it is what whoever started it reads
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 0))
