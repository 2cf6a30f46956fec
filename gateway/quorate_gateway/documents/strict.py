"""What all parts of a document share: strictness, and the forms of names, paths and header fields."""

import re
from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, GetJsonSchemaHandler, StringConstraints
from pydantic.json_schema import JsonSchemaValue

DURATION_MS_MAX = 3_600_000

_PATH = re.compile(r"/[A-Za-z0-9._~!$&'()*+,;=:@%/-]*")
_DOT_SEGMENT = re.compile(r"(^|/)\.{1,2}(/|$)")
_ESCAPE = re.compile(r"%([0-9A-Fa-f]{2})?")
_UNRESERVED = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~")
"""RFC 3986, section 2.3."""
_TEMPLATE_SEGMENT = re.compile(r"\{[a-z][a-z0-9_]{0,31}(\.\.\.)?\}|[A-Za-z0-9._~!$&'()*+,;=:@%-]*")


class Strict(BaseModel):
    """Unknown names refused, no value taken for one of another type, unchangeable."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)


def one_of(*names: str) -> ConfigDict:
    """Of a model: the JSON Schema says too that exactly one of these fields is given."""
    return ConfigDict(json_schema_extra={"oneOf": [{"required": [name]} for name in names]})


def check_path(path: str) -> str:
    """As it will be compared: requests come with the escapes of unreserved characters resolved, so that a path which
    has one of them would never be matched."""
    if not _PATH.fullmatch(path) or _DOT_SEGMENT.search(path):
        raise ValueError("a path starts with '/', holds no query, space or dot segment, and is percent-encoded")
    for escape in _ESCAPE.finditer(path):
        octet = escape[1]
        if octet is None:
            raise ValueError("'%' in a path is followed by two hexadecimal digits")
        char = chr(int(octet, 16))
        if char in _UNRESERVED:
            raise ValueError(f"'%{octet}' in a path is written as {char!r}: that is what it is compared as")
        if char < " " or char == "\x7f":
            raise ValueError(f"'%{octet}' in a path is a control character, and no request with one is passed on")
    return path


class TemplateSegment(NamedTuple):
    """`literal` as it is written, or the `name` of what stands for one segment, or for all that are left."""

    literal: str = ""
    name: str = ""
    takes_rest: bool = False


def template_segments(template: str) -> Sequence[TemplateSegment]:
    """Of a path in which whole segments may be `{name}`, and the last one `{name...}`."""
    segments = []
    for segment in template.split("/")[1:]:
        if segment.startswith("{"):
            name = segment.strip("{}")
            segments.append(TemplateSegment(name=name.removesuffix("..."), takes_rest=name.endswith("...")))
        else:
            segments.append(TemplateSegment(literal=segment))
    return segments


def check_template(template: str) -> str:
    """`{name}` stands for one segment that is not empty, `{name...}` at the end for all that are left."""
    segments = template.split("/")[1:]
    names = [segment.strip("{}").removesuffix("...") for segment in segments if segment.startswith("{")]
    if not template.startswith("/") or not all(_TEMPLATE_SEGMENT.fullmatch(segment) for segment in segments):
        raise ValueError("a template is a path in which a whole segment may be '{name}', and the last one '{name...}'")
    if any(segment.endswith("...}") for segment in segments[:-1]):
        raise ValueError("'{name...}' stands for all segments that are left, and so comes last")
    if len(set(names)) < len(names):
        raise ValueError("a template gives each name once")
    if not names:
        raise ValueError("a template without '{name}' is a 'path'")
    check_path(re.sub(r"\{[^}]*\}", "x", template))
    return template


def _trim_prefix(path: str) -> str:
    """A trailing slash makes no difference to a prefix."""
    return check_path(path).rstrip("/") or "/"


class AlsoBoolean:
    """For the JSON Schema: a boolean may stand in the place of the object."""

    @classmethod
    def __get_pydantic_json_schema__(cls, core: Any, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {"anyOf": [handler(core), {"type": "boolean"}]}


def on_or_off(value: Any) -> Any:
    """YAML reads `on` and `off` as booleans."""
    return {"enabled": value} if isinstance(value, bool) else value


Path = Annotated[str, StringConstraints(max_length=1_024), AfterValidator(check_path)]
PathPrefix = Annotated[str, StringConstraints(max_length=1_024), AfterValidator(_trim_prefix)]
PathTemplate = Annotated[str, StringConstraints(max_length=1_024), AfterValidator(check_template)]
HeaderName = Annotated[str, StringConstraints(max_length=64, to_lower=True, pattern=r"^[A-Za-z0-9_-]+$")]
HeaderValue = Annotated[str, StringConstraints(max_length=256, pattern=r"^[!-~]([ -~]*[!-~])?$")]
Method = Annotated[str, StringConstraints(pattern=r"^[A-Z]{1,20}$")]
ServiceName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?$")]
VersionName = Annotated[str, StringConstraints(min_length=1, max_length=63)]
DurationMs = Annotated[int, Field(ge=1, le=DURATION_MS_MAX)]
Percent = Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]
