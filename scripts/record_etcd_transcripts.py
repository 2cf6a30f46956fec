"""Record what a real etcd answers to the scripts in `tests/contract/v3/scripts`, as the transcripts beside them.

    .venv/bin/python scripts/record_etcd_transcripts.py [--etcd PROGRAM] [NAME…]

Each script gets an etcd of its own: one member on a folder that is thrown away, on free ports of loopback. Without
`--etcd` it is the program that `scripts/fetch_peers.py` has found, or the one on the PATH.
"""

import argparse
import http.client
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
for folder in (ROOT, ROOT / "tests"):  # as pytest has it: what plays scripts here plays them there
    sys.path.insert(0, str(folder))

from support.node_processes import free_ports  # noqa: E402
from support.v3_transcripts import TRANSCRIPTS, Player, read_script, script_names  # noqa: E402

from benchmarks.failures import BenchmarkFailed  # noqa: E402
from benchmarks.peers import read_programs  # noqa: E402

START_S_MAX = 20.0
STOP_S_MAX = 10.0
POLL_S = 0.05
WIDTH_MAX = 110


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="scripts to record (default: all)")
    parser.add_argument("--etcd", help="the etcd program")
    options = parser.parse_args()
    program = options.etcd or _find_etcd()
    version = subprocess.run([program, "--version"], check=True, capture_output=True, text=True).stdout
    recorded_from = version.splitlines()[0].replace(" Version:", "")
    TRANSCRIPTS.mkdir(exist_ok=True)
    for name in options.names or script_names():
        script = read_script(name)
        transcript = {"recorded_from": recorded_from, **script, "steps": _record(program, script)}
        path = TRANSCRIPTS / f"{name}.json"
        path.write_text(_laid_out(transcript) + "\n")
        print(f"{name}: {len(transcript['steps'])} steps")


def _find_etcd() -> str:
    try:
        return read_programs()["etcd"].path
    except BenchmarkFailed as error:
        found = shutil.which("etcd")
        if found is None:
            sys.exit(f"no etcd was found ({error}); give one by --etcd")
        return found


def _record(program: str, script: dict[str, Any]) -> list[dict[str, Any]]:
    steps = []
    with _etcd(program, script.get("etcd", [])) as port, Player("127.0.0.1", port) as player:
        for step in script["steps"]:
            try:
                steps.append({**step, "answer": player.play(step)})
            except (OSError, http.client.HTTPException, AssertionError) as error:
                sys.exit(f"{step['says']}: {error!r}")
    return steps


@contextmanager
def _etcd(program: str, flags: list[str]) -> Iterator[int]:
    """A running etcd; yields the port of its clients."""
    client, peer = free_ports(2)
    client_url, peer_url = f"http://127.0.0.1:{client}", f"http://127.0.0.1:{peer}"
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(
            [
                program, "--data-dir", folder, "--name", "node-1", "--listen-client-urls", client_url,
                "--advertise-client-urls", client_url, "--listen-peer-urls", peer_url,
                "--initial-advertise-peer-urls", peer_url, "--initial-cluster", f"node-1={peer_url}", *flags,
            ],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            _wait_until_healthy(process, client)
            yield client
        finally:
            process.terminate()
            process.wait(STOP_S_MAX)


def _wait_until_healthy(process: subprocess.Popen[bytes], port: int) -> None:
    deadline_s = time.monotonic() + START_S_MAX
    while time.monotonic() < deadline_s and process.poll() is None:
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=1)
            connection.request("GET", "/health")
            if json.loads(connection.getresponse().read()).get("health") == "true":
                return
        except (OSError, http.client.HTTPException):
            pass
        time.sleep(POLL_S)
    sys.exit("etcd does not come up")


def _laid_out(content: Any, indent: str = "") -> str:
    """JSON for people: what fits on a line is on one."""
    flat = _readable(content)
    if not content or not isinstance(content, dict | list) or len(indent) + len(flat) <= WIDTH_MAX:
        return flat
    deeper = indent + "  "
    if isinstance(content, list):
        inside = [_laid_out(one, deeper) for one in content]
        return "[\n" + ",\n".join(deeper + one for one in inside) + f"\n{indent}]"
    inside = [f"{_readable(name)}: {_laid_out(one, deeper)}" for name, one in content.items()]
    return "{\n" + ",\n".join(deeper + one for one in inside) + f"\n{indent}}}"


def _readable(content: Any) -> str:
    """JSON with letters as they are. Bytes that are no text stand in scripts as lone surrogates, which are escaped."""
    text = json.dumps(content, ensure_ascii=False)
    return text if text.isprintable() else json.dumps(content)


if __name__ == "__main__":
    main()
