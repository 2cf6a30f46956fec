"""API keys from the config center to the data plane: the last good ones, always (`quorate_gateway.good_documents`).

A document that is gone takes no key back, since a store that was set up anew must lock nobody out. To take all of them
back, `keys: []` is published.
"""

from collections.abc import Callable
from pathlib import Path

from quorate_gateway.documents.access import ApiKeysDocument
from quorate_gateway.documents.api_keys_document import API_KEYS_KEY, NO_KEYS, parse_api_keys
from quorate_gateway.good_documents import GoodDocument, Published

API_KEYS_NAME = f"gateway/{API_KEYS_KEY}"


class PublishedKeys:
    """Hands each good document to `replace`; the first when it is known whether there is one at all."""

    def __init__(self, data_dir: Path, replace: Callable[[ApiKeysDocument], None]) -> None:
        self._good = GoodDocument(API_KEYS_NAME, parse_api_keys, NO_KEYS, data_dir / "good-api-keys.json")
        self._replace = replace
        self._is_known = False

    @property
    def document(self) -> ApiKeysDocument | None:
        """The last good one; None while it is not known whether there is one."""
        return self._good.value if self._is_known else None

    @property
    def version(self) -> int:
        """Of the document in the config center; 0 when none was ever published."""
        return self._good.good.version

    @property
    def rejected(self) -> str | None:
        """Why what is published now is not in force; None when it is."""
        return None if self._good.rejected is None else self._good.rejected.reason

    def read_good(self) -> None:
        """What was good before a restart. The file holds digests, and no key."""
        self._good.read()
        if self._good.good.version:
            self._apply()

    async def take(self, published: Published | None) -> None:
        """What the config center has now; None when it has no such document."""
        if await self._good.take(published) or not self._is_known:
            self._apply()

    async def keep_written(self) -> None:
        await self._good.file.keep_written()

    async def flush(self) -> None:
        await self._good.file.flush()

    def _apply(self) -> None:
        self._is_known = True
        self._replace(self._good.value)
