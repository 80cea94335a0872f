"""The splits and fields in a feature pickle, under our names; both note what was never read."""

from typing import Any

from data_shards.sources.splits import KNOWN, find_splits, split_of

PICKLE_SUFFIXES = (".pkl", ".pickle")


class Fields(dict[str, Any]):
    """The fields of a split; notes which were read (by `[]` or `get`, not by `in`)."""

    def __init__(self, fields: dict[str, Any]) -> None:
        super().__init__(fields)
        self._read: set[str] = set()

    def __getitem__(self, name: str) -> Any:
        self._read.add(name)
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        """As of a dict."""
        self._read.add(name)
        return super().get(name, default)

    def unused(self) -> dict[str, int]:
        """The fields that were never read -> how many entries they have."""
        return {str(name): size_of(value) for name, value in self.items() if name not in self._read}


class Splits(dict[str, Fields]):
    """Split -> its fields; of a pickle `{split: {field: values}}` whose names may be aliases or bytes."""

    def __init__(self, value: object, path: str, *, split: str | None = None) -> None:
        """Find them; `ValueError` where there is none, or one is no dict of fields.

        Args:
            split: whose fields these are where the pickle holds those of one split.
        """
        self.path = path
        value = {split: value} if split is not None else value
        self._value = value if isinstance(value, dict) else {}
        found = find_splits(self._value, path)
        if not found:
            what = f"a {type(value).__name__}" if not isinstance(value, dict) else _names(value)
            raise ValueError(f"{path} has no split: an MMSA pickle is a dict with {KNOWN}; this holds {what}")
        for name in found.values():
            if not isinstance(self._value[name], dict):
                kind = type(self._value[name]).__name__
                raise ValueError(f"{path}: {as_text(name)} is a {kind}, not a dict of fields")
        super().__init__({split: Fields(text_keys(self._value[name])) for split, name in found.items()})

    def fields(self, split: str) -> Fields:
        """The fields of a split; `ValueError` where it is not there."""
        if split not in self:
            raise ValueError(f"{self.path} lacks the {split} split; it has {', '.join(self)}")
        return self[split]

    def ignored(self) -> dict[str, int]:
        """Keys beside the splits, and fields that were never read -> how many entries they have."""
        found = {as_text(name): size_of(value) for name, value in self._value.items() if split_of(name) is None}
        for fields in self.values():
            for name, count in fields.unused().items():
                found[name] = found.get(name, 0) + count
        return found


def text_keys(fields: dict[Any, Any]) -> dict[Any, Any]:
    """The same dict with keys of bytes as text, as Python 2 wrote them."""
    return {as_text(key) if isinstance(key, bytes) else key: value for key, value in fields.items()}


def as_text(name: object) -> str:
    """A key as text."""
    return name.decode("latin1") if isinstance(name, bytes) else str(name)


def size_of(value: object) -> int:
    """How many entries an ignored value has: for a dict of fields its samples; 1 for what is no container."""
    if isinstance(value, dict):
        sizes = [size_of(part) for part in value.values() if not isinstance(part, dict)]
        return max(sizes, default=len(value))
    return len(value) if hasattr(value, "__len__") and not isinstance(value, (str, bytes)) and _has_axis(value) else 1


def _has_axis(value: object) -> bool:
    return getattr(value, "shape", (1,)) != ()


def _names(value: dict[Any, Any]) -> str:
    return ", ".join(map(as_text, list(value)[:12])) or "nothing"
