"""What a document and its versions are, where they are kept, and what a change of one becomes. Pure.

A document is named by namespace, group and key. Two kinds of keys hold it in the store:

- `quorate/config/{namespace}/{group}/{key}`: the head of the newest version, as one line of JSON. A deletion leaves
  the head of a deleted version here, so that version numbers never repeat.
- `quorate/config-history/{namespace}/{group}/{key}/{version:020d}`: one version: its head, a line feed, its content.

Both are written in one transaction, so that they share its revision; content is kept once, which leaves room for a
document of CONTENT_BYTES_MAX in a transaction of the store.
"""

import hashlib
import re
from dataclasses import dataclass

import msgspec
from quorate_core.errors import InvalidRequest, NotFound, PreconditionFailed
from quorate_sdk.wire import KEY_PATTERN, NAME_PATTERN, ConfigDocument, ConfigFormat, ConfigMetadata

CURRENT_PREFIX = b"quorate/config/"
HISTORY_PREFIX = b"quorate/config-history/"
ANONYMOUS = "anonymous"

_GROUP = re.compile(NAME_PATTERN.replace("$", r"\Z"))
_KEY = re.compile(KEY_PATTERN.replace("$", r"\Z"))


@dataclass(frozen=True, slots=True, order=True)
class DocumentName:
    namespace: str
    group: str
    key: str

    @classmethod
    def parse(cls, namespace: str, text: str) -> "DocumentName":
        """From `group/key`. Raises ValueError for names that no document may have."""
        group, slash, key = text.partition("/")
        if not slash or not _GROUP.match(group) or not _KEY.match(key):
            raise ValueError(f"{text!r} is not group/key")
        return cls(namespace, group, key)

    def __str__(self) -> str:
        return f"{self.namespace}/{self.group}/{self.key}"


class Head(msgspec.Struct, frozen=True):
    """One version without its content. `version` counts from 1; `sha256` is the content's, in hex."""

    version: int
    format: ConfigFormat
    author: str
    comment: str
    changed_at: str
    sha256: str
    deleted: bool = False


@dataclass(frozen=True, slots=True)
class StoredHead:
    """A head as it was read. `revision` is the store's of its last change."""

    head: Head
    revision: int


@dataclass(frozen=True, slots=True)
class StoredVersion:
    head: Head
    content: str
    revision: int


@dataclass(frozen=True, slots=True)
class Change:
    """Who changes a document, when and why. `changed_at` is RFC 3339 in UTC."""

    author: str
    comment: str
    changed_at: str


def current_key(name: DocumentName) -> bytes:
    return CURRENT_PREFIX + str(name).encode()


def namespace_prefix(namespace: str, group: str | None = None) -> bytes:
    """The prefix of the current heads of a namespace, or of one of its groups."""
    scope = f"{namespace}/" if group is None else f"{namespace}/{group}/"
    return CURRENT_PREFIX + scope.encode()


def version_key(name: DocumentName, version: int) -> bytes:
    """Versions sort as numbers do, since they are padded to 20 digits."""
    return HISTORY_PREFIX + f"{name}/{version:020d}".encode()


def name_of_current(key: bytes) -> DocumentName:
    """Raises ValueError for a key of another shape."""
    namespace, group, document = key.removeprefix(CURRENT_PREFIX).decode().split("/")
    return DocumentName(namespace, group, document)


def name_of_version(key: bytes) -> tuple[DocumentName, int]:
    """Raises ValueError for a key of another shape."""
    namespace, group, document, version = key.removeprefix(HISTORY_PREFIX).decode().split("/")
    return DocumentName(namespace, group, document), int(version)


def encode_head(head: Head) -> bytes:
    return msgspec.json.encode(head)


def decode_head(value: bytes) -> Head:
    """Raises ValueError (msgspec's decoding errors are its kind) for anything else than a head."""
    return msgspec.json.decode(value, type=Head)


def encode_version(head: Head, content: bytes) -> bytes:
    return encode_head(head) + b"\n" + content


def decode_version(value: bytes) -> tuple[Head, str]:
    head, _, content = value.partition(b"\n")
    return decode_head(head), content.decode()


def metadata(name: DocumentName, stored: StoredHead) -> ConfigMetadata:
    return ConfigMetadata(
        namespace=name.namespace, group=name.group, key=name.key, revision=stored.revision,
        **msgspec.structs.asdict(stored.head),
    )  # fmt: skip


def document(name: DocumentName, stored: StoredVersion) -> ConfigDocument:
    return ConfigDocument(
        namespace=name.namespace, group=name.group, key=name.key, revision=stored.revision, content=stored.content,
        **msgspec.structs.asdict(stored.head),
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Precondition:
    """What a writer requires of the document as it is (RFC 9110, section 13).

    `versions`: it exists in one of these. `exists` True: it exists; False: it does not (a deleted one does not).
    """

    versions: frozenset[int] | None = None
    exists: bool | None = None

    @classmethod
    def from_headers(cls, if_match: str | None, if_none_match: str | None) -> "Precondition":
        """From `If-Match: "<version>"` (also unquoted, a list, or `*`) and `If-None-Match: *`.

        Raises InvalidRequest for anything else.
        """
        if if_none_match is not None:
            if if_none_match.strip() != "*" or if_match is not None:
                raise InvalidRequest("for a write, only If-None-Match: * is understood, and not together with If-Match")
            return cls(exists=False)
        if if_match is None:
            return cls()
        if if_match.strip() == "*":
            return cls(exists=True)
        return cls(versions=frozenset(_version_of_tag(tag) for tag in if_match.split(",")))

    def require(self, name: DocumentName, current: Head | None) -> None:
        """Raises PreconditionFailed with the version that was found (0: there is none)."""
        found = 0 if current is None or current.deleted else current.version
        if self.exists is False and found:
            raise PreconditionFailed(f"{name} already exists, in version {found}", version=found)
        if self.exists and not found:
            raise PreconditionFailed(f"{name} does not exist", version=0)
        if self.versions is not None and found not in self.versions:
            wanted = " or ".join(str(version) for version in sorted(self.versions))
            state = f"is in version {found}" if found else "does not exist"
            raise PreconditionFailed(f"{name} {state}, not in version {wanted}; read it and try again", version=found)


def _version_of_tag(tag: str) -> int:
    text = tag.strip()
    if len(text) >= 2 and text[0] == text[-1] == '"':
        text = text[1:-1]
    # isascii: int() would also take other scripts' digits.
    if not (text.isascii() and text.isdigit() and len(text) <= 18) or int(text) < 1:
        raise InvalidRequest(f'If-Match {tag.strip()!r} is no version of a document; write it as "7"')
    return int(text)


def next_published(current: Head | None, content: bytes, content_format: ConfigFormat, change: Change) -> Head | None:
    """The head that publishing `content` leads to, or None when it is already there: no new version then."""
    digest = hashlib.sha256(content).hexdigest()
    if current is not None and not current.deleted and (current.sha256, current.format) == (digest, content_format):
        return None
    return _next(current, content_format, digest, change)


def next_deleted(name: DocumentName, current: Head | None, change: Change) -> Head:
    """Raises NotFound when there is nothing to delete."""
    if current is None or current.deleted:
        raise NotFound(f"there is no document {name}")
    return _next(current, current.format, hashlib.sha256(b"").hexdigest(), change, deleted=True)


def _next(
    current: Head | None, content_format: ConfigFormat, digest: str, change: Change, *, deleted: bool = False
) -> Head:
    return Head(
        version=1 if current is None else current.version + 1, format=content_format, author=change.author or ANONYMOUS,
        comment=change.comment, changed_at=change.changed_at, sha256=digest, deleted=deleted,
    )  # fmt: skip
