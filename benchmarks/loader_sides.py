"""The ways to read that `benchmarks/loader.py` compares, and data of the shapes that they read."""

import os
import pickle
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset as wds
from torch.utils.data import DataLoader, Dataset

import data_shards
from data_shards.format.schema import Sample
from data_shards.reading.index import ShardIndex
from data_shards.reading.reader import ShardReader
from data_shards.writing.build import build
from data_shards.writing.process_pool import ForkedProcesses
from dmd.config import DataConfig
from dmd.data.loader import training_steps
from dmd.data.plan import EpochPlan

BATCH = 16
STREAM_WINDOW = 2
WRITTEN_PER_SHARD = 128
SHAPES = {
    "MOSI aligned": ((50, 768), (50, 5), (50, 20)),
    "MOSEI aligned": ((50, 768), (50, 74), (50, 35)),
    "MOSEI unaligned": ((50, 768), (500, 74), (500, 35)),
}
"""Steps and features of text, audio and vision."""


class Noise:
    """Random samples of one shape: a source for shards, and the dict that an MMSA pickle holds."""

    def __init__(self, shape: str, samples: int, *, held: bool = False) -> None:
        """With `held`, all samples are made now and kept, so that reading them costs nothing."""
        self.name = shape
        self._samples = samples
        self._shapes = SHAPES[shape]
        self._held: list[Sample] = []
        self._held = list(self.read("train", 0, samples)) if held else []
        self.megabytes = samples * sum(steps * features * 4 for steps, features in self._shapes) / 2**20

    def counts(self) -> dict[str, int]:
        """All of them are for training."""
        return {"train": self._samples}

    def read(self, split: str, start: int, stop: int) -> Iterator[Sample]:
        """Samples `start` to `stop`."""
        if self._held:
            yield from self._held[start:stop]
            return
        for i in range(start, stop):
            text, audio, vision = (
                np.random.default_rng((i, m)).standard_normal(shape, dtype=np.float32)
                for m, shape in enumerate(self._shapes)
            )
            yield Sample(
                id=f"video{i // 20}$_${i}",
                split=split,
                label=float(i % 31 / 5 - 3),
                raw_text="some words",
                text=text,
                audio=audio,
                vision=vision,
                lengths=(len(text), len(audio), len(vision)),
            )

    def mmsa(self) -> dict[str, Any]:
        """The training split as MMSA keeps it in memory."""
        samples = list(self.read("train", 0, self._samples))
        return {
            "raw_text": [sample.raw_text for sample in samples],
            "id": [sample.id for sample in samples],
            **{m: np.stack([getattr(sample, m) for sample in samples]) for m in ("text", "audio", "vision")},
            "regression_labels": np.array([sample.label for sample in samples], dtype=np.float32),
            "audio_lengths": [sample.lengths[1] for sample in samples],
            "vision_lengths": [sample.lengths[2] for sample in samples],
        }


class MMDataset(Dataset[dict[str, Any]]):
    """The data set of the published code (MMSA's `MMDataset`), over the unpickled dict."""

    def __init__(self, data: dict[str, Any]) -> None:
        self.data = data
        self.labels = {"M": np.array(data["regression_labels"]).astype(np.float32)}

    def __len__(self) -> int:
        return len(self.labels["M"])

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {
            "raw_text": self.data["raw_text"][index],
            "text": torch.Tensor(self.data["text"][index]),
            "audio": torch.Tensor(self.data["audio"][index]),
            "vision": torch.Tensor(self.data["vision"][index]),
            "index": index,
            "id": self.data["id"][index],
            "labels": {name: torch.Tensor(values[index].reshape(-1)) for name, values in self.labels.items()},
            "audio_lengths": self.data["audio_lengths"][index],
            "vision_lengths": self.data["vision_lengths"][index],
        }


def ours(root: Path, workers: int, config: DataConfig | None = None) -> Callable[[], int]:
    """An epoch through `dmd.data`: how many samples it gave."""
    reader = ShardReader(root)
    config = replace(config or DataConfig(), workers=workers)
    plan = EpochPlan(
        num_samples=reader.index.num_samples("train"),
        ghost_batch_size=BATCH,
        ghost_batches_per_step=1,
        ghost_batches_per_forward=1,
        num_ranks=1,
    )
    epoch = -1

    def run() -> int:
        nonlocal epoch
        epoch += 1
        steps = training_steps(reader, plan, config, seed=0, rank=0, epoch=epoch)
        return sum(int(batch.mask.sum()) for batches in steps for batch in batches)

    return run


def stream(root: Path, workers: int) -> Callable[[], int]:
    """An epoch through `dmd.data` that streams; two of the eight shards are a window."""
    return ours(root, workers, DataConfig(reader="stream", window=STREAM_WINDOW))


def pipeline(root: Path, workers: int) -> Callable[[], int]:
    """An epoch through `data_shards.pipeline`, with the same window."""

    def run() -> int:
        samples = data_shards.pipeline(root, "train", window=STREAM_WINDOW, batch_size=BATCH).batched(BATCH)
        batches = wds.WebLoader(samples, batch_size=None, num_workers=workers) if workers else samples
        return sum(len(batch["label"]) for batch in batches)

    return run


def webdataset(root: Path, workers: int) -> Callable[[], int]:
    """An epoch through the usual WebDataset pipeline over the same tars."""
    urls = [str(root / shard.name) for shard in ShardIndex.load(root).info.shards]
    members = ("text.npy", "audio.npy", "vision.npy", "json")

    def run() -> int:
        pipeline = wds.WebDataset(urls, shardshuffle=False).decode().to_tuple(*members).batched(BATCH)
        batches = wds.WebLoader(pipeline, batch_size=None, num_workers=workers) if workers else pipeline
        return sum(len(batch[0]) for batch in batches)

    return run


def in_memory(data: dict[str, Any], workers: int) -> Callable[[], int]:
    """An epoch through the published code's DataLoader."""
    loader = DataLoader(MMDataset(data), batch_size=BATCH, num_workers=workers, shuffle=True)
    return lambda: sum(len(batch["text"]) for batch in loader)


def prepare(folder: Path, shape: str, samples: int) -> Path:
    """Shards of a shape, at least eight of them."""
    root = folder / f"{shape.replace(' ', '-')}-{samples}"
    if not (root / "index.parquet").exists():
        build(
            Noise(shape, samples), root, samples_per_shard=max(1, min(512, samples // 8)), executor=ForkedProcesses(2)
        )
    return root


def drop_from_cache(root: Path) -> None:
    """Let the kernel forget the shards, as after a restart of the machine."""
    for path in root.glob("*.tar"):
        handle = os.open(path, os.O_RDONLY)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


def write_ours(source: Noise, processes: int) -> None:
    """A set of shards, as `dmd shard` makes it: validated, hashed, indexed, flushed."""
    with tempfile.TemporaryDirectory() as name:
        build(source, Path(name) / "set", samples_per_shard=WRITTEN_PER_SHARD, executor=ForkedProcesses(processes))


def write_webdataset(source: Noise, flush: bool) -> None:
    """The same samples through `wds.ShardWriter`; with `flush`, on the disk as ours are."""
    with tempfile.TemporaryDirectory() as name:
        with wds.ShardWriter(f"{name}/%06d.tar", maxcount=WRITTEN_PER_SHARD, verbose=0) as writer:
            for number, sample in enumerate(source.read("train", 0, source.counts()["train"])):
                facts = {"id": sample.id, "label": sample.label, "raw_text": sample.raw_text}
                arrays = {"text.npy": sample.text, "audio.npy": sample.audio, "vision.npy": sample.vision}
                writer.write({"__key__": f"{number:09d}", **arrays, "json": facts})
        if flush:
            for path in Path(name).iterdir():
                handle = os.open(path, os.O_RDONLY)
                os.fsync(handle)
                os.close(handle)


def peak_memory(side: str, folder: Path, shape: str, samples: int) -> float:
    """MiB that this process took at most for two epochs of one side, beyond what it takes to import everything."""
    root = prepare(folder, shape, samples)
    pickled = root.with_suffix(".pkl")
    if side == "in memory" and not pickled.exists():
        with open(pickled, "wb") as file:
            pickle.dump(Noise(shape, samples).mmsa(), file, protocol=4)
        return float("nan")  # making the pickle took memory; the caller asks again
    before = _resident("VmRSS")
    if side == "in memory":
        with open(pickled, "rb") as file:
            run = in_memory(pickle.load(file), 0)
    else:
        run = {"ours": ours, "stream": stream, "WebDataset": webdataset}[side](root, 0)
    run()
    run()
    return _resident("VmHWM") - before


def _resident(name: str) -> float:
    """MiB; VmHWM is this program's own peak, unlike ru_maxrss, which a parent's size can hide."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(f"{name}:")) / 1024
