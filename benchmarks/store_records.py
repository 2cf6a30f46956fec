"""What is written into the stores: the same keys and values for all, and the JSON bodies that write and read them."""

import random
from enum import StrEnum

from benchmarks.store_members import text_of

VALUE_BYTES = 256
SEED = 20_240_229


class Work(StrEnum):
    """What the requests of a load do to the records."""

    PUT = "put"
    RANGE = "range"
    SERIALIZABLE_RANGE = "serializable range"
    TRANSACTION = "transaction"
    """If the key has a revision (it was put before, so it has), put it."""

    @property
    def writes(self) -> bool:
        return self in (Work.PUT, Work.TRANSACTION)


class Records:
    """Keys with their values; the values are random, so nothing gains by compressing them."""

    def __init__(self, prefix: str, count: int) -> None:
        source = random.Random(SEED)
        self.values = {f"{prefix}/{number:06}".encode(): source.randbytes(VALUE_BYTES) for number in range(count)}

    def bodies(self, work: Work) -> list[str]:
        """Compact JSON, one a line."""
        return [body_of(work, key, value) for key, value in self.values.items()]


def body_of(work: Work, key: bytes, value: bytes) -> str:
    name, put = text_of(key), f'{{"key":"{text_of(key)}","value":"{text_of(value)}"}}'
    if work is Work.PUT:
        return put
    if work is Work.RANGE:
        return f'{{"key":"{name}"}}'
    if work is Work.SERIALIZABLE_RANGE:
        return f'{{"key":"{name}","serializable":true}}'
    compare = f'{{"key":"{name}","target":"MOD","result":"GREATER","mod_revision":"0"}}'
    return f'{{"compare":[{compare}],"success":[{{"request_put":{put}}}]}}'
