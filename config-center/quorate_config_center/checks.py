"""Decides whether content may be published: its format first, then the validator of whoever consumes the document.

Checks run in threads, a few at a time: parsing a megabyte takes longer than a node's event loop may stand still.
"""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import EntryPoint, entry_points

import structlog
from quorate_core.documents import DOCUMENTS_GROUP, DocumentError, DocumentValidator
from quorate_core.errors import InvalidContent, PayloadTooLarge, TooManyRequests
from quorate_sdk.wire import CONTENT_BYTES_MAX, ConfigFormat

from quorate_config_center.formats import check_content
from quorate_config_center.model import DocumentName

CHECKS_RUNNING_MAX = 2
CHECKS_WAITING_MAX = 64
ERRORS_SHOWN_MAX = 50

log = structlog.get_logger(__name__)


class BrokenValidator:
    """Stands where a validator could not be loaded. Fails closed: its group cannot be published to."""

    def __init__(self, reason: str) -> None:
        self._reason = reason

    def __call__(self, key: str, content: str) -> Sequence[DocumentError]:
        return [DocumentError(f"the validator of this group could not be loaded on this node ({self._reason})")]


def load_validators(entries: Iterable[EntryPoint]) -> dict[str, DocumentValidator]:
    """The validators that `entries` name, by document group."""
    found: dict[str, DocumentValidator] = {}
    for entry in entries:
        try:
            found[entry.name] = entry.load()
        except Exception as error:  # another package's import may raise anything; it costs that group alone
            log.exception("document_validator_not_loaded", group=entry.name, source=entry.value)
            found[entry.name] = BrokenValidator(f"{entry.value}: {type(error).__name__}")
    return found


def installed_validators() -> dict[str, DocumentValidator]:
    """The validators of all installed packages, by document group."""
    return load_validators(entry_points(group=DOCUMENTS_GROUP))


def decode_content(body: bytes) -> str:
    """Raises PayloadTooLarge over CONTENT_BYTES_MAX, InvalidContent for what is not UTF-8."""
    if len(body) > CONTENT_BYTES_MAX:
        raise PayloadTooLarge(f"a document of {len(body)} bytes is over the limit of {CONTENT_BYTES_MAX}")
    try:
        return body.decode()
    except UnicodeDecodeError as error:
        line = body.count(b"\n", 0, error.start) + 1
        raise _refusal("not UTF-8", [DocumentError(f"byte {error.start} is not UTF-8", line)]) from error


class ContentChecker:
    """`validators` by group; those of installed packages unless told otherwise."""

    def __init__(self, validators: Mapping[str, DocumentValidator]) -> None:
        self._validators = validators
        self._running = asyncio.Semaphore(CHECKS_RUNNING_MAX)
        self._waiting = 0

    async def require_valid(self, name: DocumentName, content_format: ConfigFormat, content: str) -> None:
        """Raises InvalidContent with `errors` (message, line, path), TooManyRequests when too many checks wait."""
        if self._waiting >= CHECKS_WAITING_MAX:
            raise TooManyRequests(f"{CHECKS_WAITING_MAX} documents are waiting to be checked on this node")
        self._waiting += 1
        try:
            async with self._running:
                errors = await asyncio.to_thread(self._check, name, content_format, content)
        finally:
            self._waiting -= 1
        if errors:
            first = errors[0]
            place = f", line {first.line}" if first.line else ""
            raise _refusal(f"{name} is refused{place}: {first.message}", errors)

    def _check(self, name: DocumentName, content_format: ConfigFormat, content: str) -> Sequence[DocumentError]:
        errors = check_content(content_format, content)
        validator = self._validators.get(name.group)
        if errors or validator is None:
            return errors
        try:
            return validator(name.key, content)
        except Exception as error:  # a validator's defect must not end the node, nor let the document through
            log.exception("document_validator_crashed", document=str(name))
            return [DocumentError(f"the validator of group {name.group} failed ({type(error).__name__}); see the log")]


def _refusal(detail: str, errors: Sequence[DocumentError]) -> InvalidContent:
    return InvalidContent(detail, errors=[asdict(error) for error in errors[:ERRORS_SHOWN_MAX]])
