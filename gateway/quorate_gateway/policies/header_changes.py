"""Changes of header fields, on the whole block at once: one pattern removes, one string is added.

A *block* is a head's fields, each with its CRLF in front and none at the end. What is changed has been validated
already, and stays valid: names and values are checked with the document (`quorate_gateway.documents.changes`), so that
nothing which is added here can end a field or a head.
"""

import re
from collections.abc import Callable

from quorate_gateway.documents.changes import HeaderChanges

ChangeBlock = Callable[[bytes], bytes]
_HOST = "host"


def compile_changes(changes: HeaderChanges | None, host: str | None = None) -> ChangeBlock | None:
    """First `remove`, then `set`, then `add`; `host` takes the place of the Host field. None when nothing changes."""
    removed = [] if changes is None else [*changes.remove, *changes.set]
    added = [] if changes is None else [*changes.set.items(), *changes.add.items()]
    before = b"" if host is None else _field(_HOST, host)  # first, as RFC 9110, section 7.2 wants it
    behind = b"".join(_field(name, value) for name, value in added)
    if host is not None:
        removed.append(_HOST)
    if not removed:
        return (lambda block: block + behind) if behind else None
    # The first letter stands outside of the group without case, which lets a search skip quickly.
    names = b"|".join(_letters(name) for name in sorted(set(removed)))
    remove = re.compile(rb"\r\n(?:%b):[^\r]*+" % names).sub
    return lambda block: before + remove(b"", block) + behind


def _field(name: str, value: str) -> bytes:
    return b"\r\n%b: %b" % (name.encode("ascii"), value.encode("ascii"))


def _letters(name: str) -> bytes:
    first, rest = name[0], name[1:]
    either = f"[{first.upper()}{first}]" if first.isalpha() else re.escape(first)
    return either.encode() + (b"(?i:%b)" % re.escape(rest.encode()) if rest else b"")
