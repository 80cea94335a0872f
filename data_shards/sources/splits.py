"""Names of splits: `val`, `dev` and `validation` mean `valid`, everywhere that a user or a file names a split."""

import re
from collections.abc import Iterable
from typing import Any

from data_shards.format.schema import SPLITS

SPLIT_ALIASES = {
    "train": "train",
    "training": "train",
    "trn": "train",
    "valid": "valid",
    "val": "valid",
    "dev": "valid",
    "validation": "valid",
    "devel": "valid",
    "development": "valid",
    "test": "test",
    "testing": "test",
    "tst": "test",
}
"""What may be written for a split, in lower case -> the split."""
UNSPLIT = "train"
"""What features without splits are read as, where a label file gives each clip its own."""
KNOWN = ", ".join(SPLITS) + " (or val, dev, validation)"


def split_of(name: object) -> str | None:
    """The split that a name means, in any case and as text or bytes; None for any other name."""
    text = name.decode("latin1") if isinstance(name, bytes) else name
    return SPLIT_ALIASES.get(text.strip().lower()) if isinstance(text, str) else None


def named_split(name: object, what: str) -> str:
    """The split that a name means; `ValueError` that begins with `what` for any other name."""
    split = split_of(name)
    if split is None:
        raise ValueError(f"{what} {name!r} is unknown; use {KNOWN}")
    return split


def splits_in_path(name: str) -> set[str]:
    """The splits whose names are among the words of a path, such as `train` of `train/part_07.pkl`."""
    return {SPLIT_ALIASES[word] for word in re.split(r"[^a-z]+", name.lower()) if word in SPLIT_ALIASES}


def find_splits(names: Iterable[Any], where: str) -> dict[str, Any]:
    """Split -> its name among `names`, in the order of SPLITS; `ValueError` where two names mean one split."""
    found: dict[str, Any] = {}
    for name in names:
        split = split_of(name)
        if split is not None and split in found:
            raise ValueError(f"{where}: {found[split]!r} and {name!r} both mean {split}; leave one")
        if split is not None:
            found[split] = name
    return {split: found[split] for split in SPLITS if split in found}
