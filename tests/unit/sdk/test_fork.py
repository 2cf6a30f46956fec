"""A child neither renews nor ends what its parent has registered, however it was made, and may have a client itself."""

import io
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import structlog
from quorate_core.errors import InvalidRequest
from quorate_sdk import shared_client
from quorate_sdk.forks import ForkSafeLogger
from quorate_sdk.registration import Registration
from quorate_sdk.wire import InstanceSpec, InstanceStatus
from support.plain_registry import PlainRegistry, register_in_child

WAIT_S_MAX = 20.0
SPEC = InstanceSpec(host="127.0.0.1", port=9001, ttl_s=2)


@pytest.fixture
def registry() -> Iterator[PlainRegistry]:
    with PlainRegistry() as registry:
        yield registry


@pytest.fixture
def registered(registry: PlainRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Registration]:
    monkeypatch.setenv("QUORATE_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setenv("QUORATE_ENDPOINTS", registry.url)
    registration = Registration([registry.url], None, "order", "order-1", SPEC)
    registration.start()
    registry.wait_for("PUT")
    yield registration
    registration.leave()


def forked(work: Callable[[], bool]) -> bool:
    """What `work` says in a child made by os.fork, as bare as it is."""
    child = os.fork()
    if child == 0:
        try:
            os._exit(0 if work() else 1)
        finally:
            os._exit(2)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_what_the_child_does_with_it_does_not_reach_the_registry(
    registered: Registration, registry: PlainRegistry
) -> None:
    def misuse() -> bool:
        refused = 0
        for change in (registered.renew_now, lambda: registered.change(status=InstanceStatus.OUT_OF_SERVICE)):
            try:
                change()
            except InvalidRequest:
                refused += 1
        registered.leave()
        return refused == 2 and not registered.is_owned

    assert forked(misuse)
    assert registered.is_owned
    registry.wait_for("POST")  # the parent's heartbeats go on
    assert "DELETE" not in registry.asked
    assert registry.asked.count("PUT") == 1


def test_a_child_that_lives_on_keeps_nobody_from_taking_over(registered: Registration, registry: PlainRegistry) -> None:
    """Nor does the end of the parent's registration wait for it."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(writing)
        os.read(reading, 1)
        os._exit(0)
    registered.leave()
    assert registry.asked[-2:] == ["PATCH", "DELETE"]
    successor = Registration([registry.url], None, "order", "order-1", SPEC)
    successor.start()
    registry.wait_for("PUT", 2)
    successor.leave()
    os.close(writing)
    os.close(reading)
    os.waitpid(child, 0)


class SlowFile(io.StringIO):
    """What the first line that is written to it waits for is a fork."""

    def __init__(self) -> None:
        super().__init__()
        self.is_written_to = threading.Event()
        self.is_forking = threading.Event()
        # Hooks are called in the reverse order, so this one before all that may hold the fork up.
        os.register_at_fork(before=self.is_forking.set)

    def write(self, text: str) -> int:
        self.is_written_to.set()
        assert self.is_forking.wait(WAIT_S_MAX)
        return super().write(text)


def test_a_child_may_log_though_a_thread_of_its_parent_was_printing_a_line() -> None:
    """structlog's loggers hold a lock meanwhile, which nobody in the child would ever let go."""
    log, file = ForkSafeLogger(__name__), SlowFile()
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(file))
    try:
        printing = threading.Thread(target=log.info, args=("of the parent",))
        printing.start()
        assert file.is_written_to.wait(WAIT_S_MAX)

        def say() -> bool:
            signal.alarm(int(WAIT_S_MAX))  # ends a child that hangs
            log.warning("of the child")
            return "of the child" in file.getvalue()

        assert forked(say)
        printing.join()
        assert "of the parent" in file.getvalue()
    finally:
        structlog.reset_defaults()


def test_the_default_client_of_a_child_is_its_own(registered: Registration) -> None:
    shared_client.forget_default_client()
    ours = shared_client.default_client()
    try:
        assert forked(lambda: shared_client.default_client() is not ours and shared_client.default_client().is_owned)
        assert shared_client.default_client() is ours
    finally:
        shared_client.forget_default_client()


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_child_may_register_an_instance_of_its_own(
    registered: Registration, registry: PlainRegistry, method: str
) -> None:
    context = multiprocessing.get_context(method)
    ours, theirs = context.Pipe()
    child = context.Process(target=register_in_child, args=(registry.url, theirs))
    child.start()
    theirs.close()  # so that a child that fails is the end of the pipe
    assert ours.recv() == "started"
    registry.wait_for("PUT", 2)
    ours.send("leave")
    child.join(WAIT_S_MAX)
    assert child.exitcode == 0
    assert registry.paths_of("DELETE") == ["/v1/registry/default/services/order/instances/order-2"]
    assert registered.registered
