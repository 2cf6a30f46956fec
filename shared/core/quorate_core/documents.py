"""Validators of well-known configuration documents: whoever consumes a document says when it may be published.

A validator is found by the entry-point group `quorate.documents`: the entry's name is the document's group in the
config center (such as `gateway`), its object a `DocumentValidator`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

DOCUMENTS_GROUP = "quorate.documents"


@dataclass(frozen=True, slots=True)
class DocumentError:
    """`line` counts from 1; 0 when it is not known. `path` is like `routes.0.service`."""

    message: str
    line: int = 0
    path: str = ""


class DocumentValidator(Protocol):
    """Pure: decides whether a document may be published. `key` is the document's key in its group."""

    def __call__(self, key: str, content: str) -> Sequence[DocumentError]:
        """All that is wrong with `content`, best first; nothing when it may be published."""
        ...
