"""JSON as etcd's gateway reads it, in its words: Go's encoding/json and, above it, jsonpb. Pure.

For what the fast decoder refuses, which is wrong mostly. Go takes some of it nevertheless (what stands behind the first
value, line breaks in base64, text that is no UTF-8), and has its own words for the rest, which clients show to people
and some compare. Nothing here is fast, so the number of values is bounded.
"""

import base64
import json
import re
import types
from collections.abc import Callable, Hashable
from functools import cache
from typing import Annotated, Any, Final, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import msgspec
from quorate_core.errors import InvalidRequest

DEPTH_MAX = 10_000
"""Go's own."""
VALUES_MAX = 25_000
"""Read in some 20 ms, during which nothing else is done."""

T = TypeVar("T")
Convert = Callable[[Any], Any]

_SPACE = re.compile(rb"[ \t\r\n]*")
_IN_STRING = re.compile(rb'(?:[^"\\\x00-\x1f]++|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*+')
_HEX = re.compile(rb"[0-9a-fA-F]{0,4}")
_DIGITS = re.compile(rb"[0-9]*")
_DECIMAL = re.compile(r"-?[0-9]{1,19}")
_LITERALS: dict[bytes, tuple[bytes, bool | None]] = {
    b"t": (b"true", True), b"f": (b"false", False), b"n": (b"null", None),
}  # fmt: skip
_MORE: Final = object()
"""Another value is to come, in the innermost of what is open."""
_NO_BASE64 = re.compile(rb"[^A-Za-z0-9+/\r\n]")
_NO_LINE_BREAK = re.compile(rb"[^\r\n]")
_LINE_BREAKS = b"\r\n"
_PADDING = ord("=")
_QUANTUM = 4
"""Characters that stand for three bytes."""
_CHARACTERS_MIN = 2
"""Of these before the padding: they make one byte."""
_INT64_MIN, _INT64_MAX = -(2**63), 2**63 - 1
_BYTE_MAX = 255


class NestedTooDeep(InvalidRequest):
    """Deeper than a message of this API can be."""


class GoNumber(str):
    """A number as it is written."""

    __slots__ = ()


class GoType:
    """Marks a field's type: how Go calls it."""

    def __init__(self, name: str) -> None:
        self.name = name


def read(data: bytes, kind: type[T]) -> T:
    """The message that the first value of `data` is. Raises InvalidRequest."""
    try:
        convert = _converter(cast("Hashable", kind))
        found: T = convert(_Reader(data, "unexpected EOF").first())
    except RecursionError as error:
        raise NestedTooDeep("the body is nested too deep") from error
    return found


def parse_int64(text: str) -> int:
    """A number in a string, read as a value of its own. Raises InvalidRequest."""
    reader = _Reader(text.encode("utf-8", "replace"), "unexpected end of JSON input")
    value = reader.first()
    reader.require_end()
    return 0 if value is None else _int64_of(value, "int64", _INT64_MIN, _INT64_MAX)


class _Reader:
    """The first value of `data`. `ended` is what to say when there is no more."""

    def __init__(self, data: bytes, ended: str) -> None:
        self._data = data
        self._ended = ended
        self._at = 0
        self._values = 0
        self._open: list[dict[str, Any] | list[Any]] = []
        self._keys: list[str] = []
        """Of the objects that are open: the one whose value comes."""

    def first(self) -> Any:
        while True:
            value = self._begin_value()
            while value is not _MORE:
                if not self._open:
                    return value
                value = self._add(value)

    def require_end(self) -> None:
        self._skip_space()
        if self._at < len(self._data):
            raise self._unexpected("after top-level value")

    def _begin_value(self) -> Any:
        """A value; _MORE when it is one with others in it."""
        self._values += 1
        if self._values > VALUES_MAX:
            raise InvalidRequest(f"the body is no good JSON, or is odd and has over {VALUES_MAX} values")
        character = self._next()
        if character in b"{[":
            return self._open_container(character)
        if character == b'"':
            return self._string()
        if character in b"-0123456789":
            return self._number()
        if character in _LITERALS:
            return self._literal(*_LITERALS[character])
        raise self._unexpected("looking for beginning of value")

    def _open_container(self, character: bytes) -> Any:
        if len(self._open) >= DEPTH_MAX:
            raise self._unexpected("exceeded max depth")
        self._at += 1
        is_object = character == b"{"
        if self._next() == (b"}" if is_object else b"]"):
            self._at += 1
            return {} if is_object else []
        self._open.append({} if is_object else [])
        if is_object:
            self._keys.append(self._key())
        return _MORE

    def _key(self) -> str:
        if self._next() != b'"':
            raise self._unexpected("looking for beginning of object key string")
        key = self._string()
        if self._next() != b":":
            raise self._unexpected("after object key")
        self._at += 1
        return key

    def _add(self, value: Any) -> Any:
        """Put `value` where it belongs. Returns what is complete by that, or _MORE."""
        container = self._open[-1]
        if isinstance(container, list):
            container.append(value)
            end, context = b"]", "after array element"
        else:
            container[self._keys[-1]] = value
            end, context = b"}", "after object key:value pair"
        character = self._next()
        if character not in (b",", end):
            raise self._unexpected(context)
        self._at += 1
        if character == end:
            if self._open.pop() is container and isinstance(container, dict):
                self._keys.pop()
            return container
        if isinstance(container, dict):
            self._keys[-1] = self._key()
        return _MORE

    def _string(self) -> str:
        start = self._at
        self._at = self._end_of(_IN_STRING, start + 1)
        if self._here() != b'"':
            raise self._unexpected_in_string()
        self._at += 1
        found: str = json.loads(self._data[start : self._at].decode("utf-8", "replace"))
        return found

    def _unexpected_in_string(self) -> InvalidRequest:
        if self._here() != b"\\":
            return self._unexpected("in string literal")
        self._at += 1
        if self._here() != b"u":
            return self._unexpected("in string escape code")
        self._at = self._end_of(_HEX, self._at + 1)
        return self._unexpected("in \\u hexadecimal character escape")

    def _number(self) -> GoNumber:
        start = self._at
        if self._data[start : start + 1] == b"-":
            self._at += 1
        if self._data[self._at : self._at + 1] == b"0":
            self._at += 1
        else:
            self._digits("in numeric literal")
        if self._data[self._at : self._at + 1] == b".":
            self._at += 1
            self._digits("after decimal point in numeric literal")
        if self._data[self._at : self._at + 1] in (b"e", b"E"):
            self._at += 1
            if self._data[self._at : self._at + 1] in (b"+", b"-"):
                self._at += 1
            self._digits("in exponent of numeric literal")
        return GoNumber(self._data[start : self._at].decode())

    def _digits(self, context: str) -> None:
        start = self._at
        self._at = self._end_of(_DIGITS, start)
        if self._at == start:
            raise self._unexpected(context)

    def _literal(self, name: bytes, value: bool | None) -> bool | None:
        for expected in name:
            if self._here()[0] != expected:
                raise self._unexpected(f"in literal {name.decode()} (expecting {chr(expected)!r})")
            self._at += 1
        return value

    def _end_of(self, pattern: re.Pattern[bytes], start: int) -> int:
        found = pattern.match(self._data, start)
        return start if found is None else found.end()

    def _skip_space(self) -> None:
        self._at = self._end_of(_SPACE, self._at)

    def _next(self) -> bytes:
        """The next character that is no white space."""
        self._skip_space()
        return self._here()

    def _here(self) -> bytes:
        character = self._data[self._at : self._at + 1]
        if not character:
            raise InvalidRequest(self._ended)
        return character

    def _unexpected(self, context: str) -> InvalidRequest:
        return InvalidRequest(f"invalid character {_quoted(self._here()[0])} {context}")


def _quoted(byte: int) -> str:
    """As Go quotes a character."""
    character = chr(byte)
    if character == "'":
        return r"'\''"
    if character == '"':
        return "'\"'"
    escapes = {"\\": r"\\", "\a": r"\a", "\b": r"\b", "\f": r"\f", "\n": r"\n", "\r": r"\r", "\t": r"\t", "\v": r"\v"}
    shown = escapes.get(character) or (character if character.isprintable() else f"\\x{byte:02x}")
    return f"'{shown}'"


@cache
def _converter(annotation: Any) -> Convert:
    """What makes a value of this type from one that was read, as jsonpb does it."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        named = next((one.name for one in arguments[1:] if isinstance(one, GoType)), "int64")
        return lambda value: _number_or_name(value, named)
    if origin in (Union, types.UnionType):
        return _converter_of_union(tuple(one for one in arguments if one is not type(None)))
    if origin is list:
        convert = _converter(arguments[0])
        return lambda value: [convert(one) for one in _list_of(value)]
    if origin is dict or annotation is dict:
        return _object_of
    if isinstance(annotation, type) and issubclass(annotation, msgspec.Struct):
        return lambda value: _struct_of(value, annotation)
    return {bytes: _bytes_of, bool: _flag_of, str: _text_of}.get(annotation, lambda value: value)


def _converter_of_union(arguments: tuple[Any, ...]) -> Convert:
    if int in arguments:
        return lambda value: _number_or_name(value, "int64")
    return _converter(arguments[0])


@cache
def _fields_of(kind: type[msgspec.Struct]) -> tuple[tuple[str, str, Convert], ...]:
    """(the field's name, its name in JSON, how it is made), in order."""
    hints = get_type_hints(kind, include_extras=True)
    return tuple(
        (field.name, field.encode_name, _converter(hints[field.name])) for field in msgspec.structs.fields(kind)
    )


def _struct_of(value: Any, kind: type[msgspec.Struct]) -> msgspec.Struct:
    given = _object_of(value)
    return kind(
        **{
            name: convert(given[json_name])
            for name, json_name, convert in _fields_of(kind)
            if given.get(json_name) is not None
        }
    )


def _object_of(value: Any) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise _mismatch(value, "map[string]json.RawMessage")
    return value


def _list_of(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise _mismatch(value, "[]json.RawMessage")
    if None in value:
        raise InvalidRequest("null in a list, where it stands for nothing")
    return value


def _number_or_name(value: Any, go_type: str) -> int | str:
    """What stands in a string is its reader's business: a number, or a name."""
    if isinstance(value, str) and not isinstance(value, GoNumber):
        return value
    return _int64_of(value, go_type, _INT64_MIN, _INT64_MAX)


def _int64_of(value: Any, go_type: str, lowest: int, highest: int) -> int:
    if not isinstance(value, GoNumber):
        raise _mismatch(value, go_type)
    if _DECIMAL.fullmatch(value) is None or not lowest <= int(value) <= highest:
        raise InvalidRequest(f"json: cannot unmarshal number {value} into Go value of type {go_type}")
    return int(value)


def _flag_of(value: Any) -> bool:
    if not isinstance(value, bool):
        raise _mismatch(value, "bool")
    return value


def _text_of(value: Any) -> str:
    if not isinstance(value, str) or isinstance(value, GoNumber):
        raise _mismatch(value, "string")
    return value


def _bytes_of(value: Any) -> bytes:
    if isinstance(value, list):
        return bytes([_int64_of(one, "uint8", 0, _BYTE_MAX) if one is not None else 0 for one in value])
    if not isinstance(value, str) or isinstance(value, GoNumber):
        raise _mismatch(value, "[]uint8")
    return _decode_base64(value.encode("utf-8", "replace"))


def _mismatch(value: Any, go_type: str) -> InvalidRequest:
    kinds = {bool: "bool", GoNumber: "number", str: "string", list: "array", dict: "object"}
    return InvalidRequest(f"json: cannot unmarshal {kinds[type(value)]} into Go value of type {go_type}")


def _decode_base64(text: bytes) -> bytes:
    """With line breaks anywhere. Raises InvalidRequest that names the byte, as Go counts (`decodeQuantum`)."""
    compact = text.translate(None, _LINE_BREAKS)
    try:
        # Bits that are left over are not looked at, by neither.
        return base64.b64decode(compact, validate=True) if len(compact) % _QUANTUM == 0 else _refuse_base64(text)
    except ValueError:
        return _refuse_base64(text)


def _refuse_base64(text: bytes) -> bytes:
    raise InvalidRequest(f"illegal base64 data at input byte {_corrupt_byte(text)}")


def _corrupt_byte(text: bytes) -> int:
    """Where Go finds what is wrong: at the byte, or, when the last quantum is not whole, at its beginning (counted back
    from the end, as if it had no line breaks)."""
    found = _NO_BASE64.search(text)
    if found is None:
        return len(text) - _length_in_base64(text) % _QUANTUM
    at = found.start()
    in_quantum = _length_in_base64(text[:at]) % _QUANTUM
    if text[at] != _PADDING or in_quantum < _CHARACTERS_MIN:
        return at
    after = _NO_LINE_BREAK.search(text, at + 1)
    if in_quantum == _QUANTUM - 1:
        return len(text) if after is None else after.start()
    if after is None:
        return len(text)
    if text[after.start()] != _PADDING:
        return after.start() - 1
    behind = _NO_LINE_BREAK.search(text, after.end())
    return len(text) if behind is None else behind.start()


def _length_in_base64(text: bytes) -> int:
    return len(text.translate(None, _LINE_BREAKS))
