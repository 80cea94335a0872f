"""Small data for tests: MMSA dicts, pickles and sets of shards."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np

from data_shards.format.schema import DatasetInfo
from data_shards.reading.reader import ShardReader
from data_shards.sources.mmsa import MmsaSource
from data_shards.writing.build import build

COUNTS = {"train": 23, "valid": 5, "test": 7}


def mmsa(counts: dict[str, int] = COUNTS, *, tokens: bool = False, seed: int = 0) -> dict[str, dict[str, Any]]:
    """An MMSA-style dict with every field that we read."""
    draw = np.random.RandomState(seed)
    splits = {}
    for split, n in counts.items():
        text = {"text": draw.randn(n, 6, 8).astype(np.float32)}
        if tokens:
            bert = draw.randint(0, 99, (n, 3, 6)).astype(np.float32)
            bert[:, 1] = np.arange(6) < 1 + np.arange(n)[:, None] % 6
            text = {"text_bert": bert}
        splits[split] = {
            "id": [f"video{i}.mp4/é$_${i}" for i in range(n)],
            "raw_text": [f"sentence {i} of {split} — ünïcode" for i in range(n)],
            **text,
            "audio": draw.randn(n, 9, 3).astype(np.float32),
            "vision": draw.randn(n, 7, 2).astype(np.float32),
            "audio_lengths": [1 + i % 9 for i in range(n)],
            "vision_lengths": np.array([1 + i % 7 for i in range(n)]),
            "regression_labels": np.round(draw.uniform(-3, 3, n), 1).astype(np.float32),
            "annotations": ["Neutral"] * n,
        }
    return splits


def save(data: object, path: Path, *, protocol: int = 4) -> Path:
    """Pickle anything."""
    with open(path, "wb") as file:
        pickle.dump(data, file, protocol=protocol)
    return path


def build_from(
    data: object, folder: Path, *, samples_per_shard: int = 4, name: str = "tiny", **options: Any
) -> DatasetInfo:
    """Shards of an MMSA dict in `folder / "shards"`."""
    pickled = save(data, folder / "features.pkl")
    return build(MmsaSource(pickled, name=name, **options), folder / "shards", samples_per_shard=samples_per_shard)


def files(root: Path) -> dict[str, bytes]:
    """Everything in a directory, hidden files too."""
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def read_all(root: str | Path, split: str = "train") -> dict[str, Any]:
    """All samples of a split, with ids and sentences."""
    with ShardReader(root) as reader:
        positions = range(reader.index.num_samples(split))
        ids = reader.index.ids(split, positions)
        return {**reader.read(split, positions), "id": ids, "raw_text": reader.raw_texts(split, positions)}


def reads_right_samples(reader: ShardReader) -> bool:
    """Whether a reader gives the training samples of `mmsa()`."""
    batch, data = reader.read("train", range(COUNTS["train"])), mmsa()["train"]
    return all(np.array_equal(batch[name], data[name]) for name in ("text", "audio", "vision"))


def cached_names(root: Path) -> list[str]:
    """The names of a cache's files."""
    return sorted(path.name for path in (root / "shards").iterdir())
