"""Mutated files for every function that reads files: the result is a clear error or the right data, nothing else.

    python -m tests.data_shards.fuzz --pickles 8000 --indexes 2000 --forged 500 --shards 1500 --tars 500 --seed 0

Prints one JSON object with the counts. An audit hook stops the run when a pickle makes the interpreter import, open,
compile or start anything; a case that takes longer than two seconds stops it too, and so does one that returns a
wrong sample or fails with anything but a `ValueError` of one line.
"""

import argparse
import io
import json
import random
import resource
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import webdataset as wds

from data_shards.external.index_tars import index_tars
from data_shards.reading.index import ShardIndex
from data_shards.reading.reader import ShardReader
from data_shards.safe_pickle.load import loads
from tests.data_shards.fuzz_cases import forge, mutate, odd_numbers, pickles, write_sealed
from tests.support.small_data import build_from, mmsa

SLOWEST = 2.0
MEMORY = 6 << 30
_ACTS = ("os", "open", "exec", "compile", "import", "subprocess", "socket", "ctypes")
_PLAIN = (int, float, str, bytes, bool, type(None), complex, np.generic, np.ndarray, np.dtype, set, frozenset)


def _is_data(value: object, depth: int = 0) -> bool:
    """Whether a value consists of allowed types only."""
    if depth > 40 or isinstance(value, _PLAIN):
        return True
    if isinstance(value, dict):
        return all(_is_data(part, depth + 1) for part in value.values())
    return isinstance(value, (list, tuple)) and all(_is_data(part, depth + 1) for part in value[:100])


def _fuzz_pickles(cases: int, draw: random.Random) -> Iterator[str]:
    seeds = pickles()
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
            forge(forged, draw)
        else:
            at, number = draw.randrange(table.num_columns), draw.randrange(len(table))
            values = table.column(at).to_pylist()
            kind = table.schema.field(at).type
            values[number] = "?" if kind == pa.string() else draw.choice(odd_numbers(kind))
            rows = table.set_column(at, table.schema.field(at), pa.array(values, kind))
        write_sealed(path, rows, json.dumps(forged))
        yield _attempt(read, bool, path.read_bytes())


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
    """Externally created tars have no checksums: the result must be a clear error, or samples that can be read."""
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
