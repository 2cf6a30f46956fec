"""A reverse proxy as people write it with FastAPI and httpx: `python fastapi_proxy.py PORT UPSTREAM_PORT…`.

Round robin over kept connections, the forwarding fields, answers streamed; no limit, no breaker, no metrics. It runs on
uvicorn with uvloop and httptools, one process.
"""

import itertools
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse
from starlette.background import BackgroundTask

HOP_BY_HOP = frozenset({"connection", "keep-alive", "transfer-encoding", "te", "trailer", "upgrade", "host"})
METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]


def make_app(upstreams: list[str]) -> FastAPI:
    turns = itertools.cycle(f"http://127.0.0.1:{upstream}" for upstream in upstreams)
    limits = httpx.Limits(max_connections=256, max_keepalive_connections=256)
    client = httpx.AsyncClient(limits=limits, timeout=15, trust_env=False)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        async with client:
            yield

    app = FastAPI(lifespan=lifespan)

    @app.api_route("/{path:path}", methods=METHODS)
    async def pass_on(request: Request) -> StreamingResponse:
        headers = [(name, value) for name, value in request.headers.items() if name not in HOP_BY_HOP]
        headers.append(("x-forwarded-for", request.client.host if request.client else ""))
        target = f"{next(turns)}{request.url.path}"
        content = None if request.method in ("GET", "HEAD") else request.stream()
        asked = client.build_request(
            request.method, target, params=request.query_params, headers=headers, content=content
        )
        found = await client.send(asked, stream=True)
        kept = {name: value for name, value in found.headers.items() if name not in HOP_BY_HOP}
        return StreamingResponse(found.aiter_raw(), found.status_code, kept, background=BackgroundTask(found.aclose))

    return app


if __name__ == "__main__":
    own_port, *ports = sys.argv[1:]
    uvicorn.run(make_app(ports), host="127.0.0.1", port=int(own_port), log_level="critical", access_log=False)
