"""The parts' logs: bounded, interleaved by time, followed."""

import os
from pathlib import Path

from quorate_cli.part_logs import Follower, bound_size, interleave, last_lines, open_for_part


def test_the_lines_of_all_parts_are_told_in_the_order_of_their_times() -> None:
    lines = {
        "order-1": ["2031-05-01T10:00:02.5Z placed", "2031-05-01T10:00:04.0Z confirmed"],
        "node-1": ["2031-05-01T10:00:01.0Z leader", "\x1b[2m2031-05-01T10:00:03.0Z\x1b[0m commit"],
    }
    texts = [line.text.rpartition(" ")[2] for line in interleave(lines, 10)]
    assert texts == ["leader", "placed", "commit", "confirmed"]
    assert [line.part for line in interleave(lines, 2)] == ["node-1", "order-1"]
    assert interleave(lines, 0) == []


def test_a_line_without_a_time_stays_behind_its_own_parts_line_before_it() -> None:
    lines = {
        "a": ["2031-05-01T10:00:01Z failed", "Traceback", "  ValueError", "2031-05-01T10:00:05Z back"],
        "b": ["2031-05-01T10:00:02Z other"],
    }
    assert [line.text for line in interleave(lines, 10)][1:3] == ["Traceback", "  ValueError"]


def test_a_part_whose_clock_went_back_keeps_its_own_order() -> None:
    lines = {"a": ["2031-05-01T10:00:05Z first", "2031-05-01T10:00:01Z second"], "b": ["2031-05-01T10:00:03Z other"]}
    assert [line.text.rpartition(" ")[2] for line in interleave(lines, 10)] == ["other", "first", "second"]


def test_the_last_lines_are_read_from_the_end_also_of_a_file_that_is_larger_than_what_is_read(tmp_path: Path) -> None:
    log = tmp_path / "node-1.log"
    log.write_text("".join(f"line {number:07}\n" for number in range(120_000)))
    assert last_lines(log, 2) == ["line 0119998", "line 0119999"]
    everything = last_lines(log, 10**6)
    assert 0 < len(everything) < 120_000
    assert all(len(line) == len("line 0000000") for line in everything)
    assert last_lines(tmp_path / "none.log", 5) == []


def test_a_log_over_its_limit_is_set_aside_and_its_writer_goes_on_in_the_emptied_file(tmp_path: Path) -> None:
    log = tmp_path / "node-1.log"
    writer = open_for_part(log)
    os.write(writer, b"x" * 100 + b"\n")
    assert not bound_size(log, bytes_max=200)
    assert bound_size(log, bytes_max=50)
    os.write(writer, b"after\n")
    os.close(writer)
    assert log.read_text() == "after\n"
    assert (tmp_path / "node-1.log.1").stat().st_size == 101
    assert not bound_size(tmp_path / "none.log")


def test_a_follower_tells_each_new_line_once_also_of_new_files_and_after_the_file_was_emptied(tmp_path: Path) -> None:
    log = tmp_path / "node-1.log"
    log.write_text("old\n")
    follower = Follower(tmp_path, None)
    writer = open_for_part(log)
    os.write(writer, b"first\nhal")
    assert [line.text for line in follower.new_lines()] == ["first"]
    os.write(writer, b"f\n")
    (tmp_path / "order-1.log").write_text("hello\n")
    assert {(line.part, line.text) for line in follower.new_lines()} == {("node-1", "half"), ("order-1", "hello")}
    assert bound_size(log, bytes_max=1)
    os.write(writer, b"new\n")
    os.close(writer)
    assert [line.text for line in follower.new_lines()] == ["new"]
    assert list(follower.new_lines()) == []


def test_a_follower_of_one_part_tells_nothing_of_the_others(tmp_path: Path) -> None:
    follower = Follower(tmp_path, "node-1")
    (tmp_path / "node-1.log").write_text("mine\n")
    (tmp_path / "node-2.log").write_text("other\n")
    assert [line.text for line in follower.new_lines()] == ["mine"]
