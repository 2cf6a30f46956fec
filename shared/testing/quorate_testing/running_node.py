"""A node for a test: `node()` starts one on a thread of its own, and `TestNode` is the test's hand on it.

The test's thread asks, the node's thread does: every call here is a coroutine that is run on the node's event loop, and
waited for. So a node answers while its test blocks, and a test needs no event loop to have one.
"""

import asyncio
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import httpx
from quorate_core.errors import DeadlineExceeded, Unavailable, error_from_problem
from quorate_sdk.wire import DEFAULT_NAMESPACE, Instance, InstanceSpec, ServiceInstances

from quorate_testing.served_node import START_S_MAX, ServedNode

WAIT_S_DEFAULT = 10.0
BLOCKING_QUERY_S_MAX = 5.0
CALL_S_MAX = 20.0
"""Of one call to the node's thread; a node that takes longer has a defect, which should not hang a test run."""

T = TypeVar("T")


@contextmanager
def node(folder: Path | None = None, namespace: str = DEFAULT_NAMESPACE) -> Iterator["TestNode"]:
    """A node that is ready, with its files in `folder` (a temporary one when not given); stopped at the end.

    What broke inside of it meanwhile is raised at the end, so that it fails the test.
    """
    with ExitStack() as stack:
        if folder is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="quorate-")))
        thread = stack.enter_context(running_thread(ServedNode(folder)))
        # No proxy from the environment: the node is on this machine.
        client = stack.enter_context(httpx.Client(base_url=thread.node.url, timeout=CALL_S_MAX, trust_env=False))
        yield TestNode(thread, client, folder, namespace)


class TestNode:
    """A node, as a test has it. Made by `node`. Calls are made in the namespace that it was started for, and raise the
    errors of `quorate_core.errors` for what the node refuses."""

    __test__ = False  # for pytest, which takes names like this one for test classes

    def __init__(self, thread: "NodeThread", client: httpx.Client, folder: Path, namespace: str) -> None:
        self._thread = thread
        self._client = client
        self._folder = folder
        self.namespace = namespace
        self.url = thread.node.url
        """Its address, which it keeps when it goes away and comes back."""

    @property
    def environment(self) -> Mapping[str, str]:
        """What a service's process needs to find it."""
        return {
            "QUORATE_ENDPOINTS": self.url,
            "QUORATE_NAMESPACE": self.namespace,
            "QUORATE_RUNTIME_DIR": str(self._folder),
        }

    def advance(self, seconds: float) -> None:
        """Let `seconds` pass for leases, and return when those that are over have ended. Who lives sends heartbeats by
        real time, and so is forgotten, and registers again, when more than its time to live passes at once."""
        self._thread.run(lambda: self._thread.node.advance(seconds))

    def lose_lease(self, service: str, instance_id: str) -> None:
        """End an instance's lease now, as if its heartbeats had not come. Raises NotFound."""
        self._thread.run(lambda: self._thread.node.end_lease(self.namespace, service, instance_id))

    @contextmanager
    def away(self) -> Iterator[None]:
        """While entered, the node is not there: connections are refused, streams have ended. What it knew it knows
        when it comes back, at the same address."""
        self._thread.run(self._thread.node.withdraw)
        try:
            yield
        finally:
            self._thread.run(self._thread.node.serve)

    @contextmanager
    def slow(self, seconds: float) -> Iterator[None]:
        """While entered, each answer begins `seconds` late. Streams that are open go on as they are."""
        self._thread.call(lambda: self._thread.node.delay_answers(seconds))
        try:
            yield
        finally:
            self._thread.call(lambda: self._thread.node.delay_answers(0.0))

    @contextmanager
    def refusing_writes(self) -> Iterator[None]:
        """While entered, the node answers reads, and refuses registrations, heartbeats and publications, as one does
        whose cluster has no majority."""
        self._thread.call(lambda: self._thread.node.refuse_writes(True))
        try:
            yield
        finally:
            self._thread.call(lambda: self._thread.node.refuse_writes(False))

    def publish(self, key: str, content: str) -> None:
        """Publish a document of the config center; `key` is `group/key`, such as `greeter/settings.yaml`."""
        self._request("PUT", f"/v1/config/{self.namespace}/{key}", content=content)

    def add_instance(
        self, service: str, port: int, *, host: str = "127.0.0.1", instance_id: str = "", ttl_s: int = 3_600,
        **fields: Any,
    ) -> Instance:  # fmt: skip
        """Register an instance that sends no heartbeats, such as a fake of the test's own. `fields`: those of
        `InstanceSpec`."""
        spec = InstanceSpec.model_validate({"host": host, "port": port, "ttl_s": ttl_s, **fields})
        path = f"{self._services}/{service}/instances/{instance_id or f'{service}-{port}'}"
        answer = self._request("PUT", path, json=spec.model_dump(mode="json"))
        return Instance.model_validate_json(answer.content)

    def remove_instance(self, service: str, instance_id: str) -> None:
        """Deregister it. Raises NotFound."""
        self._request("DELETE", f"{self._services}/{service}/instances/{instance_id}")

    def instances(self, service: str) -> list[Instance]:
        """Those that the registry shows now, by id; empty when it knows no such service."""
        return self._listed(service)[1]

    def wait_for(
        self, service: str, holds: Callable[[list[Instance]], bool], timeout_s: float = WAIT_S_DEFAULT
    ) -> list[Instance]:
        """The instances of `service` as soon as `holds` says yes of them; asked at each change. Raises DeadlineExceeded
        when it has not within `timeout_s` seconds."""
        deadline_s = time.monotonic() + timeout_s
        revision, found = self._listed(service)
        while not holds(found):
            left_s = deadline_s - time.monotonic()
            if left_s <= 0:
                raise DeadlineExceeded(f"not within {timeout_s:g} s; {service} has {[one.id for one in found]}")
            revision, found = self._listed(service, min_revision=revision + 1, wait=min(left_s, BLOCKING_QUERY_S_MAX))
        return found

    def _listed(self, service: str, **query: float) -> tuple[int, list[Instance]]:
        answer = self._request("GET", f"{self._services}/{service}", params=query)
        listed = ServiceInstances.model_validate_json(answer.content)
        return listed.revision, sorted(listed.instances, key=lambda instance: instance.id)

    @property
    def _services(self) -> str:
        return f"/v1/registry/{self.namespace}/services"

    def _request(self, method: str, path: str, **content: Any) -> httpx.Response:
        answer = self._client.request(method, path, **content)
        if not answer.is_success:
            raise error_from_problem(answer.json())
        return answer


class NodeThread:
    """The thread on which a node's event loop runs."""

    def __init__(self, node: ServedNode) -> None:
        self.node = node
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ending = asyncio.Event()
        self._started = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._main, name="quorate-test-node", daemon=True)

    def start(self) -> None:
        self._thread.start()
        if not self._started.wait(START_S_MAX):
            raise Unavailable(f"the test's node has not started within {START_S_MAX} s")
        if self._failure is not None:
            raise self._failure

    def run(self, work: Callable[[], Awaitable[T]]) -> T:
        """Have the node's loop do it, and wait."""
        if self._loop is None or not self._thread.is_alive():
            raise Unavailable("the test's node has ended")
        return asyncio.run_coroutine_threadsafe(_awaited(work), self._loop).result(CALL_S_MAX)

    def call(self, work: Callable[[], None]) -> None:
        """The same, for what is done at once."""

        async def do() -> None:
            work()

        self.run(do)

    def stop(self) -> None:
        if self._loop is not None and self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._ending.set)
        self._thread.join(CALL_S_MAX)
        for failure in (self._failure, *self.node.failures):
            if failure is not None:
                raise failure

    def _main(self) -> None:
        try:
            asyncio.run(self._live())
        except BaseException as error:
            self._failure = error  # raised in the test's thread
        finally:
            self._started.set()

    async def _live(self) -> None:
        await self.node.start()
        try:
            self._loop = asyncio.get_running_loop()
            self._started.set()
            await self._ending.wait()
        finally:
            await self.node.stop()


@contextmanager
def running_thread(node: ServedNode) -> Iterator[NodeThread]:
    thread = NodeThread(node)
    thread.start()
    try:
        yield thread
    finally:
        thread.stop()


async def _awaited(work: Callable[[], Awaitable[T]]) -> T:
    return await work()
