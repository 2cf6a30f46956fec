"""A reverse proxy as people write it with aiohttp: `python aiohttp_proxy.py PORT UPSTREAM_PORT…`.

Round robin over kept connections, the forwarding fields, bodies streamed; no limit, no breaker, no metrics.
"""

import itertools
import sys

import aiohttp
import uvloop
from aiohttp import web

HOP_BY_HOP = frozenset({"connection", "keep-alive", "transfer-encoding", "te", "trailer", "upgrade", "host"})


def main(port: int, upstreams: list[str]) -> None:
    turns = itertools.cycle(f"http://127.0.0.1:{upstream}" for upstream in upstreams)

    async def start(app: web.Application) -> None:
        connector = aiohttp.TCPConnector(limit=256)
        app["session"] = aiohttp.ClientSession(connector=connector, auto_decompress=False)

    async def stop(app: web.Application) -> None:
        await app["session"].close()

    async def pass_on(request: web.Request) -> web.StreamResponse:
        headers = {name: value for name, value in request.headers.items() if name.lower() not in HOP_BY_HOP}
        headers["X-Forwarded-For"] = request.remote or ""
        body = request.content if request.body_exists else None
        session = request.app["session"]
        async with session.request(request.method, next(turns) + request.raw_path, headers=headers, data=body) as found:
            kept = {name: value for name, value in found.headers.items() if name.lower() not in HOP_BY_HOP}
            answer = web.StreamResponse(status=found.status, headers=kept)
            await answer.prepare(request)
            async for piece in found.content.iter_any():
                await answer.write(piece)
            await answer.write_eof()
            return answer

    app = web.Application()
    app.on_startup.append(start)
    app.on_cleanup.append(stop)
    app.router.add_route("*", "/{path:.*}", pass_on)
    uvloop.install()
    web.run_app(app, host="127.0.0.1", port=port, access_log=None, print=None)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
