"""Computational sequences (.csd) for tests, in the layout that the CMU Multimodal SDK writes."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

Entries = Mapping[str, tuple[Any, Any]]
"""Video, or `VIDEO[NUMBER]` -> intervals [N, 2] and features [N, D]."""
OPTIONS = ("--csd", "text=T,audio=A,vision=V,labels=L,words=W")
"""What `dmd shard` is told of `data_set`."""


def write_csd(path: Path, entries: Entries, *, compression: str | None = None) -> Path:
    """Write a sequence; `compression` as the SDK's `deploy` has it, which is gzip."""
    with h5py.File(path, "w") as file:
        root = file.create_group(path.stem)
        metadata = root.create_group("metadata")
        metadata.create_dataset("root name", data=[json.dumps(path.stem)], dtype=h5py.string_dtype())
        data = root.create_group("data")
        for name, (intervals, features) in entries.items():
            entry = data.create_group(name)
            entry.create_dataset("intervals", data=np.asarray(intervals), compression=compression)
            entry.create_dataset("features", data=np.asarray(features), compression=compression)
    return path


def frames(count: int, seconds: float, *, start: float = 0.0) -> Any:
    """Intervals [count, 2] of equal length, one after the other."""
    starts = start + seconds * np.arange(count)
    return np.stack([starts, starts + seconds], axis=1)


def data_set(folder: Path, videos: Sequence[str] = ("v0", "v1", "v2", "v3"), *, seed: int = 0) -> dict[str, Entries]:
    """Videos of 20 s with words, three features and segments of three each, and a file of splits; returns the entries.

    Files are T.csd (text), W.csd (words), A.csd (audio), V.csd (vision), L.csd (labels) and splits.json.
    """
    draw = np.random.RandomState(seed)
    segments = [[0.9, 4.1], [5.0, 9.0], [11.0, 19.5]]
    words = np.array([[b"sp" if i % 5 == 0 else f"word{i}".encode()] for i in range(40)])
    entries: dict[str, Entries] = {
        "T": {v: (frames(40, 0.5), draw.randn(40, 4)) for v in videos},
        "W": {v: (frames(40, 0.5), words) for v in videos},
        "A": {v: (frames(400, 0.05), draw.randn(400, 3)) for v in videos},
        "V": {v: (frames(200, 0.1), draw.randn(200, 2).astype(np.float32)) for v in videos},
        "L": {v: (segments, draw.uniform(-3, 3, (3, 1))) for v in videos},
    }
    for name, content in entries.items():
        write_csd(folder / f"{name}.csd", content)
    chosen = {"train": videos[:-2], "dev": videos[-2:-1], "test": videos[-1:]}
    (folder / "splits.json").write_text(json.dumps({split: list(names) for split, names in chosen.items()}))
    return entries
