"""Keys and values as a terminal and a script can take them: whatever bytes they are, nothing steers the terminal."""

import base64
import json
from typing import Any

from rich.table import Table

from quorate_cli.stored_keys import Found, StoredKey
from quorate_cli.tables import plain_table, readable_bytes

SHOWN_CHARS_MAX = 120
SHOWN_BYTES_MAX = 16
"""Of what is no text, in hexadecimal."""


def shown(data: bytes, chars_max: int = SHOWN_CHARS_MAX) -> str:
    """`data` on one line: text as it is with its control characters as escapes, and anything else in hexadecimal; long
    ones are cut, and say how long they are."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        rest = "" if len(data) <= SHOWN_BYTES_MAX else f"… ({readable_bytes(len(data))})"
        return f"0x{data[:SHOWN_BYTES_MAX].hex()}{rest}"
    line = "".join(char if char.isprintable() else _escaped(char) for char in text[: chars_max + 1])
    return line if len(line) <= chars_max else f"{line[:chars_max]}… ({readable_bytes(len(data))})"


def _escaped(char: str) -> str:
    return char.encode("unicode_escape").decode()


def keys_table(found: Found, *, keys_only: bool) -> Table:
    rows = [[shown(kv.key), *_numbers(kv), *([] if keys_only else [shown(kv.value)])] for kv in found.kvs]
    columns = ("key", "revision", "version", "created", "lease", *([] if keys_only else ["value"]))
    return plain_table(columns, rows, right=("revision", "version", "created"))


def _numbers(kv: StoredKey) -> list[str]:
    return [str(kv.mod_revision), str(kv.version), str(kv.create_revision), str(kv.lease) if kv.lease else "-"]


def as_fields(kv: StoredKey, *, keys_only: bool = False) -> dict[str, Any]:
    """For JSON: `key` and `value` are text; of what is none there is `key_base64`, `value_base64` in its place."""
    numbers = {"create_revision": kv.create_revision, "mod_revision": kv.mod_revision, "version": kv.version}
    value = {} if keys_only else _field("value", kv.value)
    return {**_field("key", kv.key), **value, **numbers, "lease": kv.lease}


def found_as_json(found: Found, *, keys_only: bool) -> str:
    kvs = [as_fields(kv, keys_only=keys_only) for kv in found.kvs]
    return json.dumps({"revision": found.revision, "count": found.count, "kvs": kvs})


def _field(name: str, data: bytes) -> dict[str, str]:
    try:
        return {name: data.decode()}
    except UnicodeDecodeError:
        return {f"{name}_base64": base64.b64encode(data).decode()}
