"""Who asks: what the policies of a request know of its client."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

_NO_CLAIMS: Mapping[str, Any] = MappingProxyType({})


class Caller(NamedTuple):
    """`client_key`: the client's address, of IPv6 its first 64 bits. The rest is what authentication has proved."""

    client_key: bytes
    api_key_id: bytes = b""
    claims: Mapping[str, Any] = _NO_CLAIMS
    """Of a verified token."""
    subject: bytes = b""
