"""`quorate cluster watch`: each change of a key as it comes, once and in order, whichever nodes die meanwhile.

Theory of operation. `next_revision` is the first revision that was not shown yet; 0 until it is known, for a watch from
now on. Each stream begins there, so it does not matter where one ends and another begins:

- *created*: of a watch from now on, the header's revision is the last one that is not shown.
- *events*: those from `next_revision` on are shown, and it moves behind the last of them.
- *a bookmark* (no events): everything up to its revision was sent. One is asked for with each stream, so that a watch
  of a quiet key does not fall behind what compaction keeps.
- *canceled, compacted*: history does not reach back. A watch that has begun says what it may have missed, and goes on
  from where history begins; one that was to begin there ends.
- *the stream breaks, or is silent for WATCH_SILENCE_S*: the next node is asked. A node that is frozen, or cut off, is
  silent like a quiet key; asking another one costs little, and is told only when none answers.
"""

import contextlib
import itertools
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import typer
from quorate_core.errors import Compacted, InvalidRequest, QuorateError, Retry, Unavailable

from quorate_cli.client import ControlPlane, Silent
from quorate_cli.endpoints import find_target
from quorate_cli.etcd_errors import error_from_etcd
from quorate_cli.key_formats import as_fields, shown
from quorate_cli.keys import Prefix, StoredKeyArgument, as_key
from quorate_cli.options import AsJson, Endpoints, TokenFile
from quorate_cli.stored_keys import KeyRange, StoredKey

WATCH_SILENCE_S = 5.0
RECONNECT_INTERVAL_S = 0.5
STREAM_S_MIN = 1.0
"""After a stream that was shorter there is a pause, so that a node that ends them all is not asked in a loop."""
WATCH_PATH = "/v3/watch"
PUT = "PUT"


@dataclass(frozen=True, slots=True)
class KeyEvent:
    """One change. Of a deletion, `kv` has the key and its revision alone; `previous` where it was asked for."""

    kind: str
    kv: StoredKey
    previous: StoredKey | None


def watch(
    key: StoredKeyArgument,
    prefix: Prefix = False,
    from_revision: Annotated[
        int, typer.Option("--from", help="Begin with the changes of this revision.", min=0, show_default="the next one")
    ] = 0,
    previous: Annotated[bool, typer.Option("--previous", help="Show also what each was before.")] = False,
    as_json: AsJson = False,
    endpoints: Endpoints = None,
    token_file: TokenFile = None,
) -> None:
    """Print each change of a key of the store, or of all with a prefix, as it comes, until Ctrl-C. With --json: one
    change a line. Nothing is left out or told twice when a node dies: another one goes on. Examples:

    \b
        quorate cluster watch app/ --prefix
        quorate cluster watch quorate/nodes/ --prefix --from 1
    """
    keys = KeyRange(as_key(key, may_be_empty=prefix), prefix)
    with (
        ControlPlane(find_target(endpoints, token_file)) as control_plane,
        contextlib.suppress(KeyboardInterrupt),
    ):
        for event in KeyWatch(control_plane, keys, from_revision, previous=previous).events():
            typer.echo(_as_json(event, with_previous=previous) if as_json else _line(event, with_previous=previous))


class KeyWatch:
    """One watch of `keys`, over as many streams as it takes."""

    def __init__(
        self, control_plane: ControlPlane, keys: KeyRange, from_revision: int, *, previous: bool,
        silence_s: float = WATCH_SILENCE_S,
    ) -> None:  # fmt: skip
        self._control_plane = control_plane
        self._keys = keys
        self._from_revision = from_revision
        self._previous = previous
        self._silence_s = silence_s
        self._next_revision = from_revision
        self._bookmark = 0
        self._is_answered = False
        """By the endpoint that is asked now."""
        self._is_following = False
        """What was to be seen at the beginning has been seen."""
        self._is_lost = False

    def events(self) -> Iterator[KeyEvent]:
        """For ever. Raises when no endpoint answers at first, or one refuses; later, it goes on trying."""
        endpoints = self._control_plane.endpoints
        has_begun, unanswered = False, 0
        for endpoint in itertools.cycle(endpoints):
            began_s, self._is_answered = time.monotonic(), False
            try:
                yield from self._stream(endpoint)
                failure: QuorateError = Unavailable(f"{endpoint} has ended the watch")
            except QuorateError as error:
                if error.kind.retry is not Retry.SAFE:
                    raise
                failure = error
            has_begun = has_begun or self._is_answered
            unanswered = 0 if self._is_answered else unanswered + 1
            if unanswered >= len(endpoints):
                if not has_begun:
                    raise failure
                self._tell_that_it_is_lost()
            if unanswered >= len(endpoints) or (self._is_answered and time.monotonic() - began_s < STREAM_S_MIN):
                time.sleep(RECONNECT_INTERVAL_S)

    def _stream(self, endpoint: str) -> Iterator[KeyEvent]:
        """From `next_revision` until the stream ends; silence is an end like any other, once it is answered."""
        self._bookmark = 0
        try:
            with self._control_plane.json_lines(endpoint, WATCH_PATH, self._messages(), self._silence_s) as lines:
                for line in lines:
                    yield from self._take(line)
        except Silent:
            if not self._is_answered:
                raise
            # NB: a bookmark counts only after the silence. etcd before 3.4.25 sends it ahead of events that are due.
            self._next_revision = max(self._next_revision, self._bookmark + 1)
            self._is_following = True

    def _messages(self) -> list[dict[str, Any]]:
        wanted = {**self._keys.fields(), "start_revision": str(self._next_revision), "prev_kv": self._previous}
        return [{"create_request": wanted}, {"progress_request": {}}]

    def _take(self, line: Any) -> Iterator[KeyEvent]:
        """The events of one line. Raises the error that it tells of, and Compacted."""
        if not isinstance(line, dict):
            raise QuorateError("the node's answer cannot be understood: no JSON object")
        if "error" in line:
            told = line["error"]
            raise error_from_etcd(told if isinstance(told, dict) else {"message": str(told), **line}, is_read=True)
        result = line.get("result", {})
        if result.get("canceled"):
            self._on_canceled(result)
            return
        self._on_answered()
        revision = int(result.get("header", {}).get("revision", 0))
        events = [_event(fields) for fields in result.get("events", [])]
        if events:
            self._is_following = True
            yield from events
            self._next_revision = max(self._next_revision, events[-1].kv.mod_revision + 1)
        elif not result.get("created"):
            self._bookmark = max(self._bookmark, revision)
        elif not self._next_revision:
            self._next_revision = revision + 1

    def _on_canceled(self, result: Mapping[str, Any]) -> None:
        """Raises, to end this stream; the next one begins where history does."""
        oldest = int(result.get("compact_revision", 0))
        if not oldest:
            reason = str(result.get("cancel_reason") or "without a reason")
            error_type = InvalidRequest if result.get("created") else Unavailable
            raise error_type(f"the node has refused the watch: {reason}")
        missed_from, self._next_revision = self._next_revision, max(oldest, self._next_revision + 1)
        if self._from_revision and not self._is_following:
            raise Compacted(
                f"revision {missed_from} is compacted: history begins at {oldest}", compact_revision=oldest,
                advice=f"Begin there: --from {oldest}; or read what is there now: quorate cluster get",
            )  # fmt: skip
        self._is_answered = True
        missing = f"changes from revision {missed_from} on may be missing here"
        typer.echo(f"History before revision {oldest} was compacted: {missing}.", err=True)
        raise Unavailable("the watch begins again where history does")

    def _on_answered(self) -> None:
        if self._is_lost:
            typer.echo(f"Connected again; nothing is left out from revision {self._next_revision} on.", err=True)
        self._is_answered, self._is_lost = True, False

    def _tell_that_it_is_lost(self) -> None:
        if not self._is_lost:
            typer.echo("No node answers; connecting again.", err=True)
        self._is_lost = True


def _event(fields: Mapping[str, Any]) -> KeyEvent:
    previous = fields.get("prev_kv")
    kv = StoredKey.parse(fields.get("kv", {}))
    return KeyEvent(str(fields.get("type", PUT)), kv, StoredKey.parse(previous) if previous else None)


def _line(event: KeyEvent, *, with_previous: bool) -> str:
    kv, before = event.kv, event.previous
    what = f"version {kv.version}: {shown(kv.value)}" if event.kind == PUT else "deleted"
    was = f"  (before: {shown(before.value) if before else 'not there'})" if with_previous else ""
    return f"{kv.mod_revision:>8} {shown(kv.key)} {what}{was}"


def _as_json(event: KeyEvent, *, with_previous: bool) -> str:
    fields = {"type": event.kind, **as_fields(event.kv)}
    if with_previous:
        fields["previous"] = as_fields(event.previous) if event.previous else None
    return json.dumps(fields)
