"""A forked program is a process like one that was started in the plain way, and nothing of it outlives the tests."""

import io
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support import plain_http
from support.forked_programs import ForkedProcess, Launcher, start
from support.node_processes import EXIT_SETTINGS, NodeCluster, NodeProcess, node_cluster, until

NODE = ("-m", "quorate_node")
END_S_MAX = 20.0
KILLED_WHILE_IT_HAS_A_NODE = """
import os, signal, sys
from pathlib import Path
from support.node_processes import node_cluster

with node_cluster(Path(sys.argv[1]), 1) as cluster:
    cluster.start()
    print(cluster.nodes[0].process.pid, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeCluster]:
    with node_cluster(tmp_path_factory.mktemp("nodes"), 2) as found:
        found.start()
        yield found


@contextmanager
def log_of(folder: Path) -> Iterator[io.BufferedWriter]:
    with (folder / "output.log").open("wb") as output:
        yield output


def forked(node: NodeProcess) -> ForkedProcess:
    assert isinstance(node.process, ForkedProcess)
    return node.process


@pytest.mark.parametrize("arguments", [("--help",), (), ("--name", "a b"), ("--http", "nowhere")])
def test_it_says_and_ends_as_a_plain_start_does(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    plain = subprocess.run(
        [sys.executable, *NODE, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
    )
    with log_of(tmp_path) as output:
        process = start(NODE, arguments, output)
    assert isinstance(process, ForkedProcess)
    assert process.wait(END_S_MAX) == plain.returncode
    assert (tmp_path / "output.log").read_bytes() == plain.stdout
    assert plain.stdout


def test_it_has_a_session_an_environment_a_folder_and_an_output_of_its_own(cluster: NodeCluster) -> None:
    node = cluster.nodes[0]
    pid = forked(node).pid
    place = Path("/proc", str(pid))
    assert os.getsid(pid) == os.getpgid(pid) == pid
    assert (place / "cwd").readlink() == Path.cwd()
    assert {(place / "fd" / one).readlink() for one in ("1", "2")} == {node.folder / "node-1.log"}
    assert (place / "fd" / "0").readlink() == Path(os.devnull)


def test_of_the_environment_of_the_launcher_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bare = dict(os.environ)
    monkeypatch.setenv("QUORATE_NODE_HTTP", "of the launcher")
    launcher = Launcher("quorate_node")
    said = []
    try:
        for environment in (bare, {**bare, "QUORATE_NODE_HTTP": "of the start"}):
            with log_of(tmp_path) as output:
                process = launcher.fork((), output, environment)
            assert process.wait(END_S_MAX) == EXIT_SETTINGS
            said.append((tmp_path / "output.log").read_text())
    finally:
        launcher.close()
    missing, wrong = said
    assert "QUORATE_NODE_HTTP): Field required" in missing
    assert "QUORATE_NODE_HTTP): " in wrong
    assert "Field required" not in wrong


def test_no_two_of_them_give_the_same_request_id(cluster: NodeCluster) -> None:
    answers = [plain_http.get(node.url + "/readyz") for node in cluster.nodes]
    first, second = (answer.headers["x-request-id"][:8] for answer in answers)
    assert first != second


def test_a_signal_ends_it_as_it_ends_any_process_and_its_id_is_its_own_until_then(tmp_path: Path) -> None:
    with node_cluster(tmp_path, 1) as alone:
        [node] = alone.nodes
        alone.start()
        process = forked(node)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.01)
        assert process.poll() is None
        os.kill(process.pid, signal.SIGKILL)
        state = Path("/proc", str(process.pid), "status")
        until("it is dead, and not waited for", lambda: "\nState:\tZ" in state.read_text())
        assert (process.wait(END_S_MAX), process.poll(), process.returncode) == (-9, -9, -9)
        assert not state.exists()
        process.kill()  # nobody

        alone.start()
        forked(node).send_signal(signal.SIGINT)
        assert node.exit_status() == 0
        assert "node_stopped" in node.log


def test_an_environment_under_which_imports_may_differ_has_a_plain_start(tmp_path: Path) -> None:
    with log_of(tmp_path) as output:
        process = start(NODE, ("--help",), output, {**os.environ, "PYTHONOPTIMIZE": "1"})
    assert isinstance(process, subprocess.Popen)
    assert process.wait(END_S_MAX) == 0


def test_when_the_tests_are_killed_what_they_have_started_ends(tmp_path: Path) -> None:
    inherited = [path for path in sys.path if path]
    tests = subprocess.run(
        [sys.executable, "-c", KILLED_WHILE_IT_HAS_A_NODE, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(inherited)}, stdout=subprocess.PIPE, check=False,
    )  # fmt: skip
    assert tests.returncode == -signal.SIGKILL
    node = Path("/proc", tests.stdout.decode().strip())
    until("the node has ended", lambda: not node.exists())
