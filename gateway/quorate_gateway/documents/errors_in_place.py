"""From what pydantic says of a document to what its author reads: one sentence, with its place and line.

pydantic's location of an error also names what no author has written: the tag of the union's member that was tried,
and `[key]`. So the location is walked along the models, which tell a tag from a field, and lead to the model whose
fields an unknown name may have been meant for.
"""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from types import NoneType, UnionType
from typing import Annotated, Any, NamedTuple, Union, get_args, get_origin

from pydantic import BaseModel, Tag, ValidationError
from quorate_core.documents import DocumentError

from quorate_gateway.yaml_lines import LinedDocument

Place = tuple[str | int, ...]
ERRORS_MAX = 100
"""Told of one document: whoever has more reads no further."""


def readable_errors(error: ValidationError, model: type[BaseModel], lined: LinedDocument) -> Sequence[DocumentError]:
    """A name that is not known comes first: it says why another one is missing."""
    items = error.errors(include_url=False)[:ERRORS_MAX]
    items.sort(key=lambda item: item["type"] != "extra_forbidden")
    return [_readable(item, model, lined) for item in items]


def error_at(lined: LinedDocument, place: Place, message: str) -> DocumentError:
    return DocumentError(message, lined.line_of(place), ".".join(str(part) for part in place))


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'service'?`, or what is known here."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1)
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; known here: {', '.join(known)}" if known else ""


def _readable(item: Any, model: type[BaseModel], lined: LinedDocument) -> DocumentError:
    where = _locate(model, item["loc"])
    place, message = where.place, item["msg"].removeprefix("Value error, ")
    last = place[-1] if place else "the document"
    match item["type"]:
        case "extra_forbidden":
            fields = () if where.owner is None else where.owner.model_fields
            message = f"unknown field {last!r}{did_you_mean(str(last), fields)}"
        case "missing":
            message = f"{last!r} is missing"
        case "model_type" | "model_attributes_type" | "dict_type":
            message = f"{_named(place)} must be a mapping"
        case "union_tag_invalid" | "union_tag_not_found":
            expected = item["ctx"].get("expected_tags", "the known ones")
            place, message = (*place, "algorithm"), f"'algorithm' is one of {expected}"
        case _ if where.is_key:
            message = f"the name {last!r}: {message}"
    return error_at(lined, place, message)


def _named(place: Place) -> str:
    """`'retry'`; of a list's item, `a route` in `routes` and `each of 'split'` in another."""
    if not place or isinstance(place[-1], str):
        return repr(place[-1]) if place else "the document"
    return "a route" if place[:-1] == ("routes",) else f"each of {place[-2]!r}"


class _Located(NamedTuple):
    """`owner` has, or should have, the last part of `place` as a field; None when it is no model's."""

    place: Place
    owner: type[BaseModel] | None
    is_key: bool


def _locate(model: type[BaseModel], location: Sequence[str | int]) -> _Located:
    place: list[str | int] = []
    owner: type[BaseModel] | None = None
    here: Mapping[str | None, Any] = {None: model}
    for part in location:
        if isinstance(part, str) and part in here:
            here = {None: here[part]}
        elif part != "[key]":
            place.append(part)
            kind = here.get(None)
            owner = kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None
            here = _alternatives(_below(kind, part))
    return _Located(tuple(place), owner, bool(location) and location[-1] == "[key]")


def _below(kind: Any, part: str | int) -> Any:
    """The annotation of what stands in `kind` at `part`; None when nothing should."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        field = kind.model_fields.get(str(part))
        return None if field is None else field.annotation
    arguments = get_args(kind)
    return arguments[-1] if get_origin(kind) in (list, dict) else None


def _alternatives(annotation: Any, tag: str | None = None) -> dict[str | None, Any]:
    """What it may be, by the union's tags; by None without any."""
    if get_origin(annotation) is Annotated:
        inner, *notes = get_args(annotation)
        tags = [note.tag for note in notes if isinstance(note, Tag)]
        return _alternatives(inner, tags[0] if tags else tag)
    if get_origin(annotation) in (Union, UnionType):
        found: dict[str | None, Any] = {}
        for member in get_args(annotation):
            if member is not NoneType:
                found |= _alternatives(member, tag)
        return found
    return {tag: annotation}
