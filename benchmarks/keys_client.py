"""The client of the benchmark of many keys, the same for both sides: it fills the store, and saves a snapshot of it.

    python -P -m benchmarks.keys_client fill --url URL --keys 1000000 --generation 1
    python -P -m benchmarks.keys_client snapshot --url URL --file FILE

Filling puts every key once, TRANSACTION_PUTS of them in a transaction and CONNECTIONS transactions at a time. A value
follows from its key's number and the generation, so anybody can say later what must be there. Saving reads the stream
of `/v3/maintenance/snapshot`, decodes it and writes the file.

Each prints the line that `load_figures` reads at its end. Of filling, a "request" is a key and a latency that of a
transaction; of saving, a request is a message of the stream, and `bytes` are those of the file.
"""

import argparse
import asyncio
import base64
import binascii
import gc
import hashlib
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import uvloop

from benchmarks.load_figures import figures_line
from benchmarks.raw_http import (
    HEAD_BYTES_MAX,
    STATUS_OK,
    ChunkedBody,
    Connection,
    HttpFailed,
    address_of,
    parse_head,
    request_of,
)

PREFIX = b"bench/keys/"
PREFIX_END = b"bench/keys0"
VALUE_BYTES = 256
TRANSACTION_PUTS = 100
"""Below etcd's limit of 128 operations."""
CONNECTIONS = 8
READ_BYTES = 256 * 1024
LINE_BYTES_MAX = 16 * 1024 * 1024


def key_of(number: int) -> bytes:
    return PREFIX + b"%08d" % number


def value_of(number: int, generation: int) -> bytes:
    """Looks random, and is the same for everybody."""
    return hashlib.shake_128(b"%d/%d" % (generation, number)).digest(VALUE_BYTES)


def transactions(keys: int, generation: int) -> Iterator[tuple[int, bytes]]:
    """How many keys each puts, and its JSON."""
    for first in range(0, keys, TRANSACTION_PUTS):
        numbers = range(first, min(first + TRANSACTION_PUTS, keys))
        puts = ",".join(_put(number, generation) for number in numbers)
        yield len(numbers), f'{{"success":[{puts}]}}'.encode()


def _put(number: int, generation: int) -> str:
    key = binascii.b2a_base64(key_of(number), newline=False).decode()
    value = binascii.b2a_base64(value_of(number, generation), newline=False).decode()
    return f'{{"request_put":{{"key":"{key}","value":"{value}"}}}}'


async def fill(url: str, keys: int, generation: int) -> str:
    """The line of figures. Raises HttpFailed for the first transaction that is refused."""
    pending, latencies_s, put = transactions(keys, generation), [], 0

    async def send_each(connection: Connection) -> None:
        nonlocal put
        for count, body in pending:
            began_s = time.perf_counter()
            status, answer = await connection.send(request_of(url, body))
            if status != STATUS_OK or not json.loads(answer).get("succeeded"):
                raise HttpFailed(f"a transaction was answered with {status}: {answer[:300]!r}")
            latencies_s.append(time.perf_counter() - began_s)
            put += count

    connections = [await Connection.connect(url) for _ in range(CONNECTIONS)]
    began_s = time.perf_counter()
    try:
        await asyncio.gather(*(send_each(connection) for connection in connections))
    finally:
        for connection in connections:
            connection.close()
    took_s = time.perf_counter() - began_s
    latencies_s.sort()
    chosen = tuple(latencies_s[int((len(latencies_s) - 1) * share)] for share in (0.5, 0.99, 1.0))
    return figures_line(put, took_s, (chosen[0], chosen[1], chosen[2]), {})


async def save_snapshot(url: str, file: Path) -> str:
    """The line of figures. Raises HttpFailed when the stream breaks off before its end."""
    began_s = time.perf_counter()
    reader, writer = await asyncio.open_connection(*address_of(url))
    try:
        writer.write(request_of(url, b"{}"))
        messages, size = await _copy(reader, file)
    finally:
        writer.close()
    took_s = time.perf_counter() - began_s
    return figures_line(messages, took_s, (took_s, took_s, took_s), {}, bytes=size)


async def _copy(reader: asyncio.StreamReader, file: Path) -> tuple[int, int]:
    """Returns how many messages there were, and the bytes of the file."""
    try:
        head = parse_head((await reader.readuntil(b"\r\n\r\n"))[:-4])
    except (asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
        raise HttpFailed(f"no head of an answer within {HEAD_BYTES_MAX} bytes") from error
    if head.status != STATUS_OK or head.length is not None:
        said = await reader.read(HEAD_BYTES_MAX)
        raise HttpFailed(f"a snapshot was answered with {head.status}: {said[:300]!r}")
    chunks, line, messages, left = ChunkedBody(), b"", 0, -1
    with file.open("wb") as output:
        while not chunks.has_ended:
            data = await reader.read(READ_BYTES)
            if not data:
                raise HttpFailed(f"the stream of a snapshot broke off after {messages} messages")
            *lines, line = (line + b"".join(chunks.feed(data))).split(b"\n")
            if len(line) > LINE_BYTES_MAX:
                raise HttpFailed(f"a message of over {LINE_BYTES_MAX} bytes")
            for each in lines:
                left = _write_message(json.loads(each), output)
                messages += 1
        size = output.tell()
    if left != 0:
        raise HttpFailed(f"a snapshot ended with {left} bytes still to come")
    return messages, size


def _write_message(message: dict[str, Any], output: Any) -> int:
    """Returns how many bytes are still to come by what the message says."""
    if "result" not in message:
        raise HttpFailed(f"a snapshot was ended with {str(message)[:300]}")
    result = message["result"]
    output.write(base64.b64decode(result.get("blob", "")))
    return int(result.get("remaining_bytes", 0))


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.keys_client")
    commands = parser.add_subparsers(dest="command", required=True)
    filling = commands.add_parser("fill")
    filling.add_argument("--url", required=True)
    filling.add_argument("--keys", type=int, required=True)
    filling.add_argument("--generation", type=int, required=True)
    saving = commands.add_parser("snapshot")
    saving.add_argument("--url", required=True)
    saving.add_argument("--file", type=Path, required=True)
    given = parser.parse_args(arguments)
    gc.disable()
    work = (
        fill(given.url, given.keys, given.generation)
        if given.command == "fill"
        else save_snapshot(given.url, given.file)
    )
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            said = runner.run(work)
    except (HttpFailed, OSError, ValueError) as error:
        sys.stdout.write(f"{type(error).__name__}: {error}\n")
        return 1
    sys.stdout.write(said + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
