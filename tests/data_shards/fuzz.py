"""Mutated files thrown at everything that reads files: a clear error or the right data, never anything else.

    python -m tests.data_shards.fuzz --pickles 8000 --indexes 2000 --forged 500 --shards 1500 --tars 500 --seed 0

Prints one JSON object with the counts. An audit hook stops the run when a pickle makes the interpreter import, open,
compile or start anything; a case that takes longer than two seconds stops it too, and so does one that returns a
wrong sample or fails with anything but a `ValueError` of one line.
"""

import argparse
import io
import json
import pickle
import pickletools
import random
import resource
import shutil
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import webdataset as wds

from data_shards.foreign import index_tars
from data_shards.index import ShardIndex
from data_shards.index_writer import seal
from data_shards.reader import ShardReader
from data_shards.unpickle import loads
from tests.data_shards.making import build_from, mmsa

SLOWEST = 2.0
MEMORY = 6 << 30
_ACTS = ("os", "open", "exec", "compile", "import", "subprocess", "socket", "ctypes")
_PLAIN = (int, float, str, bytes, bool, type(None), complex, np.generic, np.ndarray, np.dtype, set, frozenset)


def mutate(raw: bytes, draw: random.Random, others: list[bytes]) -> bytes:
    """A file with one to four things wrong with it."""
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


def _pickles() -> list[bytes]:
    data = mmsa({"train": 2, "test": 1})
    small = {
        "a": np.arange(3, dtype=">i4"),
        "b": [np.float32(1.5), ("x", b"y", {1, 2})],
        "c": np.array(["u", None], object),
    }
    words = [((["so", "good"], np.ones((2, 3), np.float32), np.ones((2, 2))), np.array([[1.0]]), "v[0]")]
    wanted: list[Any] = [data, small, words, {"train": _Runs()}]
    return [pickle.dumps(value, protocol=protocol) for value in wanted for protocol in range(6)]


def _is_data(value: object, depth: int = 0) -> bool:
    """Whether a value is made of admitted things only."""
    if depth > 40 or isinstance(value, _PLAIN):
        return True
    if isinstance(value, dict):
        return all(_is_data(part, depth + 1) for part in value.values())
    return isinstance(value, (list, tuple)) and all(_is_data(part, depth + 1) for part in value[:100])


def _fuzz_pickles(cases: int, draw: random.Random) -> Iterator[str]:
    seeds = _pickles()
    watching = [False]

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if watching[0] and event.split(".")[0] in (
            "os",
            "open",
            "exec",
            "compile",
            "import",
            "subprocess",
            "socket",
            "ctypes",
        ):
            raise SystemExit(f"a pickle caused {event} {arguments!r:.200}")

    def watched(raw: bytes) -> Any:
        watching[0] = True
        try:
            return loads(raw)
        finally:
            watching[0] = False

    loads(seeds[0])  # imports what it needs
    sys.addaudithook(watch)
    for _ in range(cases):
        raw = mutate(draw.choice(seeds), draw, seeds)
        yield _attempt(lambda raw=raw: watched(raw), _is_data, raw)


def _fuzz_indexes(cases: int, draw: random.Random, folder: Path) -> Iterator[str]:
    build_from(mmsa(), folder)
    path = folder / "shards" / "index.parquet"
    raw = path.read_bytes()

    def read() -> list[bytes]:
        index = ShardIndex.load(folder / "shards")
        rows = range(index.num_samples("train"))
        return [
            index.records("train", rows).tobytes(),
            repr(index.ids("train", rows)).encode(),
            repr(index.info).encode(),
        ]

    expected = read()
    for _ in range(cases):
        mutant = mutate(raw, draw, [raw])
        path.write_bytes(mutant)
        yield _attempt(read, lambda found: found == expected, mutant)


def _fuzz_forged(cases: int, draw: random.Random, folder: Path) -> Iterator[str]:
    """Indexes whose checksums are right and whose content is not: made, not damaged."""
    build_from(mmsa({"train": 9, "test": 2}), folder)
    path = folder / "shards" / "index.parquet"
    table = pq.read_table(path)
    facts = json.loads(pq.ParquetFile(path).metadata.metadata[b"dmd.info"])

    def read() -> bool:
        with ShardReader(folder / "shards") as reader:
            for split in reader.index.info.counts:
                rows = range(min(20, reader.index.num_samples(split)))
                reader.read(split, rows)
                reader.raw_texts(split, rows)
        return True

    for _ in range(cases):
        forged, rows = json.loads(json.dumps(facts)), table
        if draw.randrange(2):
            _forge(forged, draw)
        else:
            at, number = draw.randrange(table.num_columns), draw.randrange(len(table))
            values = table.column(at).to_pylist()
            kind = table.schema.field(at).type
            values[number] = "?" if kind == pa.string() else draw.choice(_numbers(kind))
            rows = table.set_column(at, table.schema.field(at), pa.array(values, kind))
        _write_sealed(path, rows, json.dumps(forged))
        yield _attempt(read, bool, path.read_bytes())


def _forge(value: Any, draw: random.Random) -> None:
    """Put something odd somewhere into a JSON object."""
    key = draw.choice(list(value)) if isinstance(value, dict) else draw.randrange(len(value))
    if isinstance(value[key], (dict, list)) and value[key] and draw.randrange(4):
        _forge(value[key], draw)
    else:
        numbers, others = [0, -1, 1, 7, 10**9, 10**17, 2**70, 1.5], [True, None, [], {}, [1], {"a": 1}]
        value[key] = draw.choice([*numbers, *others, "x", "../x", "", "mapped", "float16", "tokens"])


def _numbers(kind: pa.DataType) -> list[float]:
    if pa.types.is_floating(kind):
        return [float("nan"), float("inf"), -7.0, 1e30]
    bits = kind.bit_width - (0 if str(kind).startswith("u") else 1)
    return [0, 1, 511, 2**bits - 1, *([] if str(kind).startswith("u") else [-1, -(2**bits)])]


def _write_sealed(path: Path, table: pa.Table, info: str) -> None:
    with pq.ParquetWriter(path, table.schema.remove_metadata(), write_statistics=False) as writer:
        writer.write_table(table)
        start, end = 4, path.stat().st_size
        crc = zlib.crc32(path.read_bytes()[start:end])
        writer.add_key_value_metadata({"dmd.info": info, "dmd.row_groups": json.dumps([[end, crc]])})
    with open(path, "r+b") as file:
        seal(file.fileno())


def _fuzz_shards(cases: int, draw: random.Random, folder: Path) -> Iterator[str]:
    info = build_from(mmsa(), folder)
    path = folder / "shards" / info.shards[1].name
    raw = path.read_bytes()

    def read(position: int) -> dict[str, bytes]:
        with ShardReader(folder / "shards") as reader:
            arrays, texts = reader.read("train", [position]), reader.raw_texts("train", [position])
            return {**{name: array.tobytes() for name, array in arrays.items()}, "raw": repr(texts).encode()}

    expected = {position: read(position) for position in range(4, 8)}
    for _ in range(cases):
        mutant, position = mutate(raw, draw, [raw]), draw.randrange(4, 8)
        path.write_bytes(mutant)
        yield _attempt(lambda position=position: read(position), lambda found, p=position: found == expected[p], mutant)


def _fuzz_tars(cases: int, draw: random.Random, folder: Path) -> Iterator[str]:
    """Foreign tars have no checksums of their own: what can be asked is a clear error or samples that can be read."""
    folder.mkdir()
    path = folder / "train.tar"
    file = io.BytesIO()
    with wds.TarWriter(file) as tar:
        for i in range(3):
            npz = io.BytesIO()
            (np.savez if i else np.savez_compressed)(npz, a=np.ones((2, 3)), v=np.ones((i + 1, 2), np.float16))
            facts = {"label": i, "id": f"x{i}", "raw_text": "words"}
            tar.write({"__key__": str(i), "t.npy": np.ones((i + 2, 4), ">f8"), "f.npz": npz.getvalue(), "json": facts})
    raw = file.getvalue()
    mapping = {"text": "t.npy", "audio": "f.npz:a", "vision": "f.npz:v", "label": "json:label", "id": "json:id"}

    def read() -> bool:
        info = index_tars(folder, mapping=mapping)
        with ShardReader(folder) as reader:
            batch = reader.read("train", range(info.counts["train"]))
            return bool(np.isfinite(batch["text"]).all())

    assert (path.write_bytes(raw), read())[1]
    for _ in range(cases):
        mutant = mutate(raw, draw, [raw])
        path.write_bytes(mutant)
        yield _attempt(read, bool, mutant)


def _attempt(run: Callable[[], Any], is_right: Callable[[Any], bool], raw: bytes) -> str:
    start = time.process_time()
    try:
        found = run()
    except (ValueError, OSError) as error:
        if "\n" in str(error):
            _stop(f"an error of several lines: {error}", raw)
        outcome = "error"
    except Exception as error:
        _stop(f"{type(error).__name__}: {error}", raw)
    else:
        if not is_right(found):
            _stop("wrong data", raw)
        outcome = "right"
    if time.process_time() - start > SLOWEST:
        _stop("too slow", raw)
    return outcome


def _stop(what: str, raw: bytes) -> None:
    Path(tempfile.gettempdir(), "fuzz-case.bin").write_bytes(raw)
    raise SystemExit(f"{what}\nthe case is in {tempfile.gettempdir()}/fuzz-case.bin") from None


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.data_shards.fuzz", description=__doc__)
    for kind in ("pickles", "indexes", "forged", "shards", "tars"):
        parser.add_argument(f"--{kind}", type=int, default=0, metavar="CASES")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    try:
        counts = {}
        for kind, cases in (
            ("indexes", lambda draw: _fuzz_indexes(options.indexes, draw, folder / "indexes")),
            ("forged", lambda draw: _fuzz_forged(options.forged, draw, folder / "forged")),
            ("shards", lambda draw: _fuzz_shards(options.shards, draw, folder / "shards")),
            ("tars", lambda draw: _fuzz_tars(options.tars, draw, folder / "tars")),
            ("pickles", lambda draw: _fuzz_pickles(options.pickles, draw)),
        ):
            (folder / kind).mkdir() if kind in ("indexes", "forged", "shards") else None
            counts[kind] = dict(Counter(cases(random.Random(f"{options.seed}{kind}"))))
        print(json.dumps(counts))
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
