"""Backups made of a state machine in the test's own process, without a node."""

import hashlib
from pathlib import Path

from quorate_raft.core.messages import Entry
from quorate_store.backup import FORMAT_VERSION, BackupHeader, BackupMember, encode_head
from quorate_store.commands import Command, encode_command
from quorate_store.state import StateMachine

MIB = 1024 * 1024
CLUSTER_ID = "old-cluster"


def opened(folder: Path) -> StateMachine:
    return StateMachine(folder, map_bytes=64 * MIB, boot_id="boot-1")


def apply(machine: StateMachine, *commands: Command) -> list[object]:
    """As the next entries of the log, in term 3."""
    first = machine.applied_index + 1
    return list(machine.apply([Entry(first + at, 3, data=encode_command(each)) for at, each in enumerate(commands)]))


def header_of(machine: StateMachine, data: bytes, **changes: object) -> BackupHeader:
    fields: dict[str, object] = {
        "format_version": FORMAT_VERSION, "cluster_id": CLUSTER_ID, "member": "node-1",
        "members": (BackupMember("node-1", "10.0.0.1:7501", False), BackupMember("node-2", "10.0.0.2:7501", True)),
        "index": machine.applied_index, "term": machine.applied_term, "revision": machine.revision,
        "compact_revision": machine.compact_revision, "is_complete": True, "taken_at": "2026-07-01T12:00:00Z",
        "written_by": "0.1.0", "size_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest(), **changes,
    }  # fmt: skip
    return BackupHeader(**fields)  # type: ignore[arg-type]  # the types are the fields' own


def write_backup(machine: StateMachine, path: Path, **changes: object) -> Path:
    """What a node would have saved of `machine`; `changes` to its header."""
    copy = path.with_suffix(".copy")
    machine.save_snapshot(copy)
    data = copy.read_bytes()
    copy.unlink()
    path.write_bytes(encode_head(header_of(machine, data, **changes)) + data)
    return path
