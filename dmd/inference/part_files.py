"""Predictions as a directory, or a prefix of a bucket: `dmd predict RUN SHARDS --out DIR/`, by one process or many.

    DIR/_request.json         what is predicted by what; written first, the same command continues it. Of an ensemble
                              also its calibration, which is fitted once: a later command takes it from there
    DIR/part-000000.parquet   consecutive samples of one split, whole or not there
    DIR/_manifest.json        written last, when all parts have been read back

Which samples a part has follows from the request alone, and a part begins where a batch does. So whoever computes it
writes the same rows, and writing it again does no harm. `pyarrow` and `pandas` read DIR as one table, whose rows have
the order of the index: to them names that begin with `_` or `.` are none of the data.
"""

import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
from pyarrow.parquet import ParquetFile, ParquetWriter
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from data_shards.format.schema import DatasetInfo
from data_shards.reading.index import ShardIndex
from data_shards.storage.folder import Folder
from dmd.checkpoint.writer import tensor_bytes
from dmd.documents import encode, parse_object
from dmd.inference.calibrated_files import Source
from dmd.inference.ensemble import Calibration
from dmd.inference.model_files import ModelFiles, is_usable
from dmd.system.modules import BATCH_SIZE
from dmd.system.trained_model import ModelCard
from dmd.testing.fault_points import fault_point

REQUEST, MANIFEST = "_request.json", "_manifest.json"
FORMAT = 4
"""Version of this layout, part of the request."""
_MOST_PARTS = 10**6
"""As many as have names of one length, so that sorted names are in the order of the parts."""
_DIGEST_DIGITS = 16
"""Hexadecimal, of the digest of a model: against mistakes."""
_TITLES = {
    "step": "--step",
    "model": "run",
    "calibration": "--calibration",
    "data": "shards",
    "generation": "shards",
    "splits": "--split",
    "samples_per_part": "--samples-per-part",
    "format": "version of this program",
}
"""What a user calls what a key of a request follows from."""
_OF_ENSEMBLE = "runs, and the checkpoint of each,"
"""The same, of the key `model` of an ensemble."""
_FITTED = "fitted"
"""Key of the request's file beside the request: the calibration that was fitted."""
_STAMP = b"dmd.request"
"""Key of a part's Parquet metadata: the digest of the request that it belongs to."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """Consecutive samples of one split."""

    number: int
    split: str
    begin: int
    """Row of the first sample in its split."""
    stop: int

    @property
    def name(self) -> str:
        """Of the file."""
        return f"part-{self.number:06d}.parquet"


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is predicted by what; equal for equal rows. Without paths: runs and shards may move."""

    step: list[int] | int | None
    """Of the checkpoint; None for an export that does not say; a list: of an ensemble's members."""
    model: str
    """Digest of weights and config, of an ensemble of those of all members."""
    calibration: Source | None
    """What that of an ensemble comes from, not what was fitted, whose last digits depend on the device."""
    data: str
    """Name of the set of shards."""
    generation: str
    splits: dict[str, int]
    """Samples of each split, in the order of the parts."""
    samples_per_part: int
    format: int = FORMAT

    def content(self) -> dict[str, Any]:
        """As JSON has it."""
        return dict(self.__dict__)

    def digest(self) -> str:
        """Of all of it."""
        return hashlib.sha256(encode(self.content())).hexdigest()

    def parts(self) -> list[Part]:
        """The parts that all splits are cut into."""
        found: list[Part] = []
        for split, count in self.splits.items():
            for begin in range(0, count, self.samples_per_part):
                stop = min(begin + self.samples_per_part, count)
                found.append(Part(number=len(found), split=split, begin=begin, stop=stop))
        return found


def make_request(
    files: ModelFiles, info: DatasetInfo, splits: list[str], samples_per_part: int, *, calibration: Source | None
) -> Request:
    """The request for splits of shards.

    Args:
        calibration: `dmd.inference.calibrated_files.source_of`.

    Raises:
        ValueError: parts of no whole batches, or too many.
    """
    if samples_per_part < 1 or samples_per_part % BATCH_SIZE:
        raise ValueError(
            f"--samples-per-part is {samples_per_part}; give a multiple of {BATCH_SIZE}, the samples of a batch"
        )
    counts = {split: info.counts[split] for split in splits}
    if sum(-(-count // samples_per_part) for count in counts.values()) > _MOST_PARTS:
        raise ValueError(f"--samples-per-part is {samples_per_part}: more than {_MOST_PARTS} parts; give a larger one")
    return Request(
        step=files.step,
        model=digest_of(files),
        calibration=calibration,
        data=info.name,
        generation=info.generation,
        splits=counts,
        samples_per_part=samples_per_part,
    )


def digest_of(files: ModelFiles) -> str:
    """Of what a prediction depends on, whatever the order of an ensemble's members."""
    digests = sorted(model_digest(card, weights) for card, weights in files.members)
    if not files.is_ensemble:
        return digests[0]
    return hashlib.sha256(json.dumps(digests).encode()).hexdigest()[:_DIGEST_DIGITS]


def model_digest(card: ModelCard, weights: Mapping[str, Tensor]) -> str:
    """Of weights, config, data shapes and text encoder: what a prediction depends on."""
    base = None if card.text_base is None else card.text_base["sha256"]
    about = {"config": card.config, "data": card.data, "text_encoder": card.text_encoder, "text_base": base}
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for piece in tensor_bytes(dict(weights)):
        digest.update(piece)
    return digest.hexdigest()[:_DIGEST_DIGITS]


def write_part(folder: Folder, part: Part, table: pa.Table, stamp: str) -> None:
    """Write a part, whole or not at all; `stamp` is the digest of its request. Raises OSError."""
    content = io.BytesIO()
    with ParquetWriter(content, table.schema) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({_STAMP.decode(): stamp})
    fault_point("part")
    folder.write(part.name, content.getvalue())


class PartFiles:
    """The parts of a request in a folder, seen by the one process that begins and finishes them."""

    def __init__(self, folder: Folder, request: Request, index: ShardIndex, columns: pa.Schema) -> None:
        """Nothing is read or written yet; `columns` are those of every part."""
        self.request = request
        self._folder = folder
        self._index = index
        self._columns = columns
        self._stamp = request.digest()
        self._good: dict[int, dict[str, Any]] = {}
        """What the manifest says of those that have been read and found right, by number."""

    def missing(self) -> list[Part]:
        """The parts that are not there. A part that is there is read; a damaged one is to be made again.

        Raises:
            ValueError: the folder holds something else; names the first difference.
        """
        names = set(self._folder.names())
        if REQUEST in names:
            self._compare()
        elif names:
            raise ValueError(
                f"{self._folder.place} holds other files than predictions ({min(names)}); give a new directory"
            )
        return [part for part in self.request.parts() if part.name not in names or self._fault(part) is not None]

    def is_begun(self) -> bool:
        """Whether the folder holds a request, which `missing` has compared with this one."""
        return REQUEST in self._folder.names()

    def calibration(self) -> Calibration | None:
        """The calibration with which the folder was begun; None: without.

        Raises:
            ValueError: a damaged one.
        """
        before = parse_object(self._folder.read(REQUEST)) or {}
        try:
            found: Calibration | None = TypeAdapter(Calibration | None).validate_python(before.get(_FITTED))
        except ValidationError as error:
            raise self._damaged() from error
        if not is_usable(found):
            raise self._damaged()
        return found

    def begin(self, calibration: Calibration | None) -> None:
        """Take the folder, which is there, before the first part is written by a model with this calibration."""
        self._folder.clear_staged()
        names = self._folder.names()
        if REQUEST not in names:
            fitted = {} if calibration is None else {_FITTED: asdict(calibration)}
            self._folder.write(REQUEST, encode({**self.request.content(), **fitted}, indent=1))
        if MANIFEST in names:
            self._folder.remove(MANIFEST)

    def _compare(self) -> None:
        """Compare the request that the folder holds with this one."""
        before = parse_object(self._folder.read(REQUEST))
        if before is None:
            raise self._damaged()
        content = self.request.content()
        of_ensemble = isinstance(before.get("step"), list) or isinstance(content["step"], list)
        # steps of other members are only a part of the difference
        keys = list(dict.fromkeys(["format", *(["model"] if of_ensemble else []), *content]))
        for key in keys:
            was, now = json.dumps(before.get(key)), json.dumps(content[key])  # as text: splits have an order
            if was != now:
                title = _OF_ENSEMBLE if key == "model" and of_ensemble else _TITLES[key]
                raise ValueError(
                    f"{self._folder.place} holds predictions with another {key}: {was}, not {now}; give another --out, "
                    f"or the {title} that it was begun with"
                )

    def _damaged(self) -> ValueError:
        return ValueError(f"{self._folder.place}/{REQUEST} is damaged; give a new directory")

    def finish(self, source: Mapping[str, Any]) -> int:
        """Read the parts that were missing, then write the manifest; returns the number of rows.

        Args:
            source: what the manifest says of the run beside the request.

        Raises:
            ValueError: a part that is not there, or not what was asked for.
        """
        parts = self.request.parts()
        faults = {part.name: fault for part in parts if part.number not in self._good and (fault := self._fault(part))}
        if faults:
            name, fault = next(iter(faults.items()))
            raise ValueError(
                f"{self._folder.place}/{name} {fault} ({len(faults)} of {len(parts)} parts); is this storage shared by "
                "all nodes? The same command makes them again"
            )
        entries = [self._good[part.number] for part in parts]
        rows = sum(entry["rows"] for entry in entries)
        assert rows == sum(self.request.splits.values()), "every sample exactly once"
        manifest = {**source, **self.request.content(), "rows": rows, "parts": entries}
        self._folder.write(MANIFEST, encode(manifest, indent=1))
        return rows

    def _fault(self, part: Part) -> str | None:
        """What is wrong with a part, None where it is right, which is noted."""
        try:
            content = self._folder.read(part.name)
        except ValueError as error:
            return f"cannot be read: {error}"
        try:
            file = ParquetFile(pa.BufferReader(content))
            ids = file.read(["split", "id"])
            metadata, columns = file.metadata.metadata or {}, file.schema_arrow.remove_metadata()
        except (pa.ArrowException, OSError) as error:
            return f"is damaged: {str(error).splitlines()[0]}"
        if metadata.get(_STAMP) != self._stamp.encode() or not columns.equals(self._columns):
            return "belongs to another request"
        rows = range(part.begin, part.stop)
        if ids["id"].to_pylist() != self._index.ids(part.split, rows) or set(ids["split"].to_pylist()) != {part.split}:
            return f"does not hold samples {part.begin} to {part.stop - 1} of {part.split}"
        self._good[part.number] = {
            "name": part.name,
            "split": part.split,
            "begin": part.begin,
            "rows": ids.num_rows,
            "bytes": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
        }
        return None
