"""What MMSA-FET writes otherwise than MMSA's own pickles have it.

`run_dataset` writes `{train, valid, test: fields, config}`, with a split even where no clip is of it. Features that it
has aligned to tokens have a field `align` and no lengths: they are as long as the text. `run_single` writes the arrays
of one clip, `{audio [T, D], vision, text, text_bert [3, T], config, align}`, without id and label
(https://github.com/thuiar/MMSA-FET, src/MSA_FET/dataset.py and single.py).
"""

from typing import Any

import numpy as np

from data_shards.sources.pickled import Splits, text_keys

_ARRAYS = ("text", "text_bert", "audio", "vision")
_ONE_CLIP_AXES = 2


def is_clip(value: object) -> bool:
    """Whether a pickle holds the arrays of one clip."""
    if not isinstance(value, dict):
        return False
    fields = text_keys(value)
    arrays = [fields[name] for name in _ARRAYS if name in fields]
    return bool(arrays) and "id" not in fields and all(_axes(array) == _ONE_CLIP_AXES for array in arrays)


def clip_fields(value: dict[Any, Any], clip: str) -> dict[str, Any]:
    """The fields of one clip as those of a split with one sample."""
    fields = {name: np.asarray(array)[None] for name, array in text_keys(value).items() if name in _ARRAYS}
    others = {name: [content] for name, content in text_keys(value).items() if name not in _ARRAYS}
    return {**others, **fields, "id": [clip]}


def drop_empty_splits(splits: Splits, value: object) -> dict[str, int]:
    """Remove splits without a clip from what `run_dataset` wrote; their names, counted.

    Raises:
        ValueError: no split has a clip.
    """
    if not isinstance(value, dict) or "config" not in value:
        return {}
    empty = [name for name, fields in splits.items() if "id" in fields and len(fields["id"]) == 0]
    if len(empty) == len(splits):
        raise ValueError(f"{splits.path} has no clip in any split; MMSA-FET names those that failed in error.csv")
    for name in empty:
        del splits[name]
    return {f"split {name}, without a clip": 1 for name in empty}


def is_aligned_by_fet(fields: dict[str, Any]) -> bool:
    """Whether all modalities have a step per token."""
    return "align" in fields


def _axes(array: object) -> int:
    return array.ndim if isinstance(array, np.ndarray) else -1
