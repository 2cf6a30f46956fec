"""Identifiers that sort by the time they were made (RFC 9562, section 5.7: UUID version 7)."""

import uuid

RANDOM_BITS = 74


def time_ordered_id(wall_s: float, random_bits: int) -> str:
    """A version 7 UUID for a moment in seconds since the Unix epoch and RANDOM_BITS random bits.

    Ids made in one millisecond sort at random among themselves, and by time otherwise.
    """
    milliseconds = int(wall_s * 1000) & ((1 << 48) - 1)
    high, low = random_bits >> 62 & 0xFFF, random_bits & ((1 << 62) - 1)
    return str(uuid.UUID(int=milliseconds << 80 | 0x7 << 76 | high << 64 | 0b10 << 62 | low))
