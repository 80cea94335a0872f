"""What is in a set of shards: counts, shapes, label and length distributions, padding; as data, as text, as a picture.

Everything comes from the index, a block of rows at a time, so a summary of a remote set fetches no shard. Stored
values are always finite: non-finite ones are rejected, or zeroed and counted, when the shards are written.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from data_shards.format.schema import MODALITIES
from data_shards.label_options import format_counts
from data_shards.labels import DEFAULT_PROTOCOLS, LABEL_LIMIT, LabelFacts, to_source_units
from data_shards.places import PlaceLike
from data_shards.reading.index import ShardIndex
from data_shards.units import size_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_ROWS_AT_ONCE = 16384
LABEL_EDGES = np.arange(-3.25, 3.5, 0.5)
"""Bins of the label histogram, of labels as they are stored."""
LABEL_CENTRES = LABEL_EDGES[:-1] + 0.25
"""-3, -2.5, ..., 3"""
_BAR_WIDTH = 40
_KINDS = {"regression": "sentiment", "classes": "classes", "multilabel": "emotions"}
"""What labels a task has."""


def summarize(path: PlaceLike) -> dict[str, Any]:
    """The facts of a set at a directory or URL, as plain data; `ValueError` where its index cannot be read."""
    index = ShardIndex.load(path)
    info = index.info
    sizes = [shard.bytes for shard in info.shards]
    return {
        "path": index.root,
        "name": info.name,
        "generation": info.generation,
        "builder": info.builder,
        "layout": info.layout,
        "text": info.text_kind,
        "storage": info.dtype,
        "dims": info.dims,
        "steps": info.lengths,
        "vocab_size": info.vocab_size,
        "samples": sum(info.counts.values()),
        "samples_per_shard": info.samples_per_shard,
        "shards": {"count": len(sizes), "bytes": sum(sizes), "smallest": min(sizes), "largest": max(sizes)},
        "non_finite": {"stored": 0, "zeroed": info.zeroed},
        "rounding": info.rounding,
        "task": info.task,
        "protocol": info.protocol or DEFAULT_PROTOCOLS[info.task],
        "class_names": list(info.class_names),
        "emotions": list(info.emotions),
        "label_scale": info.label_scale,
        "tokenizer": info.tokenizer,
        "label_offset": info.label_offset,
        "ignored": info.ignored,
        "splits": {split: _split(index, split) for split in info.counts},
    }


def _split(index: ShardIndex, split: str) -> dict[str, Any]:
    """Counts and distributions of one split."""
    count, steps = index.num_samples(split), index.info.lengths
    histogram = np.zeros(len(LABEL_EDGES) - 1, dtype=np.int64)
    lengths = {m: np.zeros(steps[m] + 1, dtype=np.int64) for m in MODALITIES}
    scale, offset = index.info.label_scale, index.info.label_offset
    total = squares = 0.0
    facts = LabelFacts()
    for start in range(0, count, _ROWS_AT_ONCE):
        records = index.records(split, np.arange(start, min(start + _ROWS_AT_ONCE, count)))
        facts |= LabelFacts.of_rows(records)
        stored = records["label"].astype(np.float64)
        histogram += np.histogram(stored, LABEL_EDGES)[0]
        labels = to_source_units(stored, scale, offset)
        total += labels.sum()
        squares += (labels**2).sum()
        for i, modality in enumerate(MODALITIES):
            lengths[modality] += np.bincount(records["length"][:, i], minlength=steps[modality] + 1)
    mean = total / count
    shards = [shard for shard in index.info.shards if shard.split == split]
    return {
        "samples": count,
        "shards": len(shards),
        "bytes": sum(shard.bytes for shard in shards),
        "classes": list(facts.classes),
        "emotions": list(facts.emotions),
        "label": None
        if facts.min is None or facts.max is None
        else {
            "min": round(to_source_units(facts.min, scale, offset), 6),
            "max": round(to_source_units(facts.max, scale, offset), 6),
            "mean": round(float(mean), 6),
            "std": round(float(max(0.0, squares / count - mean**2) ** 0.5), 6),
            "centres": [round(to_source_units(edge, scale, offset), 6) for edge in LABEL_CENTRES.tolist()],
            "histogram": histogram.tolist(),
        },
        "lengths": {m: _lengths(counts, steps[m]) for m, counts in lengths.items()},
    }


def _lengths(counts: NDArray[np.int64], steps: int) -> dict[str, Any]:
    """The distribution of unpadded steps, from how often each number occurs."""
    total = int(counts.sum())
    occurring = np.flatnonzero(counts)
    mean = float((counts * np.arange(len(counts))).sum() / total)
    return {
        "min": int(occurring[0]),
        "median": int(np.searchsorted(np.cumsum(counts), (total + 1) // 2)),
        "max": int(occurring[-1]),
        "mean": round(mean, 4),
        "padding": round(1 - mean / steps, 6),
        "counts": counts.tolist(),
    }


def to_text(facts: dict[str, Any]) -> str:
    """A summary as text."""
    shards, dims, steps = facts["shards"], facts["dims"], facts["steps"]
    shapes = [f"{m} {steps[m]} x {dims[m] or 'ids'}" for m in MODALITIES]
    zeroed = ", ".join(f"{name} {count}" for name, count in facts["non_finite"]["zeroed"].items()) or "none"
    lines = [
        f"{facts['path']}: {facts['name']}, generation {facts['generation']}, written by {facts['builder']}",
        f"  {facts['samples']} samples in {shards['count']} shards of up to {facts['samples_per_shard']}, "
        f"{size_text(shards['bytes'])} ({size_text(shards['smallest'])} to {size_text(shards['largest'])} each), "
        f"{facts['layout']}",
        f"  text as {facts['text']}" + (f", {facts['vocab_size']} token ids" if facts["vocab_size"] else ""),
        f"  {', '.join(shapes)}, stored as {facts['storage']}",
        f"  non-finite values: none stored, zeroed when written: {zeroed}",
    ]
    lines.append(f"  task {facts['task']}, metrics by protocol {facts['protocol']}")
    if (facts["label_scale"], facts["label_offset"]) != (1, 0):
        ends = (
            to_source_units(end, facts["label_scale"], facts["label_offset"]) for end in (-LABEL_LIMIT, LABEL_LIMIT)
        )
        lines.append("  labels {:g} to {:g} of the source are stored as -3 to 3".format(*ends))
    if facts["tokenizer"]:
        made_with = facts["tokenizer"]
        lines.append(f"  text made of transcripts with {made_with['name']} (sha256 {made_with['digest'][:16]})")
    if facts["ignored"]:
        lines.append(f"  not taken from the source: {format_counts(facts['ignored'])}")
    if facts["rounding"]:
        errors = ", ".join(f"{m} {error:.3g}" for m, error in facts["rounding"].items())
        lines.append(f"  largest rounding error: {errors}")
    for split, part in facts["splits"].items():
        lines += ["", *_split_text(split, part, facts)]
    return "\n".join(lines)


def _split_text(split: str, part: dict[str, Any], facts: dict[str, Any]) -> list[str]:
    label, steps = part["label"], facts["steps"]
    headline = f"{split}: {part['samples']} samples, {part['shards']} shards, {size_text(part['bytes'])}"
    if label:
        headline += f"; labels {label['min']:g} to {label['max']:g}, mean {label['mean']:.3f}, std {label['std']:.3f}"
    lines = [headline]
    for kind, names in (("classes", facts["class_names"]), ("emotions", facts["emotions"])):
        if counts := part[kind]:
            named = zip(names or range(len(counts)), counts, strict=False)
            lines.append(f"  {kind} {', '.join(f'{name} ({count})' for name, count in named)}")
    for modality, length in part["lengths"].items():
        lines.append(
            f"  {modality:<6} valid steps {length['min']} to {length['max']} of {steps[modality]}, "
            f"median {length['median']}, padding {length['padding']:.1%}"
        )
    peak = max(label["histogram"]) if label else 1
    for centre, count in zip(label["centres"], label["histogram"], strict=True) if label else ():
        lines.append(f"  {centre:6.2f} {count:>8} {'#' * round(_BAR_WIDTH * count / peak)}".rstrip())
    return lines


def plot(facts: dict[str, Any], target: str | Path) -> None:
    """Write a picture: label histograms by split, and how many samples reach each step, by modality."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    from data_shards.figures import AnyScriptFigure

    figure = AnyScriptFigure(figsize=(11, 7.5), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(f"{facts['name']}: {facts['samples']} samples, generation {facts['generation']}")
    axes = figure.subplots(2, 2).ravel()
    splits = facts["splits"]
    _plot_labels(axes[0], facts)
    for axis, modality in zip(axes[1:], MODALITIES, strict=True):
        steps = facts["steps"][modality]
        for split, part in splits.items():
            length = part["lengths"][modality]
            reach = 1 - np.concatenate([[0], np.cumsum(length["counts"])[:-1]]) / part["samples"]
            axis.step(range(steps + 1), reach, where="mid", label=f"{split}, {length['padding']:.0%} padding")
        axis.set(title=f"{modality}: valid steps of {steps}", xlabel="steps", ylabel="share with at least as many")
        axis.set_ylim(0, 1.05)
        axis.legend()
    try:
        figure.savefig(target, dpi=110)
    except ValueError as error:  # an unknown file type
        raise ValueError(f"cannot draw {target}: {error}") from error


def _plot_labels(axis: "Axes", facts: dict[str, Any]) -> None:
    """Draw how the labels of each split are distributed: what the task is about."""
    splits, kind = facts["splits"], _KINDS[facts["task"]]
    counts = [part["label"]["histogram"] if kind == "sentiment" else part[kind] for part in splits.values()]
    bars = np.arange(max(map(len, counts)))
    width = 0.8 / len(splits)
    for number, ((split, part), count) in enumerate(zip(splits.items(), counts, strict=True)):
        shift = (number - (len(splits) - 1) / 2) * width
        share = np.array(count) / part["samples"]
        axis.bar(bars[: len(share)] + shift, share, width, label=f"{split} ({part['samples']})")
    names, step = [str(bar) for bar in bars.tolist()], 1
    if kind == "sentiment":
        names, step = [f"{centre:g}" for centre in next(iter(splits.values()))["label"]["centres"]], 2
    elif given := facts["class_names" if kind == "classes" else "emotions"]:
        names = given[: len(bars)]
    axis.set(title="labels", xlabel=kind, ylabel="share of the split")
    axis.set_xticks(bars[::step], names[::step])
    axis.legend()
