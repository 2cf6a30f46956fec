"""Plays scripts of the v3 JSON API against a server, for a transcript of its answers. The format is described in
`tests/contract/v3/README.md`."""

import base64
import http.client
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

ANSWER_S_MAX = 20.0
MASKED = "…"
FOLDER = Path(__file__).resolve().parent.parent / "contract" / "v3"
SCRIPTS = FOLDER / "scripts"
TRANSCRIPTS = FOLDER / "transcripts"
DIFFERENCES = FOLDER / "differences.json"

_BYTES_FIELDS = frozenset({"key", "range_end", "rangeEnd", "value"})
_IDENTITIES = ("cluster_id", "member_id", "raft_term")
"""Of headers, wherever they stand: no two clusters have the same."""
_VARIABLE = re.compile(r"\$\{(\w+)\}")

Step = dict[str, Any]
Answer = dict[str, Any]


def script_names() -> list[str]:
    return sorted(path.stem for path in SCRIPTS.glob("*.json"))


def read_script(name: str) -> dict[str, Any]:
    return dict(json.loads((SCRIPTS / f"{name}.json").read_text()))


class Player(AbstractContextManager["Player"]):
    """One client of a server at `host:port`, with the variables and the streams of one script."""

    def __init__(self, host: str, port: int) -> None:
        self._host = host
        self._port = port
        self._variables: dict[str, str] = {}
        self._streams: dict[str, tuple[http.client.HTTPConnection, http.client.HTTPResponse]] = {}

    def __exit__(self, *_: object) -> None:
        for name in list(self._streams):
            self._close(name)

    def play(self, step: Step) -> Answer:
        """Do what `step` says; returns what was answered, with its variables and masks in place of the values."""
        if "close" in step:
            self._close(step["close"])
            return {}
        if "read" in step:
            return self._noted(step, {"lines": self._read_lines(step["read"], step["lines"])})
        if "open" in step:
            return self._noted(step, self._open(step))
        connection, response = self._send(step)
        try:
            return self._noted(step, _answer_of(response))
        finally:
            connection.close()

    def _open(self, step: Step) -> Answer:
        connection, response = self._send(step)
        self._streams[step["open"]] = connection, response
        lines = self._read_lines(step["open"], step["lines"])
        return {"status": response.status, "type": response.headers.get("content-type"), "lines": lines}

    def _read_lines(self, name: str, count: int) -> list[Any]:
        response = self._streams[name][1]
        lines = [response.readline() for _ in range(count)]
        if not all(lines):
            raise AssertionError(f"stream {name!r} ended after {lines}, and {count} lines were to come")
        return [json.loads(line) for line in lines]

    def _close(self, name: str) -> None:
        connection, response = self._streams.pop(name)
        response.close()
        connection.close()

    def _send(self, step: Step) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        connection = http.client.HTTPConnection(self._host, self._port, timeout=ANSWER_S_MAX)
        method = step.get("method", "POST")
        body = self._body_of(step) if method == "POST" else None
        connection.request(method, step["path"], body, step.get("headers", {}))
        return connection, connection.getresponse()

    def _body_of(self, step: Step) -> bytes:
        if "text" in step:
            return self._filled_in(step["text"]).encode("utf-8", "surrogateescape")
        bodies = [_repeated(body) for body in step.get("bodies") or [step.get("body", {})]]
        if "filler" in step:
            field, count = step["filler"]
            bodies = [{**bodies[0], field: "x" * count}]
        opening, closing = (part * step.get("nested", 0) for part in ('{"success":[{"request_txn":', "}]}"))
        return "".join(opening + self._filled_in(json.dumps(_in_base64(body))) + closing for body in bodies).encode()

    def _filled_in(self, text: str) -> str:
        return _VARIABLE.sub(lambda found: self._variables[found[1]], text)

    def _noted(self, step: Step, answer: Answer) -> Answer:
        content = answer.get("body", answer.get("lines"))
        for name, path in step.get("capture", {}).items():
            self._variables[name] = str(_at(content, path))
        _mask_identities(content)
        for path in step.get("mask", []):
            _replace(content, path, MASKED)
        by_value = {value: f"${{{name}}}" for name, value in self._variables.items()}
        return dict(_with_names(answer, by_value))


def _answer_of(response: http.client.HTTPResponse) -> Answer:
    said = response.read().decode()
    answer: Answer = {"status": response.status, "type": response.headers.get("content-type")}
    lines = said.splitlines()
    try:
        if len(lines) == 1 and not said.startswith('{"result":'):
            return {**answer, "body": json.loads(said)}
        if lines and said.startswith('{"result":'):
            return {**answer, "lines": [json.loads(line) for line in lines]}
    except json.JSONDecodeError:
        pass
    return {**answer, "said": said}


def _repeated(content: Any) -> Any:
    """`content` with its lists written out."""
    if isinstance(content, dict):
        return {name: _repeated(value) for name, value in content.items()}
    if not isinstance(content, list):
        return content
    return [
        _repeated(one["of"]) if isinstance(one, dict) and "times" in one else _repeated(one)
        for one in content
        for _ in range(one["times"] if isinstance(one, dict) and "times" in one else 1)
    ]


def _in_base64(content: Any) -> Any:
    """`content` with its keys and values, which are text in scripts, as they are sent."""
    if isinstance(content, Mapping):
        return {
            name: base64.b64encode(value.encode("utf-8", "surrogateescape")).decode()
            if name in _BYTES_FIELDS and isinstance(value, str)
            else _in_base64(value)
            for name, value in content.items()
        }
    return [_in_base64(one) for one in content] if isinstance(content, list) else content


def _mask_identities(content: Any) -> None:
    for one in _objects_in(content):
        for name in _IDENTITIES:
            if name in one:
                one[name] = MASKED


def _objects_in(content: Any) -> Iterator[dict[str, Any]]:
    if isinstance(content, dict):
        yield content
        for value in content.values():
            yield from _objects_in(value)
    elif isinstance(content, list):
        for value in content:
            yield from _objects_in(value)


def _with_names(content: Any, by_value: Mapping[str, str]) -> Any:
    if isinstance(content, dict):
        return {name: _with_names(value, by_value) for name, value in content.items()}
    if isinstance(content, list):
        return [_with_names(value, by_value) for value in content]
    return by_value.get(content, content) if isinstance(content, str) else content


def _at(content: Any, path: list[str | int]) -> Any:
    for part in path:
        content = content[part]
    return content


def _replace(content: Any, path: list[str | int], value: str) -> None:
    """Does nothing where the path leads nowhere: a field that is zero is left out."""
    *parents, last = path
    try:
        holder = _at(content, parents)
        holder[last]
    except (KeyError, IndexError):
        return
    holder[last] = value


def in_order(content: Any) -> str:
    """JSON in which the order of fields counts."""
    return json.dumps(content, ensure_ascii=False)
