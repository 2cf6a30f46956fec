"""`quorate cluster hash`: whether the members hold the same.

Every member that has applied the same entries has the same history up to any revision that they all keep. So all are
asked for the hash of it up to one revision, while writes go on. Of members that do not agree, at least one has
diverged: by a defect, or by a disk that gave back something else than was written. That is told apart from members that
only lag, and from those that do not answer.

Which revision: the newest that a majority has reached. A member that is behind it is waited for; but if it has applied
the log as far as one that is there, and still has a lower revision, then it has diverged too.
"""

import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import Annotated

import typer
from quorate_core.errors import (
    Compacted,
    FutureRevision,
    NotImplementedHere,
    QuorateError,
    Unavailable,
)
from quorate_sdk.wire import ClusterStatus, NodeReport, NodeStatus

from quorate_cli.client import ControlPlane, api_path
from quorate_cli.endpoints import Target, find_target
from quorate_cli.exits import EXIT_FAILED, EXIT_OK, EXIT_UNAVAILABLE
from quorate_cli.options import AsJson, Endpoints, TokenFile
from quorate_cli.tables import plain_table, show

ANSWER_S = 30.0
"""A member reads all of its history for it: two seconds for 1,000,000 keys, when it has nothing else to do."""
POLL_INTERVAL_S = 0.3
REVISIONS_TRIED_MAX = 3
"""A busy store may forget the chosen revision before all have been asked."""


class Verdict(StrEnum):
    SAME = "same"
    DIVERGES = "diverges"
    UNDECIDED = "undecided"
    """Differs from another one, and there is no majority to tell which of them is right."""
    LAGS = "lags"
    SILENT = "silent"


@dataclass(frozen=True, slots=True)
class Answer:
    """What one member has said. `hash` is None while it lags or is silent; `reason` says why then."""

    name: str
    hash: int | None = None
    compact_revision: int = 0
    has_diverged: bool = False
    """Known without a hash."""
    reason: str = ""
    is_silent: bool = False


@dataclass(frozen=True, slots=True)
class Judged:
    name: str
    verdict: Verdict
    hash: int | None
    compact_revision: int
    reason: str


def hash_members(
    timeout_s: Annotated[float, typer.Option("--timeout", help="Wait so long for members that lag.", min=0.1)] = 5.0,
    as_json: AsJson = False,
    endpoints: Endpoints = None,
    token_file: TokenFile = None,
) -> None:
    """Ask all members for the hash of what they hold, at one revision, and compare.

    Exits with 1 when they differ; with 5 when nobody differs, but not all of them were asked or had come so far.
    """
    target = find_target(endpoints, token_file)
    deadline_s = time.monotonic() + timeout_s
    revision, answers = _ask(target, deadline_s)
    judged = judge(answers)
    if as_json:
        typer.echo(json.dumps({"revision": revision, "members": [asdict(each) for each in judged]}))
    else:
        rows = [(each.name, "-" if each.hash is None else str(each.hash), str(each.compact_revision or "-"),
                 each.verdict.value, each.reason) for each in judged]  # fmt: skip
        show(
            plain_table(
                ("member", "hash", "compacted up to", "verdict", "why"), rows, right=("hash", "compacted up to")
            )
        )
        typer.echo(summary(judged, revision))
    raise typer.Exit(exit_code(judged))


def judge(answers: Sequence[Answer]) -> list[Judged]:
    """The verdict on each. A hash that more than half of all members have is right; those that differ from it have
    diverged, and so have those of whom that is known."""
    answers = _without_laggards_of_compaction(answers)
    kinds = Counter(_kind(answer) for answer in answers if _is_comparable(answer))
    right = next((kind for kind, count in kinds.items() if count > len(answers) / 2), None)
    return [_judged(answer, _verdict(answer, right, is_unanimous=len(kinds) == 1)) for answer in answers]


def _without_laggards_of_compaction(answers: Sequence[Answer]) -> list[Answer]:
    """Hashes of histories that are not equally long do not compare; a compaction is an entry of the log, too."""
    newest = max((answer.compact_revision for answer in answers), default=0)
    return [
        replace(answer, hash=None, reason=f"compacted up to {answer.compact_revision} of {newest}")
        if answer.hash is not None and answer.compact_revision < newest
        else answer
        for answer in answers
    ]


def _is_comparable(answer: Answer) -> bool:
    return answer.hash is not None or answer.has_diverged


def _kind(answer: Answer) -> tuple[int | None, int]:
    return answer.hash, answer.compact_revision


def _verdict(answer: Answer, right: tuple[int | None, int] | None, *, is_unanimous: bool) -> Verdict:
    if answer.is_silent:
        return Verdict.SILENT
    if not _is_comparable(answer):
        return Verdict.LAGS
    if answer.has_diverged:
        return Verdict.DIVERGES
    if is_unanimous or _kind(answer) == right:
        return Verdict.SAME
    return Verdict.UNDECIDED if right is None else Verdict.DIVERGES


def _judged(answer: Answer, verdict: Verdict) -> Judged:
    return Judged(answer.name, verdict, answer.hash, answer.compact_revision, answer.reason)


def summary(judged: Sequence[Judged], revision: int) -> str:
    """One sentence, or two."""
    by_verdict: dict[Verdict, list[str]] = {}
    for each in judged:
        by_verdict.setdefault(each.verdict, []).append(each.name)
    missing = [*by_verdict.get(Verdict.LAGS, []), *by_verdict.get(Verdict.SILENT, [])]
    not_asked = f" Nothing can be said of {', '.join(missing)}." if missing else ""
    if Verdict.DIVERGES in by_verdict:
        names = ", ".join(by_verdict[Verdict.DIVERGES])
        return f"DIVERGED at revision {revision}: {names}. Replace it by a new member, and keep its folder.{not_asked}"
    if Verdict.UNDECIDED in by_verdict:
        names = ", ".join(by_verdict[Verdict.UNDECIDED])
        return f"{names} DIFFER at revision {revision}, and no majority says which of them is right.{not_asked}"
    return f"{', '.join(by_verdict.get(Verdict.SAME, [])) or 'Nobody'}: the same up to revision {revision}.{not_asked}"


def exit_code(judged: Sequence[Judged]) -> int:
    verdicts = {each.verdict for each in judged}
    if verdicts & {Verdict.DIVERGES, Verdict.UNDECIDED}:
        return EXIT_FAILED
    return EXIT_UNAVAILABLE if verdicts & {Verdict.LAGS, Verdict.SILENT} else EXIT_OK


def _ask(target: Target, deadline_s: float) -> tuple[int, list[Answer]]:
    """The revision, and each member's answer."""
    for _ in range(REVISIONS_TRIED_MAX - 1):
        try:
            return _Round(target, deadline_s).ask()
        except Compacted:
            continue
    return _Round(target, deadline_s).ask()


def chosen_revision(members: Sequence[NodeStatus]) -> tuple[int, int]:
    """The newest revision that a majority of `members` has, and the entry by which it surely is reached."""
    revision = sorted((member.revision for member in members), reverse=True)[len(members) // 2]
    return revision, min(member.applied_index for member in members if member.revision >= revision)


class _Round:
    """All members are asked at one revision; those that lag again and again, until the deadline. Raises Compacted when
    that revision is forgotten meanwhile."""

    def __init__(self, target: Target, deadline_s: float) -> None:
        self._target = target
        self._deadline_s = deadline_s
        reports = _member_reports(target)
        running = [report.status for report in reports if report.status is not None]
        self._revision, self._entry = chosen_revision(running)
        self._answers = {report.name: _first_answer(report) for report in reports}
        self._urls = {status.name: status.url for status in running}

    def ask(self) -> tuple[int, list[Answer]]:
        while True:
            for name, url in self._urls.items():
                if self._is_worth_asking(self._answers[name]):
                    self._answers[name] = self._asked(name, url)
            in_doubt = any(self._is_worth_asking(answer) for answer in self._answers.values())
            if not in_doubt or time.monotonic() >= self._deadline_s:
                return self._revision, list(self._answers.values())
            time.sleep(POLL_INTERVAL_S)

    def _is_worth_asking(self, answer: Answer) -> bool:
        """It was not asked yet, lags, or has not applied a compaction that another one has."""
        if answer.is_silent or answer.has_diverged:
            return False
        return answer.hash is None or answer.compact_revision < max(
            other.compact_revision for other in self._answers.values()
        )

    def _asked(self, name: str, url: str) -> Answer:
        with ControlPlane(Target((url,), self._target.token, f"node {name}"), ANSWER_S, ANSWER_S) as member:
            try:
                try:
                    found = member.call_json("/v3/maintenance/hash", {"revision": str(self._revision)})
                    return Answer(name, int(found.get("hash", 0)), int(found.get("compact_revision", 0)))
                except FutureRevision:
                    return self._behind(name, member)
            except Compacted:
                raise
            except QuorateError as error:
                return Answer(name, is_silent=True, reason=error.detail)
            except (TypeError, ValueError, AttributeError) as error:
                return Answer(name, is_silent=True, reason=f"an answer that makes no sense: {error}")

    def _behind(self, name: str, member: ControlPlane) -> Answer:
        """It does not know the revision yet, or never will."""
        own = member.read(NodeStatus, api_path("cluster", "node"))
        where = f"at revision {own.revision} of {self._revision}"
        if own.revision < self._revision and own.applied_index >= self._entry:
            return Answer(name, has_diverged=True, reason=f"{where}, though it has applied entry {own.applied_index}")
        return Answer(name, reason=where)


def _first_answer(report: NodeReport) -> Answer:
    if report.status is None:
        return Answer(report.name, is_silent=True, reason=report.error or "no answer")
    return Answer(report.name, reason="not asked yet")


def _member_reports(target: Target) -> list[NodeReport]:
    """What the nodes say that are members, and which members say nothing."""
    with ControlPlane(target) as control_plane:
        reports = control_plane.read(ClusterStatus, api_path("cluster", "status")).nodes
    members = [report for report in reports if report.status is None or report.status.store is None]
    if not any(report.status for report in members):
        if len(members) < len(reports):
            raise NotImplementedHere("these nodes stand on a store elsewhere: name its members by --endpoints")
        raise Unavailable("no member answers")
    return members
