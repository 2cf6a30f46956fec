"""What is changed in a request on its way to the service, and in the answer on its way back."""

import re
from typing import Annotated, Self

from pydantic import AfterValidator, Field, StringConstraints, model_validator

from quorate_gateway.documents.strict import HeaderName, HeaderValue, PathPrefix, Strict, check_path

CHANGES_MAX = 32
PROTECTED = frozenset(
    {"connection", "content-length", "expect", "forwarded", "host", "keep-alive", "proxy-connection", "te", "trailer",
     "traceparent", "transfer-encoding", "upgrade", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto",
     "x-quorate-api-key-id", "x-quorate-subject", "x-real-ip", "x-request-id", "x-request-timeout-ms"}
)  # fmt: skip
"""Fields of the framing, of this hop, and those that the gateway itself vouches for."""


NAME_IN_FORM = re.compile(r"\{([a-z][a-z0-9_]{0,31})\}")


def _check_form(form: str) -> str:
    check_path(NAME_IN_FORM.sub("x", form))
    return form


class RouteRewrite(Strict):
    """What the service is asked for instead. The query stays as it came."""

    path_prefix: PathPrefix | None = None
    """In the place of the `path` or `path_prefix` that matched."""
    path: Annotated[str, StringConstraints(max_length=1_024), AfterValidator(_check_form)] | None = None
    """For a `path_template`: the whole path, which may use its names: `/v2/{id}`. Each is what stood there, escaped as
    it came; that of `{name...}` is `{name}` too."""
    host: Annotated[str, StringConstraints(max_length=253, pattern=r"^[A-Za-z0-9._-]+(:[0-9]{1,5})?$")] | None = None
    """What the service sees as Host; otherwise what the client sent. `X-Forwarded-Host` has that in any case."""

    @model_validator(mode="after")
    def _something(self) -> Self:
        if self.path_prefix is not None and self.path is not None:
            raise ValueError("give 'path_prefix' or 'path', not both")
        if self.path_prefix is None and self.path is None and self.host is None:
            raise ValueError("give 'path_prefix', 'path' or 'host'")
        return self


class HeaderChanges(Strict):
    """First `remove`, then `set`, which replaces all of that name, then `add`."""

    remove: Annotated[list[HeaderName], Field(max_length=CHANGES_MAX)] = Field(default_factory=list)
    """All fields of these names."""
    set: Annotated[dict[HeaderName, HeaderValue], Field(max_length=CHANGES_MAX)] = Field(default_factory=dict)
    """One field of each name, with this value, whatever came."""
    add: Annotated[dict[HeaderName, HeaderValue], Field(max_length=CHANGES_MAX)] = Field(default_factory=dict)
    """One field more of each name."""

    @model_validator(mode="after")
    def _not_protected(self) -> Self:
        touched = sorted(PROTECTED & {*self.remove, *self.set, *self.add})
        if touched:
            raise ValueError(f"{touched[0]!r} cannot be changed: it is the connection's, or the gateway vouches for it")
        return self
