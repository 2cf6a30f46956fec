"""The documents that a new platform begins with. A document that is there already is never touched."""

import asyncio
from dataclasses import dataclass

import httpx
from quorate_core.errors import QuorateError, Retry, error_from_problem

from quorate_cli.parts import NAMESPACE

RETRY_INTERVAL_S = 0.2
PUBLISH_TIMEOUT_S = 5.0
AUTHOR = "quorate up"


@dataclass(frozen=True, slots=True)
class DefaultDocument:
    group: str
    key: str
    content: str

    @property
    def name(self) -> str:
        return f"{self.group}/{self.key}"


ROUTES_DOCUMENT = "gateway/routes.yaml"
DEFAULT_DOCUMENTS = (
    DefaultDocument(
        "gateway",
        "routes.yaml",
        """\
# The gateway's routes. A change is validated before it is accepted, and in force at once:
#   ./quorate config edit default gateway routes.yaml
routes:
  - name: orders
    match: {path_prefix: /orders}
    service: order
  - name: stock
    match: {path_prefix: /stock}
    service: inventory
    # rate_limit: {requests_per_second: 100, burst: 200, key: client}
    # A circuit breaker is on without being asked for; `circuit_breaker: off` is for routes that are slow by nature.
""",
    ),
    DefaultDocument(
        "order",
        "settings.yaml",
        """\
# Live settings of the order service; GET /orders/settings shows those in force.
max_lines: 100
max_quantity: 10000
pending_timeout_s: 60
""",
    ),
    DefaultDocument(
        "inventory",
        "settings.yaml",
        """\
# Live settings of the inventory service; GET /stock/settings shows those in force.
low_stock_threshold: 10
# Answers to GET /stock are delayed (mode: slow) or 503 (mode: fail): watch the gateway's circuit breaker open.
fault: {mode: off, delay_ms: 1500, percent: 100}
""",
    ),
)


async def publish_default_documents(client: httpx.AsyncClient, endpoints: list[str]) -> list[str]:
    """Publish what is absent; the names of what was. Retries for as long as the caller lets it while the control
    plane cannot take writes. Raises the control plane's own error when it refuses a document."""
    published = [await _publish_if_absent(client, endpoints, document) for document in DEFAULT_DOCUMENTS]
    return [document.name for document, is_new in zip(DEFAULT_DOCUMENTS, published, strict=True) if is_new]


async def _publish_if_absent(client: httpx.AsyncClient, endpoints: list[str], document: DefaultDocument) -> bool:
    path = f"/v1/config/{NAMESPACE}/{document.group}/{document.key}"
    parameters = {"author": AUTHOR, "comment": "the platform's first start"}
    while True:
        for endpoint in endpoints:
            try:
                answer = await client.put(
                    endpoint + path, params=parameters, content=document.content.encode(),
                    headers={"if-none-match": "*"}, timeout=PUBLISH_TIMEOUT_S,
                )  # fmt: skip
            except httpx.HTTPError:
                continue  # If-None-Match makes it safe to ask again, whatever became of this one
            if answer.is_success:
                return True
            if answer.status_code in (httpx.codes.CONFLICT, httpx.codes.PRECONDITION_FAILED):
                return False
            error = _error_of(answer, document)
            if error.kind.retry is Retry.NEVER:
                raise error
        await asyncio.sleep(RETRY_INTERVAL_S)


def _error_of(answer: httpx.Response, document: DefaultDocument) -> QuorateError:
    try:
        body = answer.json()
    except ValueError:
        body = {"detail": f"HTTP {answer.status_code}"}
    error = error_from_problem(body if isinstance(body, dict) else {})
    return type(error)(f"{document.name} could not be published: {error.detail}", **error.extensions)
