"""What the figures were measured on."""

import importlib.metadata
import os
import platform
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

SYNC_BYTES = 256
SYNC_COUNT = 100
QUIET_LOAD_MAX = 0.5
"""Above this load average somebody else is working here, and the figures say more about them than about us."""
_MIB = 1024**2
_LIBRARIES = ("uvloop", "httptools", "uvicorn", "msgspec", "lmdb")


@dataclass(frozen=True)
class Machine:
    """`load_before` is the one-minute load average before the run, `sync_ms` what fdatasync takes after an append."""

    processor: str
    cores_total: int
    cores_used: tuple[int, ...]
    memory_mib: int
    kernel: str
    python: str
    libraries: dict[str, str]
    peers: dict[str, str]
    file_system: str
    sync_ms: float
    load_before: float

    @property
    def is_quiet(self) -> bool:
        return self.load_before <= QUIET_LOAD_MAX

    def lines(self) -> list[str]:
        versions = ", ".join(f"{name} {version}" for name, version in self.peers.items())
        libraries = ", ".join(f"{name} {version}" for name, version in self.libraries.items())
        cores = ", ".join(map(str, self.cores_used))
        quiet = "" if self.is_quiet else ": **not quiet, so these figures are no good**"
        where = (
            f"{self.cores_total} cores ({self.processor}), of which {cores} were used; "
            f"{self.memory_mib / 1024:.0f} GiB; Linux {self.kernel}; load average before: {self.load_before:.2f}{quiet}"
        )
        return [
            where,
            f"peers: {versions}",
            f"ours: Python {self.python}, {libraries}",
            f"disk: {self.file_system}; fdatasync after {SYNC_BYTES} bytes: median {self.sync_ms:.2f} ms",
        ]


def describe_machine(folder: Path, cores: tuple[int, ...], peers: dict[str, str]) -> Machine:
    """`folder` is where the data will be; its disk is the one that is described."""
    return Machine(
        processor=_processor(),
        cores_total=os.cpu_count() or 0,
        cores_used=cores,
        memory_mib=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // _MIB,
        kernel=platform.release(),
        python=platform.python_version(),
        libraries={name: importlib.metadata.version(name) for name in _LIBRARIES},
        peers=peers,
        file_system=file_system_of(folder, Path("/proc/self/mounts").read_text()),
        sync_ms=_sync_ms(folder),
        load_before=os.getloadavg()[0],
    )


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return " ".join(line.partition(":")[2].split())
    return platform.machine()


def file_system_of(folder: Path, mounts: str) -> str:
    """Type of the file system that holds `folder`, by the lines of /proc/self/mounts: the last of the deepest."""
    best, found = -1, "unknown"
    for line in mounts.splitlines():
        _, place, kind, *_ = line.split()
        depth = len(Path(place).parts)
        if folder.resolve().is_relative_to(place) and depth >= best:
            best, found = depth, kind
    return found


def _sync_ms(folder: Path) -> float:
    path = folder / "sync-probe"
    taken = []
    try:
        with path.open("wb", buffering=0) as file:
            for _ in range(SYNC_COUNT):
                began_s = time.perf_counter()
                file.write(b"x" * SYNC_BYTES)
                os.fdatasync(file.fileno())
                taken.append(time.perf_counter() - began_s)
    finally:
        path.unlink(missing_ok=True)
    return statistics.median(taken) * 1e3
