"""A service as its developer writes it, with the SDK's lifespan, for a server such as uvicorn or gunicorn to run.

`OBSERVED_ID`, `OBSERVED_PORT` and `OBSERVED_TTL_S` say who it is; the SDK reads QUORATE_ENDPOINTS by itself. `GET /`
says which process answers, `GET /block?seconds=N` holds its event loop for so long, as careless code does.
"""

import os
import time

import quorate_sdk as quorate
from fastapi import FastAPI

SERVICE = "observed"
INSTANCE = os.environ.get("OBSERVED_ID", "observed-1")

app = FastAPI(
    lifespan=quorate.lifespan(
        SERVICE,
        port=int(os.environ.get("OBSERVED_PORT", "8000")),
        instance_id=INSTANCE,
        ttl_s=int(os.environ.get("OBSERVED_TTL_S", "10")),
    )
)


@app.get("/")
async def who() -> dict[str, object]:
    return {"by": INSTANCE, "pid": os.getpid()}


@app.get("/block")
async def block(seconds: float) -> dict[str, float]:
    time.sleep(seconds)  # noqa: ASYNC251 - it is what this is for
    return {"blocked_s": seconds}
