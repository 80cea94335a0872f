"""Damaged and malicious files for `tests.data_shards.fuzz`."""

import json
import pickle
import pickletools
import random
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_shards.format.index_writer import seal
from tests.support.small_data import mmsa


def mutate(raw: bytes, draw: random.Random, others: list[bytes]) -> bytes:
    """A file with one to four errors in it."""
    data = bytearray(raw)
    for _ in range(draw.randint(1, 4)):
        at = draw.randrange(len(data)) if data else 0
        length = min(draw.choice((1, 1, 2, 4, 16, 200)), len(data) - at)
        match draw.randrange(8):
            case 0:
                data[at : at + 1] = bytes([(data[at] if data else 0) ^ 1 << draw.randrange(8)])
            case 1:
                data[at : at + length] = draw.randbytes(length)
            case 2:
                del data[at : at + length]
            case 3:
                data[at:at] = draw.randbytes(length)
            case 4:
                data[at:at] = data[at : at + length]
            case 5:
                data[at : at + 1] = draw.choice(pickletools.opcodes).code.encode("latin1")
            case 6:
                del data[at:]
            case _:
                other = draw.choice(others)
                start = draw.randrange(len(other))
                data[at : at + length] = other[start : start + draw.choice((4, 40, 400))]
    return bytes(data)


class _Runs:
    """What a malicious pickle asks for."""

    def __reduce__(self) -> tuple[Any, ...]:
        return eval, ("__import__('os').system('true')",)


def pickles() -> list[bytes]:
    """Good and malicious pickles in every protocol."""
    data = mmsa({"train": 2, "test": 1})
    small = {
        "a": np.arange(3, dtype=">i4"),
        "b": [np.float32(1.5), ("x", b"y", {1, 2})],
        "c": np.array(["u", None], object),
    }
    words = [((["so", "good"], np.ones((2, 3), np.float32), np.ones((2, 2))), np.array([[1.0]]), "v[0]")]
    wanted: list[Any] = [data, small, words, {"train": _Runs()}]
    return [pickle.dumps(value, protocol=protocol) for value in wanted for protocol in range(6)]


def forge(value: Any, draw: random.Random) -> None:
    """Put an unexpected value somewhere into a JSON object."""
    key = draw.choice(list(value)) if isinstance(value, dict) else draw.randrange(len(value))
    if isinstance(value[key], (dict, list)) and value[key] and draw.randrange(4):
        forge(value[key], draw)
    else:
        numbers, others = [0, -1, 1, 7, 10**9, 10**17, 2**70, 1.5], [True, None, [], {}, [1], {"a": 1}]
        value[key] = draw.choice([*numbers, *others, "x", "../x", "", "mapped", "float16", "tokens"])


def odd_numbers(kind: pa.DataType) -> list[float]:
    """Values at the ends of a column's type."""
    if pa.types.is_floating(kind):
        return [float("nan"), float("inf"), -7.0, 1e30]
    bits = kind.bit_width - (0 if str(kind).startswith("u") else 1)
    return [0, 1, 511, 2**bits - 1, *([] if str(kind).startswith("u") else [-1, -(2**bits)])]


def write_sealed(path: Path, table: pa.Table, info: str) -> None:
    """An index with the given rows and facts, and checksums that fit them."""
    with pq.ParquetWriter(path, table.schema.remove_metadata(), write_statistics=False) as writer:
        writer.write_table(table)
        start, end = 4, path.stat().st_size
        crc = zlib.crc32(path.read_bytes()[start:end])
        writer.add_key_value_metadata({"dmd.info": info, "dmd.row_groups": json.dumps([[end, crc]])})
    with open(path, "r+b") as file:
        seal(file.fileno())
