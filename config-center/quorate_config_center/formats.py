"""Whether content is what its format says: parsed before it is accepted, and bounded before it is parsed. Pure.

Parsing hostile text can cost far more than its size: aliases that expand without end, numbers and nesting that
parsers handle in quadratic time. Each such way is cut off by a named limit, so that any content of up to
CONTENT_BYTES_MAX is decided in seconds and little memory. A limit is no opinion on the document: consumers would meet
the same cost.
"""

import json
import re
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import javaproperties
import yaml
from quorate_core.documents import DocumentError
from quorate_sdk.wire import ConfigFormat

NESTING_MAX = 100
YAML_NODES_MAX = 250_000
"""Counted as if every alias were written out."""
NUMBER_CHARS_MAX = 1_000
TOML_KEY_PARTS_MAX = 64
CONTINUED_LINES_MAX = 200

_BY_SUFFIX = {
    ".yaml": ConfigFormat.YAML,
    ".yml": ConfigFormat.YAML,
    ".json": ConfigFormat.JSON,
    ".toml": ConfigFormat.TOML,
    ".properties": ConfigFormat.PROPERTIES,
}


def format_of_key(key: str) -> ConfigFormat:
    """The format that the key's extension names; text when it names none."""
    _, dot, suffix = key.rpartition(".")
    return _BY_SUFFIX.get(dot + suffix.lower(), ConfigFormat.TEXT)


def check_content(content_format: ConfigFormat, content: str) -> Sequence[DocumentError]:
    """What is wrong with `content` as `content_format`; nothing when it parses."""
    try:
        _CHECKS[content_format](content)
    except _Refused as refusal:
        return [refusal.error]
    except RecursionError:
        return [DocumentError("nested too deeply to be parsed")]
    return []


class _Refused(Exception):
    def __init__(self, message: str, line: int = 0) -> None:
        super().__init__(message)
        self.error = DocumentError(message, line)


def _check_text(_content: str) -> None:
    """Any text is text."""


# JSON (RFC 8259)


def _check_json(content: str) -> None:
    try:
        json.loads(content, parse_constant=_refuse_constant, object_pairs_hook=_refuse_repeated_names)
    except json.JSONDecodeError as error:
        raise _Refused(f"{error.msg}, column {error.colno}", error.lineno) from error
    except ValueError as error:  # a number with more digits than Python takes
        raise _Refused(str(error)) from error


def _refuse_constant(constant: str) -> None:
    raise _Refused(f"{constant} is not JSON")


def _refuse_repeated_names(pairs: list[tuple[str, Any]]) -> None:
    seen: set[str] = set()
    for name, _ in pairs:
        if name in seen:
            raise _Refused(f"the name {name!r} is given twice in one object")
        seen.add(name)


# TOML 1.0

_TOML_LONG_KEY = re.compile(
    # Possessive, and begun only where a part begins: linear in the length of the text.
    rf"""(?<![A-Za-z0-9_-])(?:(?:[A-Za-z0-9_-]++|"[^"\n]*+"|'[^'\n]*+')[ \t]*+\.[ \t]*+){{{TOML_KEY_PARTS_MAX}}}"""
)
_TOML_PLACE = re.compile(r" \(at line (\d+), column (\d+)\)$")


def _check_toml(content: str) -> None:
    too_long = _TOML_LONG_KEY.search(content)
    if too_long is not None:
        # NB: the parser's memory grows with the square of a key's parts.
        line = content.count("\n", 0, too_long.start()) + 1
        raise _Refused(f"a dotted key of more than {TOML_KEY_PARTS_MAX} parts", line)
    try:
        tomllib.loads(content)
    except tomllib.TOMLDecodeError as error:
        text = str(error)
        place = _TOML_PLACE.search(text)
        if place is None:
            raise _Refused(text.removesuffix(" (at end of document)"), content.count("\n") + 1) from error
        raise _Refused(f"{text[: place.start()]}, column {place[2]}", int(place[1])) from error
    except ValueError as error:  # a number with more digits than Python takes
        raise _Refused(str(error)) from error


# Java's .properties (java.util.Properties.load)

_LINE_END = re.compile(r"\r\n|\r|\n")


def _check_properties(content: str) -> None:
    _refuse_long_continuations(content)
    line = 1
    try:
        for element in javaproperties.parse(content):
            line += len(_LINE_END.findall(element.source))
    except javaproperties.InvalidUEscapeError as error:
        raise _Refused(f"{error.escape} is no escape; write \\u and four hexadecimal digits", line) from error


def _refuse_long_continuations(content: str) -> None:
    """NB: the parser's time grows with the square of the lines that one value is continued over."""
    continued_lines = 0
    for number, line in enumerate(_LINE_END.split(content), start=1):
        backslashes = len(line) - len(line.rstrip("\\"))
        continued_lines = continued_lines + 1 if backslashes % 2 else 0
        if continued_lines > CONTINUED_LINES_MAX:
            raise _Refused(f"a value continued over more than {CONTINUED_LINES_MAX} lines", number)


# YAML (one document, the safe schema)

_LONG_NUMBER = re.compile(rf"[-+0-9_:.]{{{NUMBER_CHARS_MAX},}}$")


@dataclass(slots=True)
class _Collection:
    """A mapping or sequence that is open. `nodes`: those in it so far, aliases written out, itself included."""

    is_mapping: bool
    anchor: str | None
    nodes: int = 1
    children: int = 0
    keys: set[tuple[str | None, str]] = field(default_factory=set)


class _YamlBounds:
    """Walks a document's events, and refuses what would be unreasonable, or ambiguous, to construct."""

    def __init__(self) -> None:
        self._open: list[_Collection] = []
        self._anchored: dict[str, int] = {}
        self._documents = 0
        self._nodes = 0

    def take(self, event: yaml.Event) -> None:
        line = event.start_mark.line + 1 if event.start_mark else 0
        if isinstance(event, yaml.DocumentStartEvent):
            self._documents += 1
            if self._documents > 1:
                raise _Refused("a second document begins here; only one is accepted", line)
        elif isinstance(event, yaml.CollectionStartEvent):
            self._begin(event, line)
        elif isinstance(event, yaml.CollectionEndEvent):
            self._end(line)
        elif isinstance(event, yaml.AliasEvent):
            self._add(self._nodes_of_alias(event, line), line)
        elif isinstance(event, yaml.ScalarEvent):
            self._scalar(event, line)

    def _begin(self, event: yaml.CollectionStartEvent, line: int) -> None:
        self._nodes += 1
        if len(self._open) >= NESTING_MAX:
            raise _Refused(f"nested deeper than {NESTING_MAX} levels", line)
        self._open.append(_Collection(isinstance(event, yaml.MappingStartEvent), event.anchor))

    def _end(self, line: int) -> None:
        ended = self._open.pop()
        if ended.anchor is not None:
            self._anchored[ended.anchor] = ended.nodes
        self._nodes -= ended.nodes
        self._add(ended.nodes, line)

    def _scalar(self, event: yaml.ScalarEvent, line: int) -> None:
        if event.implicit[0] and len(event.value) >= NUMBER_CHARS_MAX and _LONG_NUMBER.match(event.value):
            raise _Refused(f"a number of {len(event.value)} characters; quote it if it is text", line)
        if event.anchor is not None:
            self._anchored[event.anchor] = 1
        if self._open and self._open[-1].is_mapping and self._open[-1].children % 2 == 0:
            key = (event.tag, event.value)
            if key in self._open[-1].keys:
                raise _Refused(f"the key {event.value!r} is given twice in one mapping", line)
            self._open[-1].keys.add(key)
        self._add(1, line)

    def _nodes_of_alias(self, event: yaml.AliasEvent, line: int) -> int:
        name = event.anchor or ""
        if any(collection.anchor == name for collection in self._open):
            raise _Refused(f"the alias *{name} stands inside what it refers to", line)
        if name not in self._anchored:
            raise _Refused(f"the alias *{name} refers to nothing before it", line)
        return self._anchored[name]

    def _add(self, nodes: int, line: int) -> None:
        """Count `nodes` finished nodes, as one child of the collection that is open."""
        self._nodes += nodes
        if self._nodes > YAML_NODES_MAX:
            raise _Refused(f"more than {YAML_NODES_MAX} values, aliases written out", line)
        if self._open:
            self._open[-1].nodes += nodes
            self._open[-1].children += 1


# libyaml's parser where PyYAML was built with it: the same language, a tenth of the time.
_SafeLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(_SafeLoader):  # type: ignore[misc]  # chosen at run time
    """Safe construction whose every error knows its line (a date such as 2024-99-99 raises a bare ValueError)."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except ValueError as error:
            raise _Refused(str(error), node.start_mark.line + 1) from error


def _check_yaml(content: str) -> None:
    bounds = _YamlBounds()
    try:
        for event in yaml.parse(content, Loader=_SafeLoader):
            bounds.take(event)
        loader = _Loader(content)
        try:
            loader.get_single_data()
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        # libyaml ends every text with a line feed of its own.
        line = 0 if mark is None else min(mark.line, content.count("\n")) + 1
        raise _Refused(_yaml_text(error), line) from error
    except yaml.reader.ReaderError as error:
        line = content.count("\n", 0, error.position) + 1
        # NB: libyaml's parser gives the character's number, PyYAML's own the character.
        code = error.character if isinstance(error.character, int) else ord(error.character)
        raise _Refused(f"the character #x{code:04x} is not allowed in YAML", line) from error
    except yaml.YAMLError as error:
        raise _Refused(str(error)) from error


def _yaml_text(error: yaml.MarkedYAMLError) -> str:
    parts = [part for part in (error.context, error.problem) if part]
    return ": ".join(parts) if parts else "not YAML"


_CHECKS: dict[ConfigFormat, Callable[[str], None]] = {
    ConfigFormat.YAML: _check_yaml,
    ConfigFormat.JSON: _check_json,
    ConfigFormat.TOML: _check_toml,
    ConfigFormat.PROPERTIES: _check_properties,
    ConfigFormat.TEXT: _check_text,
}
