"""What the parts print: one file a part under `logs/`, bounded in size, read back for `quorate logs` and for errors.

The parts write to their files themselves, opened for appending, so that nothing they say at their end is lost, not
even when the supervisor is gone. For the same reason a file that has grown too large is copied aside and emptied,
not renamed: its writer keeps its descriptor.
"""

import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

LOG_BYTES_MAX = 16 * 1024 * 1024
"""Size at which a log is set aside; with its one older copy, a part's logs take twice this."""
TAIL_BYTES_MAX = 1024 * 1024
READ_BYTES_MAX = 256 * 1024
_TIME = re.compile(r"^(?:\x1b\[[0-9;]*m)*(\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d[.,\d]*Z?)")
_STYLE = re.compile(r"\x1b\[[0-9;]*m")


def open_for_part(path: Path) -> int:
    """A descriptor that a part's stdout and stderr are handed."""
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)


def bound_size(path: Path, bytes_max: int = LOG_BYTES_MAX) -> bool:
    """Set the log aside as `<name>.1` when it is over `bytes_max`; whether it was.

    Lines written between the copy and the cut are lost: a log is for people, and losing a few lines beats a full disk.
    """
    try:
        if path.stat().st_size <= bytes_max:
            return False
    except FileNotFoundError:
        return False
    shutil.copyfile(path, path.with_name(path.name + ".1"))
    os.truncate(path, 0)
    return True


def size_bytes(path: Path) -> int:
    """How much was written so far: where what comes next begins."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def last_lines(path: Path, count: int, since_bytes: int = 0) -> list[str]:
    """Up to `count` last lines, of at most TAIL_BYTES_MAX bytes; none when there is no file that can be read.

    `since_bytes`: only what was written after the log had that size.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            since_bytes = since_bytes if since_bytes <= size else 0  # emptied meanwhile
            start = max(since_bytes, size - TAIL_BYTES_MAX)
            file.seek(start)
            text = file.read(TAIL_BYTES_MAX).decode(errors="replace")
    except OSError:
        return []
    lines = text.splitlines()
    if start > since_bytes and lines:
        del lines[0]  # its beginning is before what was read
    return lines[-count:] if count > 0 else []


@dataclass(frozen=True, slots=True)
class LogLine:
    part: str
    text: str


def interleave(lines_by_part: dict[str, list[str]], count: int) -> list[LogLine]:
    """The last `count` lines of all parts in the order of their times.

    A line without a time (a trace, a wrapped message) stays behind the line before it.
    """
    timed: list[tuple[str, int, LogLine]] = []
    for part, lines in lines_by_part.items():
        time = ""
        for text in lines:
            found = _TIME.match(text)
            time = max(time, found[1]) if found else time  # a part's own order stands, whatever its clock did
            timed.append((time, len(timed), LogLine(part, text)))
    timed.sort(key=lambda item: item[:2])
    return [line for _, _, line in timed[-count:]] if count > 0 else []


def without_style(text: str) -> str:
    return _STYLE.sub("", text)


class Follower:
    """Reads what is added to a folder's logs, file by file, also when one is emptied or a new one appears."""

    def __init__(self, folder: Path, part: str | None) -> None:
        self._folder = folder
        self._part = part
        self._positions = {path: path.stat().st_size for path in self._files()}
        self._unfinished: dict[Path, bytes] = {}

    def new_lines(self) -> Iterator[LogLine]:
        """Lines that were finished since the last call."""
        for path in self._files():
            yield from (LogLine(path.stem, text) for text in self._read(path))

    def _files(self) -> list[Path]:
        return sorted(self._folder.glob(f"{self._part or '*'}.log"))

    def _read(self, path: Path) -> list[str]:
        position = self._positions.get(path, 0)
        try:
            with path.open("rb") as file:
                if file.seek(0, os.SEEK_END) < position:
                    position = 0  # emptied meanwhile
                    self._unfinished.pop(path, None)
                file.seek(position)
                read = file.read(READ_BYTES_MAX)
        except FileNotFoundError:
            return []
        self._positions[path] = position + len(read)
        *lines, rest = (self._unfinished.get(path, b"") + read).split(b"\n")
        self._unfinished[path] = rest[-READ_BYTES_MAX:]
        return [line.decode(errors="replace") for line in lines]
