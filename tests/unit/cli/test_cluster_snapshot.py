"""`quorate cluster snapshot save` and `status` as they are typed, against a real HTTP server and real files."""

import json
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from quorate_cli import backup_files
from quorate_store.backup import DamagedBackup
from quorate_store.model import PutOp
from support.store_backups import apply, opened, write_backup

Make = Callable[..., Any]


@pytest.fixture
def backup(tmp_path: Path) -> bytes:
    """The bytes of one, as a node sends them."""
    machine = opened(tmp_path / "machine")
    apply(machine, *(PutOp(b"k%d" % number, bytes(1000)) for number in range(300)))
    data = write_backup(machine, tmp_path / "node.snapshot").read_bytes()
    machine.close()
    return data


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    found = tmp_path / "backups"
    found.mkdir()
    return found


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_snapshot_is_saved_for_its_owner_alone(
    quorate: Make, named: Make, make_answer: Make, backup: bytes, folder: Path
) -> None:
    server = named(make_answer(body=backup))
    code, out, err = quorate("cluster", "snapshot", "save", str(folder / "b"))
    assert (code, err) == (0, "")
    assert (folder / "b").read_bytes() == backup
    assert (folder / "b").stat().st_mode & 0o777 == 0o600
    assert "revision 301, of node-1, 2026-07-01T12:00:00Z" in out
    assert [asked.path for asked in server.asked] == ["/v1/cluster/snapshot"]
    assert names(folder) == ["b"]


def test_one_that_was_taken_without_a_leader_says_so(
    quorate: Make, named: Make, make_answer: Make, tmp_path: Path, folder: Path
) -> None:
    machine = opened(tmp_path / "machine")
    apply(machine, PutOp(b"k", b"v"))
    data = write_backup(machine, tmp_path / "node.snapshot", is_complete=False).read_bytes()
    machine.close()
    server = named(make_answer(body=data))
    code, _, err = quorate("cluster", "snapshot", "save", str(folder / "b"), "--stale")
    assert (code, "may be missing" in err) == (0, True)
    assert server.asked[0].path == "/v1/cluster/snapshot?stale=true"
    assert "may be missing" in quorate("cluster", "snapshot", "status", str(folder / "b"))[1]


def test_what_is_there_is_replaced_only_by_force(
    quorate: Make, named: Make, make_answer: Make, backup: bytes, folder: Path
) -> None:
    server = named(make_answer(body=backup))
    (folder / "b").write_text("yesterday's")
    code, _, err = quorate("cluster", "snapshot", "save", str(folder / "b"))
    assert (code, "--force" in err) == (4, True)
    assert server.asked == [], "nothing is fetched in vain"
    assert (folder / "b").read_text() == "yesterday's"
    assert quorate("cluster", "snapshot", "save", str(folder / "b"), "--force")[0] == 0
    assert (folder / "b").read_bytes() == backup
    assert names(folder) == ["b"]


@pytest.mark.parametrize("place", ["missing/b", "."])
def test_a_place_where_no_file_can_be_is_refused_before_anything_is_fetched(
    quorate: Make, named: Make, make_answer: Make, backup: bytes, folder: Path, place: str
) -> None:
    server = named(make_answer(body=backup))
    assert quorate("cluster", "snapshot", "save", str(folder / place))[0] == 4
    assert server.asked == []


@pytest.mark.parametrize("cut", [1, 500, 100_000])
def test_what_does_not_arrive_whole_leaves_what_was_there(
    quorate: Make, named: Make, make_answer: Make, backup: bytes, folder: Path, cut: int
) -> None:
    """A part of it, with a head that says that this is all: only its own length and checksum tell."""
    named(make_answer(body=backup[:-cut]))
    (folder / "b").write_text("yesterday's")
    code, _, err = quorate("cluster", "snapshot", "save", str(folder / "b"), "--force")
    assert (code, "it ends after" in err) == (4, True)
    assert (folder / "b").read_text() == "yesterday's"
    assert names(folder) == ["b"]


def test_a_node_that_breaks_off_leaves_nothing(quorate: Make, backup: bytes, folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65_536)
                connection.sendall(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
                connection.sendall(b"%x\r\n%b\r\n" % (len(backup) // 2, backup[: len(backup) // 2]))

        thread = threading.Thread(target=serve)
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        code, _, err = quorate("cluster", "snapshot", "save", str(folder / "b"), "--endpoints", url)
        thread.join()
    assert (code, "broke off its answer" in err) == (5, True)
    assert names(folder) == []


def test_whatever_ends_the_work_nothing_is_left_of_it(backup: bytes, folder: Path) -> None:
    def pieces() -> Iterator[bytes]:
        yield backup[:5000]
        assert len(names(folder)) == 1
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        backup_files.save_backup(pieces(), folder / "b", force=False, on_progress=lambda *_: None)
    assert names(folder) == []


def test_what_has_come_to_be_there_meanwhile_is_not_replaced(backup: bytes, folder: Path) -> None:
    def pieces() -> Iterator[bytes]:
        yield backup
        (folder / "b").write_text("another one's")

    with pytest.raises(Exception, match="is there already"):
        backup_files.save_backup(pieces(), folder / "b", force=False, on_progress=lambda *_: None)
    assert (folder / "b").read_text() == "another one's"
    assert names(folder) == ["b"]


def test_without_a_leader_the_way_out_is_told(
    quorate: Make, named: Make, make_problem: Make, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quorate_cli.cluster_snapshot.DEADLINE_S", 0.1)
    named(make_problem(503, "not-proposed", "no leader is known at present", "safe"))
    code, _, err = quorate("cluster", "snapshot", "save", str(folder / "b"))
    assert (code, "--stale" in err) == (5, True)
    assert names(folder) == []


def test_a_member_that_is_busy_is_left_for_another_endpoint(
    quorate: Make, new_server: Make, make_problem: Make, make_answer: Make, backup: bytes, folder: Path
) -> None:
    busy = new_server(make_problem(429, "too-many-requests", "one at a time", "safe"))
    free = new_server(make_answer(body=backup))
    endpoints = f"{busy.url},{free.url}"
    assert quorate("cluster", "snapshot", "save", str(folder / "b"), "--endpoints", endpoints)[0] == 0
    assert (len(busy.asked), len(free.asked)) == (1, 1)


def test_the_member_that_is_named_is_asked_where_it_is(
    quorate: Make, named: Make, new_server: Make, make_answer: Make, backup: bytes, folder: Path
) -> None:
    second = new_server(make_answer(body=backup))
    members = [
        {"name": "node-1", "peer": "127.0.0.1:7501", "role": "voter", "url": "http://127.0.0.1:1"},
        {"name": "node-2", "peer": "127.0.0.1:7502", "role": "voter", "url": second.url},
        {"name": "node-3", "peer": "127.0.0.1:7503", "role": "voter", "url": ""},
    ]
    named(make_answer(body={"cluster_id": "c", "leader": "node-1", "members": members}))
    assert quorate("cluster", "snapshot", "save", str(folder / "b"), "--node", "node-2")[0] == 0
    assert [asked.path for asked in second.asked] == ["/v1/cluster/snapshot"]
    code, _, err = quorate("cluster", "snapshot", "save", str(folder / "c"), "--node", "node-3")
    assert (code, "node-3 is not up" in err) == (5, True)
    code, _, err = quorate("cluster", "snapshot", "save", str(folder / "c"), "--node", "node-4")
    assert (code, "node-4 is no member; there are node-1, node-2, node-3" in err) == (3, True)


def test_status_shows_what_is_in_a_snapshot(quorate: Make, backup: bytes, folder: Path) -> None:
    (folder / "b").write_bytes(backup)
    code, out, _ = quorate("cluster", "snapshot", "status", str(folder / "b"))
    assert code == 0
    for shown in ("301, compacted up to 0", "2026-07-01T12:00:00Z, of node-1", "old-cluster", "300", "everything ack"):
        assert shown in out
    found = json.loads(quorate("cluster", "snapshot", "status", str(folder / "b"), "--json")[1])
    assert (found["keys"], found["revision"], found["index"]) == (300, 301, 300)
    assert names(folder) == ["b"]


def test_status_of_a_damaged_snapshot_exits_with_4(quorate: Make, backup: bytes, folder: Path) -> None:
    damaged = bytearray(backup)
    damaged[-100] ^= 4
    (folder / "b").write_bytes(damaged)
    code, _, err = quorate("cluster", "snapshot", "status", str(folder / "b"))
    assert (code, "has the checksum" in err, "Traceback" in err) == (4, True, False)
    assert quorate("cluster", "snapshot", "status", str(folder / "none"))[0] == 1


def test_what_a_node_sends_that_is_no_snapshot_is_refused(folder: Path) -> None:
    with pytest.raises(DamagedBackup, match="what the node sent is no snapshot"):
        backup_files.save_backup([b"<html>"], folder / "b", force=False, on_progress=lambda *_: None)
