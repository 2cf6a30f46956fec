"""One real node: what it says of itself, what it refuses, and how it starts and ends."""

import json
import resource
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
from quorate_core.process import EXIT_FAILURE
from support import plain_http
from support.node_processes import NodeProcess, node_cluster, until, write_secret

SETTINGS = "/v1/config/default/order/settings.yaml"
FILES_ALLOWED = 256
START_WITH_FEW_FILES = f"""
import resource, runpy
resource.setrlimit(resource.RLIMIT_NOFILE, ({FILES_ALLOWED // 2}, {FILES_ALLOWED}))
runpy.run_module("quorate_node", run_name="__main__", alter_sys=True)
"""


@pytest.fixture
def node(tmp_path: Path) -> Iterator[NodeProcess]:
    with node_cluster(tmp_path, 1) as cluster:
        yield cluster.nodes[0]


@pytest.fixture(scope="module")
def unharmed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeProcess]:
    """One running node for the tests that leave it as it was."""
    with node_cluster(tmp_path_factory.mktemp("node"), 1) as cluster:
        cluster.start()
        yield cluster.nodes[0]


@pytest.fixture
def running(node: NodeProcess) -> NodeProcess:
    node.restart()
    return node


def is_problem(answer: httpx.Response, status: int) -> bool:
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert "Traceback" not in answer.text
    return {"type", "title", "status", "detail", "retry"} <= answer.json().keys()


def test_a_node_says_what_it_is_and_where_to_look(unharmed: NodeProcess) -> None:
    welcome = plain_http.get(unharmed.url).json()
    assert (welcome["name"], welcome["apps"]) == ("node-1", ["config-center", "registry"])
    for link in welcome["links"].values():
        assert plain_http.get(link).status_code == 200, link


def test_a_node_serves_every_app_and_the_v3_api_on_one_surface(unharmed: NodeProcess) -> None:
    paths = plain_http.get(unharmed.url + "/openapi.json").json()["paths"]
    for part in ("/v1/config/", "/v1/registry/", "/v1/cluster/", "/v3/kv/"):
        assert any(path.startswith(part) for path in paths), part


def test_a_foreign_host_or_origin_is_refused_on_loopback(unharmed: NodeProcess) -> None:
    assert is_problem(plain_http.get(unharmed.url + SETTINGS, headers={"host": "evil.example"}), 403)
    assert is_problem(plain_http.get(unharmed.url + SETTINGS, headers={"origin": "https://evil.example"}), 403)
    own_page = plain_http.get(unharmed.url + "/v1/cluster/node", headers={"origin": unharmed.url})
    assert own_page.status_code == 200


def test_bad_input_gets_a_problem_and_nothing_is_lost(unharmed: NodeProcess) -> None:
    plain_http.put(unharmed.url + SETTINGS, content="a: 1")
    assert is_problem(plain_http.put(unharmed.url + SETTINGS, content=b"#" * 4 * 1024 * 1024), 413)
    assert is_problem(plain_http.put(unharmed.url + SETTINGS, content=b"#" * (1024 * 1024 + 1)), 413)
    assert is_problem(plain_http.put(unharmed.url + SETTINGS, content="a: ["), 422)
    assert is_problem(plain_http.get(unharmed.url + "/v1/nowhere"), 404)
    assert is_problem(plain_http.post(unharmed.url + SETTINGS), 405)
    assert is_problem(plain_http.post(unharmed.url + SETTINGS + "/rollback", content="{"), 400)
    assert plain_http.get(unharmed.url + SETTINGS).json()["content"] == "a: 1"


def test_a_stopped_node_drains_ends_open_streams_and_exits_in_order(running: NodeProcess) -> None:
    with plain_http.stream("GET", running.url + "/v1/config/default/watch", timeout=20) as stream:
        lines = stream.iter_lines()
        assert "event: snapshot" in (next(lines) for _ in range(10))
        said: list[str] = []
        reader = threading.Thread(target=lambda: said.extend(lines))
        reader.start()
        assert running.terminate() == 0
        reader.join(10)  # a stream that is cut, and not ended, raises in the thread, which fails the test
        assert not reader.is_alive()
    assert "node_stopped" in running.log


def test_data_survives_an_orderly_stop_and_a_kill(running: NodeProcess) -> None:
    plain_http.put(running.url + SETTINGS, content="a: 1").raise_for_status()
    assert running.terminate() == 0
    running.restart()
    plain_http.put(running.url + SETTINGS, content="a: 2").raise_for_status()
    running.kill()
    running.restart()
    found = plain_http.get(running.url + SETTINGS).json()
    assert (found["version"], found["content"]) == (2, "a: 2")


def test_only_the_wanted_apps_are_run(node: NodeProcess) -> None:
    node.changes["--apps"] = "registry"
    node.restart()
    assert plain_http.get(node.url).json()["apps"] == ["registry"]
    assert is_problem(plain_http.get(node.url + SETTINGS), 404)


def test_an_unknown_app_is_refused_naming_those_there_are(node: NodeProcess) -> None:
    node.changes["--apps"] = "consul"
    assert "there is no app consul; installed are: config-center, registry" in node.refused()


def test_a_weak_missing_or_readable_secret_is_refused(node: NodeProcess) -> None:
    node.secret_file = write_secret(node.folder / "weak", "password")
    assert "is too weak" in node.refused()
    node.secret_file = node.folder / "missing"
    assert "cannot be read" in node.refused()
    node.secret_file = write_secret(node.folder / "open")
    node.secret_file.chmod(0o644)
    assert f"run: chmod 600 {node.secret_file}" in node.refused()


def test_the_data_of_another_cluster_or_member_is_refused(running: NodeProcess) -> None:
    assert running.terminate() == 0
    running.cluster_id = "another-cluster"
    said = running.refused()
    assert "test-cluster" in said
    assert "another-cluster" in said
    running.cluster_id = "test-cluster"
    other = NodeProcess("node-9", running.folder, running.http_port, {"node-9": 1}, running.secret_file)
    other.changes["--data-dir"] = str(running.data_dir)
    said = other.refused()
    assert "node-1" in said
    assert "node-9" in said
    running.restart()  # the refusals did no harm


def test_a_member_of_an_existing_cluster_does_not_start_without_its_log_and_makes_none(node: NodeProcess) -> None:
    node.changes["--cluster-state"] = "existing"
    assert "a member that has forgotten what it acknowledged must not vote" in node.refused()
    assert not node.data_dir.exists()
    node.changes["--cluster-state"] = "new"
    node.restart()
    assert node.terminate() == 0
    node.changes["--cluster-state"] = "existing"
    node.restart()
    assert node.terminate() == 0
    for segment in (node.data_dir / "raft").glob("wal-*.log"):
        segment.unlink()
    said = node.refused()
    assert str(node.data_dir / "raft") in said
    assert "quorate reset" in said
    node.changes["--cluster-state"] = "new"
    assert "there is no log, but the state beside it has applied" in node.refused()


def written_bytes(segment: Path) -> int:
    """Of a segment of the log; the room that was set aside after it is zeros."""
    return len(segment.read_bytes().rstrip(b"\0"))


def test_a_log_that_lacks_what_was_applied_is_refused_with_the_way_out_and_not_cut(running: NodeProcess) -> None:
    for number in range(5):
        plain_http.put(running.url + SETTINGS, content=f"a: {number}").raise_for_status()
    assert running.terminate() == 0
    (segment,) = (running.data_dir / "raft").glob("wal-*.log")
    whole = segment.read_bytes()
    half = whole[: written_bytes(segment) // 2]
    segment.write_bytes(half)
    said = running.refused()
    for word in (str(segment.parent), segment.name, "has applied", "put this member's whole data folder back"):
        assert word in said
    assert segment.read_bytes() == half
    segment.write_bytes(whole)
    running.restart()
    assert plain_http.get(running.url + SETTINGS).json()["content"] == "a: 4"


def test_a_damaged_log_is_refused_naming_file_and_offset(running: NodeProcess) -> None:
    for number in range(20):
        plain_http.put(running.url + SETTINGS, content=f"a: {number}").raise_for_status()
    running.kill()
    (segment,) = (running.data_dir / "raft").glob("wal-*.log")
    whole = segment.read_bytes()
    middle = written_bytes(segment) // 2
    segment.write_bytes(whole[:middle] + bytes([whole[middle] ^ 0xFF]) + whole[middle + 1 :])
    said = running.refused()
    assert segment.name in said
    assert "offset" in said
    segment.write_bytes(whole)
    running.restart()
    assert plain_http.get(running.url + SETTINGS).json()["content"] == "a: 19"


def test_a_node_whose_disk_refuses_a_write_stops_without_having_acknowledged_it(running: NodeProcess) -> None:
    path = running.url + "/v1/config/default/order/filler"
    for number in range(4):
        plain_http.put(path, content=f"{number}" * 100_000).raise_for_status()
    assert running.process is not None
    (segment,) = (running.data_dir / "raft").glob("wal-*.log")
    log_bytes = written_bytes(segment)
    resource.prlimit(running.process.pid, resource.RLIMIT_FSIZE, (log_bytes + 10_000, log_bytes + 10_000))
    with pytest.raises(httpx.HTTPError):
        plain_http.put(path, content="x" * 100_000, timeout=20).raise_for_status()
    assert running.exit_status() == EXIT_FAILURE
    running.restart()
    assert plain_http.get(path).json()["content"] == "3" * 100_000


def test_clients_that_hold_connections_leave_files_for_the_node_itself(node: NodeProcess) -> None:
    """Where few are allowed: others are cut off, those that were there are served, and the log and the state go on."""
    node.program = ("-c", START_WITH_FEW_FILES)
    node.restart()
    assert "fewer_connections" in node.log
    assert node.process is not None
    files = Path(f"/proc/{node.process.pid}/fd")
    with ExitStack() as ends, httpx.Client(trust_env=False) as early:
        early.put(node.url + SETTINGS, content="a: 0").raise_for_status()
        for _ in range(FILES_ALLOWED + 50):
            ends.enter_context(socket.create_connection(("127.0.0.1", node.http_port)))
        until("no more are let in", lambda: len(list(files.iterdir())) > FILES_ALLOWED // 2)
        for number in range(1, 20):
            early.put(node.url + SETTINGS, content=f"a: {number}").raise_for_status()
        early.get(node.url + "/v1/cluster/status").raise_for_status()
        assert len(list(files.iterdir())) < FILES_ALLOWED - 32
    until("others are let in again", lambda: plain_http.get(node.url + SETTINGS).json()["content"] == "a: 19")


def test_two_processes_never_share_a_data_folder(running: NodeProcess, tmp_path: Path) -> None:
    with node_cluster(tmp_path, 1) as cluster:
        second = cluster.nodes[0]
        second.changes["--data-dir"] = str(running.data_dir)
        assert "is in use by another process" in second.refused()
    assert running.is_ready()


@pytest.mark.parametrize("flag", ["--http", "--peer"])
def test_a_port_in_use_is_named(node: NodeProcess, flag: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        node.changes[flag] = address
        assert f"{flag}: {address} is in use" in node.refused()


def test_bound_beyond_loopback_a_node_needs_a_token_and_asks_for_it(node: NodeProcess) -> None:
    node.changes["--http"] = f"0.0.0.0:{node.http_port}"
    node.changes["--http-advertise"] = f"127.0.0.1:{node.http_port}"
    assert "give --token-file FILE, or bind 127.0.0.1" in node.refused()
    token_file = write_secret(node.folder / "token")
    node.changes["--token-file"] = str(token_file)
    node.restart()
    assert plain_http.get(node.url + "/livez").status_code == 200
    assert is_problem(plain_http.get(node.url + "/v1/cluster/status"), 401)
    assert is_problem(plain_http.get(node.url, headers={"authorization": "Bearer wrong"}), 401)
    bearer = {"authorization": f"Bearer {token_file.read_text().strip()}"}
    [report] = plain_http.get(node.url + "/v1/cluster/status", headers=bearer).json()["nodes"]
    assert (report["name"], report["error"]) == ("node-1", None)


def test_logs_can_be_json_and_say_at_start_what_runs_where(node: NodeProcess) -> None:
    node.changes["--log-format"] = "json"
    node.restart()
    lines = [json.loads(line) for line in node.log.splitlines()]
    started = next(line for line in lines if line["event"] == "node_started")
    assert started["part"] == "node-1"
    assert {"http", "peer", "members", "data_dir", "cluster_id", "apps"} <= started.keys()
    until("a standing is logged", lambda: '"leader": "node-1"' in node.log)
