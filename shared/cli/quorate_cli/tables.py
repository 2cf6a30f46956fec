"""Tables for people. Each takes what was read and returns a table; scripts use --json instead."""

from collections.abc import Iterable, Mapping, Sequence

from quorate_sdk.wire import (
    ClusterMember,
    ClusterStatus,
    ConfigMetadata,
    Instance,
    MemberList,
    NodeReport,
    NodeStatus,
    ServiceSummary,
    StoreEndpoint,
)
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from quorate_cli.gateway_api import GatewayRoute
from quorate_cli.run_state import RunState

_GOOD, _BAD, _QUIET = "green", "red", "dim"
_STATE_STYLE = {
    "ready": _GOOD,
    "UP": _GOOD,
    "starting": "yellow",
    "STARTING": "yellow",
    "backing-off": _BAD,
    "removed": _QUIET,
    "DOWN": _BAD,
    "closed": _GOOD,
    "half-open": "yellow",
    "open": _BAD,
    "forced-closed": "yellow",
    "forced-open": _BAD,
}
SHA_CHARS = 10
QUOTA_WARNING_SHARE = 0.8
"""Of its quota: from here on an operator should look at what the store holds."""
PIPED_WIDTH = 200
"""Columns when the output is no terminal: a pipe has no width, and wrapped rows are hard to search."""


def show(table: Table) -> None:
    """Print to stdout. Cells are shown as they are: `[…]` in a comment is no markup."""
    console = Console(markup=False, highlight=False, emoji=False)
    if not console.is_terminal:
        console = Console(markup=False, highlight=False, emoji=False, width=PIPED_WIDTH)
    console.print(table)


def parts_table(state: RunState) -> Table:
    """What runs where on this machine."""
    has_reasons = any(part.reason for part in state.parts.values())
    reasons = ("reason",) if has_reasons else ()
    table = _table("part", "address", "pid", "state", "restarts", *reasons, right=("pid", "restarts"))
    for name, part in state.parts.items():
        reason = (part.reason,) if has_reasons else ()
        _add(table, name, part.url, str(part.pid or "-"), _state(part.state), str(part.restarts), *reason)
        if part.kind == "gateway":
            _add(table, "  its admin API", state.admin)
    return table


def external_stores_table(status: ClusterStatus) -> Table:
    """The endpoints of the stores that nodes stand on, each as the nodes see it that reach it, and who does not."""
    table = _table("store endpoint", "member", "role", "version", "revision", "store", "reached",
                   right=("revision", "store"))  # fmt: skip
    views: dict[tuple[str, str], dict[str, StoreEndpoint]] = {}
    for report in status.nodes:
        store = report.status.store if report.status else None
        for endpoint in store.endpoints if store else ():
            views.setdefault((store.url if store else "", endpoint.address), {})[report.name] = endpoint
    for (_, address), by_node in views.items():
        _add(table, address, *_endpoint_row(by_node))
    return table


def _endpoint_row(by_node: Mapping[str, StoreEndpoint]) -> list[str | Text]:
    reached = [endpoint for endpoint in by_node.values() if endpoint.error is None]
    failures = {endpoint.error: name for name, endpoint in by_node.items() if endpoint.error is not None}
    newest = max(reached or by_node.values(), key=lambda endpoint: endpoint.revision)
    if not failures:
        how = Text("yes", style=_GOOD)
    else:
        who = "no" if not reached else f"not by {', '.join(sorted(failures.values()))}"
        how = Text(printable(f"{who}: {'; '.join(filter(None, failures))}"), style=_BAD)
    role = Text(newest.role or "-", style=_GOOD if newest.role == "leader" else "")
    return [newest.name or "-", role, newest.version or "-", str(newest.revision or "-"),
            readable_bytes(newest.store_bytes), how]  # fmt: skip


def services_table(services: Sequence[ServiceSummary]) -> Table:
    table = _table("service", "instances", "up", "stale", "protected", right=("instances", "up", "stale"))
    for item in services:
        up = Text(str(item.up), style=_GOOD if item.up else _BAD)
        stale = Text(str(item.stale), style=_BAD if item.stale else "")
        _add(table, item.service, str(item.instances), up, stale, _protected(item.is_protected))
    return table


def instances_table(instances: Sequence[Instance]) -> Table:
    table = _table("instance", "address", "status", "weight", "zone", "version", "tags", "lives by", "revision",
                   right=("weight", "revision"))  # fmt: skip
    for item in instances:
        _add(
            table, item.id, f"{item.scheme}://{item.authority}", _status(item), str(item.weight),
            item.zone or "-", item.version or "-", ", ".join(item.tags) or "-", _lives_by(item), str(item.revision),
        )  # fmt: skip
    return table


def _status(instance: Instance) -> Text:
    return Text("stale", style=_BAD) if instance.stale else _state(instance.status.value)


def _lives_by(instance: Instance) -> str | Text:
    """What decides whether it is there, and how it is."""
    if instance.ephemeral:
        return f"heartbeats, {instance.ttl_s} s"
    health = instance.health
    if health is None:
        return "itself"
    told = f"check: {'passing' if health.passing else 'failing'} {health.output}".strip()
    return Text(printable(told), style=_GOOD if health.passing else _BAD)


def _protected(is_protected: bool) -> str | Text:
    return Text("yes", style=_BAD) if is_protected else "-"


def cluster_table(status: ClusterStatus) -> Table:
    table = _table("node", "address", "role", "term", "commit", "applied", "revision", "store", "quota", "uptime",
                   "connected", right=("term", "commit", "applied", "revision", "store", "quota",
                                       "uptime"))  # fmt: skip
    for report in status.nodes:
        _add(table, *_node_row(report))
    return table


def _node_row(report: NodeReport) -> list[str | Text]:
    node = report.status
    if node is None:
        return [report.name, report.url or "-", Text(report.error or "no answer", style=_BAD), *["-"] * 8]
    shown_role = "learner" if node.name in node.learners else node.role
    role = Text(shown_role, style=_GOOD if node.role == "leader" else "")
    connected = ", ".join(node.connected) or "-"
    numbers = [node.term, node.commit_index, node.applied_index, node.revision]
    return [report.name, report.url, role, *map(str, numbers), readable_bytes(node.store_bytes),
            _quota(node), readable_duration(node.uptime_s), connected]  # fmt: skip


def _quota(node: NodeStatus) -> Text:
    """How much of it is used."""
    if not node.quota_bytes:
        return Text("-")
    used = node.store_bytes / node.quota_bytes
    return Text(f"{used:.0%} of {readable_bytes(node.quota_bytes)}", style=_BAD if used >= QUOTA_WARNING_SHARE else "")


def members_table(found: MemberList) -> Table:
    table = _table("member", "role", "peers reach it at", "reachable", "has", "lacks", "HTTP", right=("has", "lacks"))
    for member in found.members:
        _add(table, *_member_row(member))
    return table


def _member_row(member: ClusterMember) -> list[str | Text]:
    role = Text("leader", style=_GOOD) if member.is_leader else Text(printable(member.role))
    reachable = {True: Text("yes"), False: Text("no", style=_BAD), None: Text("?")}[member.is_reachable]
    has, lacks = ("?" if count is None else str(count) for count in (member.match_index, member.lag_entries))
    return [member.name, role, member.peer or "-", reachable, has, lacks, member.url or "-"]


def documents_table(documents: Sequence[ConfigMetadata]) -> Table:
    table = _table("document", "version", "format", "changed", "author", "comment", right=("version",))
    for item in documents:
        _add(table, f"{item.group}/{item.key}", str(item.version), item.format.value, item.changed_at, item.author,
                      item.comment)  # fmt: skip
    return table


def history_table(versions: Sequence[ConfigMetadata]) -> Table:
    table = _table("version", "changed", "author", "comment", "revision", "sha256", right=("version", "revision"))
    for item in versions:
        digest = Text("deleted", style=_BAD) if item.deleted else Text(item.sha256[:SHA_CHARS], style=_QUIET)
        _add(table, str(item.version), item.changed_at, item.author, item.comment, str(item.revision), digest)
    return table


def routes_table(routes: Sequence[GatewayRoute]) -> Table:
    table = _table("route", "takes", "leads to", "instances", "rate limit", "circuit breaker", right=("instances",))
    for route in routes:
        limit = route.rate_limit.summary if route.rate_limit else "-"
        _add(table, route.name, route.matches, route.leads_to, str(route.endpoints), limit, _breaker(route))
    return table


def _breaker(route: GatewayRoute) -> str | Text:
    breaker = route.circuit_breaker
    return "-" if breaker is None else Text(printable(breaker.shown), style=_STATE_STYLE.get(breaker.state, ""))


def readable_bytes(count: int) -> str:
    """Such as `512 B`, `1.5 MiB`."""
    size, units = float(count), ["B", "KiB", "MiB", "GiB"]
    while size >= 1024 and len(units) > 1:
        size /= 1024
        del units[0]
    return f"{size:.0f} {units[0]}" if units[0] == "B" else f"{size:.1f} {units[0]}"


def readable_duration(seconds: float) -> str:
    """Such as `42 s`, `3 min 20 s`, `2 h 5 min`, `3 d 4 h`: the two largest units."""
    whole = int(seconds)
    for unit_s, name, smaller_s, smaller in ((86_400, "d", 3_600, "h"), (3_600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= unit_s:
            return f"{whole // unit_s} {name} {whole % unit_s // smaller_s} {smaller}"
    return f"{whole} s"


def plain_table(columns: Sequence[str], rows: Iterable[Sequence[str]], right: Sequence[str] = ()) -> Table:
    """Texts as they are; `right`: the columns of numbers."""
    table = _table(*columns, right=right)
    for row in rows:
        _add(table, *row)
    return table


def _state(text: str) -> Text:
    return Text(text, style=_STATE_STYLE.get(text, ""))


def _table(*columns: str, right: Sequence[str] = ()) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for name in columns:
        # Ids, addresses and numbers are for copying: they are never cut, only wrapped where the terminal is narrow.
        table.add_column(name, justify="right" if name in right else "left", overflow="fold")
    return table


def _add(table: Table, *cells: str | Text) -> None:
    # Others chose these names and comments: what could steer a terminal is shown as a mark instead.
    table.add_row(*(cell if isinstance(cell, Text) else Text(printable(cell)) for cell in cells))


def printable(text: str) -> str:
    """`text` on one line, with every character that is no printable one replaced."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)
