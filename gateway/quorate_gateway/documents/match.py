"""What a request must look like for a route to take it."""

from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, GetJsonSchemaHandler, StringConstraints, model_validator
from pydantic.json_schema import JsonSchemaValue

from quorate_gateway.documents.strict import (
    HeaderName,
    HeaderValue,
    Method,
    Path,
    PathPrefix,
    PathTemplate,
    Strict,
    one_of,
    template_segments,
)

MATCHES_MAX = 8

_HOST = r"^((\*\.)?[A-Za-z0-9._-]*[A-Za-z0-9_-]|\[[0-9a-fA-F:.]+\])$"
HostMatch = Annotated[str, StringConstraints(max_length=253, to_lower=True, pattern=_HOST)]
QueryName = Annotated[str, StringConstraints(min_length=1, max_length=64)]
QueryValue = Annotated[str, StringConstraints(max_length=256)]


class ValueMatch(Strict):
    """Exactly one of the three. A plain text in its place means `equals`."""

    model_config = one_of("equals", "prefix", "present")

    equals: HeaderValue | None = None
    """The whole value, upper and lower case told apart."""
    prefix: HeaderValue | None = None
    """How the value begins."""
    present: bool | None = None
    """Whether there is such a field at all, with any value or with none."""

    @model_validator(mode="after")
    def _just_one(self) -> Self:
        if sum(given is not None for given in (self.equals, self.prefix, self.present)) != 1:
            raise ValueError("give exactly one of 'equals', 'prefix' and 'present'")
        return self

    def follows_from(self, other: "ValueMatch") -> bool:
        """Whether every request that agrees with `other` agrees with this too."""
        if self.present is not None:
            return self.present is (other.present is not False)
        if self.prefix is not None:
            return (other.equals or other.prefix or "").startswith(self.prefix)
        return self.equals == other.equals


class _AlsoText:
    """For the JSON Schema: a text may stand in the place of the object."""

    @classmethod
    def __get_pydantic_json_schema__(cls, core: Any, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        text = {"type": "string", "maxLength": 256, "description": "The same as `equals`."}
        return {"anyOf": [handler(core), text]}


HeaderMatch = Annotated[
    ValueMatch, BeforeValidator(lambda value: {"equals": value} if isinstance(value, str) else value), _AlsoText
]
"""Of a header field that comes more than once, any one that agrees will do."""


class RouteMatch(Strict):
    """What a request must look like. Exactly one of `path`, `path_prefix` and `path_template`."""

    model_config = one_of("path", "path_prefix", "path_template")

    path: Path | None = None
    """The whole path, equal."""
    path_prefix: PathPrefix | None = None
    """How the path begins, by whole segments: `/orders` takes `/orders` and `/orders/7`, never `/ordersheet`."""
    path_template: PathTemplate | None = None
    """The whole path, in which `{name}` stands for one segment that is not empty, and `{name...}` at the end for all
    that are left: `/orders/{id}/lines`, `/files/{path...}`."""
    methods: Annotated[list[Method], Field(min_length=1, max_length=20)] | None = None
    """Any, when left out. Of a route with `cors`, a browser's preflight counts by the method that it asks for."""
    host: HostMatch | None = None
    """Of the Host field, without port and case; `*.example.com` takes every name below `example.com`, at any depth."""
    headers: Annotated[dict[HeaderName, HeaderMatch], Field(max_length=MATCHES_MAX)] = Field(default_factory=dict)
    """All of them must agree. Of a field that comes more than once, any one that agrees will do."""
    query: Annotated[dict[QueryName, QueryValue], Field(max_length=MATCHES_MAX)] = Field(default_factory=dict)
    """Each parameter equal, after decoding. Of one that comes more than once, the first counts."""

    @model_validator(mode="after")
    def _one_path(self) -> Self:
        if sum(given is not None for given in (self.path, self.path_prefix, self.path_template)) != 1:
            raise ValueError("give exactly one of 'path', 'path_prefix' and 'path_template'")
        return self

    @property
    def matched(self) -> str:
        """The path, the template or the prefix."""
        return self.path or self.path_template or self.path_prefix or "/"

    @property
    def shape(self) -> tuple[str, str]:
        """The same for two routes that match the same paths: the names in a template make no difference."""
        if self.path is not None:
            return "path", self.path
        if self.path_prefix is not None:
            return "path_prefix", self.path_prefix
        parts = [
            segment.literal if not segment.name else "{...}" if segment.takes_rest else "{}"
            for segment in template_segments(self.path_template or "")
        ]
        return "path_template", "/".join(parts)

    def covers(self, other: "RouteMatch") -> bool:
        """Whether every request that `other` takes would be taken by this one first, had it the earlier place.

        May say no where several conditions together would mean yes; a yes is always true.
        """
        return self.shape == other.shape and self.asks_no_more_than(other)

    def asks_no_more_than(self, other: "RouteMatch") -> bool:
        """The same of two that are known to have one shape. Cheap: of many routes with one path, each asks all before
        it."""
        for name, wanted in self.headers.items():
            found = other.headers.get(name)
            if found is None or not wanted.follows_from(found):
                return False
        if self.query and not self.query.items() <= other.query.items():
            return False
        if self.methods is not None and (other.methods is None or not set(other.methods) <= set(self.methods)):
            return False
        return self._covers_host(other.host)

    def _covers_host(self, other: str | None) -> bool:
        if self.host is None or self.host == other:
            return True
        return other is not None and self.host.startswith("*.") and other.endswith(self.host[1:])
