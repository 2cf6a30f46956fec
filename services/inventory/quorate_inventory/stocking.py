"""The stock that a new shop starts with: `widget=1000,gadget=500`."""

import re

RESERVED_NAMES = frozenset({"events", "settings"})
"""No SKU has these names, since `/stock/events` and `/stock/settings` mean something else."""
_SKU = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_ENTRY = re.compile(r"(?P<sku>[^=]+)=(?P<available>[0-9]{1,12})")


def parse_stock(text: str) -> dict[str, int]:
    """Pieces by SKU. Raises ValueError that says which entry is wrong."""
    stock: dict[str, int] = {}
    for entry in filter(None, (part.strip() for part in text.split(","))):
        match = _ENTRY.fullmatch(entry)
        if match is None or not is_sku(match["sku"]):
            raise ValueError(f"{entry!r} is no stock; write SKU=PIECES, such as widget=1000")
        if match["sku"] in stock:
            raise ValueError(f"SKU {match['sku']} is named twice")
        stock[match["sku"]] = int(match["available"])
    return stock


def is_sku(name: str) -> bool:
    return _SKU.fullmatch(name) is not None and name not in RESERVED_NAMES
