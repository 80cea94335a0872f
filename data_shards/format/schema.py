"""What a sample and a data set are: names, shapes, limits, and the facts that an index carries about a whole set.

Everything above `data_shards` takes its dimensions, lengths and counts from `DatasetInfo`, never from a config.
"""

import hashlib
import json
import math
import re
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from data_shards.labels import (
    CLASS_LIMIT,
    EMOTION_LIMIT,
    LabelFacts,
    Protocol,
    Task,
    are_class_numbers,
    are_names,
    are_sentiments,
)

TextKind = Literal["features", "tokens"]
Storage = Literal["float32", "float16"]
Layout = Literal["packed", "mapped"]

MODALITIES = ("text", "audio", "vision")
SPLITS = ("train", "valid", "test")
MEMBERS = (*MODALITIES, "json")
"""The members of a sample in a tar, in this order."""
DEFAULT_MEMBERS = {"text": "text.npy", "audio": "audio.npy", "vision": "vision.npy", "json": "json:raw_text"}
SCHEMA_VERSION = 1
_MAX_SAMPLE_VALUES = 1 << 28
"""Values in one array of a sample; a damaged index can claim any shape."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One utterance, as a source yields it and a shard stores it."""

    id: str
    """The data set's own name for it; any text that can be written as UTF-8."""
    split: str
    label: float
    """Sentiment in [-3, 3]; NaN for a sample that has a class label or emotions alone."""
    raw_text: str
    text: NDArray[Any]
    """Features [T, D] float32, or tokens [3, T] int32: ids, attention mask, token types."""
    audio: NDArray[np.float32]
    """[T, D]"""
    vision: NDArray[np.float32]
    """[T, D]"""
    lengths: tuple[int, int, int]
    """Unpadded steps of text, audio, vision; the rest is padding."""
    class_label: int | None = None
    """The data set's own class number, where the shards are to hold one."""
    emotions: NDArray[np.uint8] | None = None
    """[L]: 1 for each emotion of `DatasetInfo.emotions` that the sample has, else 0; None in sets without."""


@dataclass(frozen=True, kw_only=True)
class ShardInfo:
    """One tar of a data set."""

    name: str
    """Its path relative to the set's directory."""
    split: str
    samples: int
    bytes: int
    sha256: str

    def __post_init__(self) -> None:
        is_inside = isinstance(self.name, str) and ".." not in self.name.split("/") and not self.name.startswith("/")
        is_digest = isinstance(self.sha256, str) and re.fullmatch("[0-9a-f]{64}", self.sha256)
        sizes = [self.samples, self.bytes]
        if not is_inside or not is_digest or self.split not in SPLITS or not _are_positive_integers(sizes):
            raise ValueError(f"the index names an impossible shard: {self.name!r:.80}")


@dataclass(frozen=True, kw_only=True)
class DatasetInfo:
    """What an index says about the whole set."""

    name: str
    text_kind: TextKind
    dims: dict[str, int]
    """Feature dimension per modality; 0 for text tokens."""
    lengths: dict[str, int]
    """Padded sequence length per modality."""
    vocab_size: int
    """1 + the largest token id, 0 for text features."""
    counts: dict[str, int]
    """Samples per split, in the order of SPLITS; a split that the set lacks is absent."""
    samples_per_shard: int
    """Samples in every shard of a split but its last."""
    dtype: Storage
    """How features are stored; they are always read as float32."""
    layout: Layout = "packed"
    """`packed`: our own tars, where every sample has the same shape. `mapped`: externally created tars."""
    classes: int = 0
    """1 + the largest class label, or the number of `class_names`; 0 where samples have none."""
    task: Task = "regression"
    """`regression`: samples have a sentiment, and where `classes` is not 0 a class label too, or `emotions`;
    `classes`: they have a class label alone; `multilabel`: they have any number of `emotions` alone."""
    labels: dict[str, LabelFacts] = field(default_factory=dict)
    """By split, the range of the sentiments and how often each class and emotion occurs; empty in sets of older
    programs. Not part of the content, like all that the user declares about labels and ids."""
    label_scale: float = 1.0
    """What the labels of the source were multiplied with, after `label_offset` was subtracted."""
    label_offset: float = 0.0
    """The label of the source that is stored as 0."""
    class_names: tuple[str, ...] = ()
    """Names of the classes from 0 on; empty: they have none."""
    emotions: tuple[str, ...] = ()
    """The names of the emotions that a sample has or has not, in the order of `Sample.emotions`; empty: it has none."""
    protocol: Protocol | Literal[""] = ""
    """Which metrics the field reports on this set; "": those of its task."""
    tokenizer: dict[str, str] = field(default_factory=dict)
    """`name` and `digest` (sha256) of the tokenizer that made the token ids, or of the file of word vectors that text
    features were taken from; empty: unknown, or other text features."""
    extraction: dict[str, Any] = field(default_factory=dict)
    """How the features were made of clips, as `dmd extract` was told; empty: unknown."""
    ids_numbered: bool = False
    """Whether ids were given a number (`--ids number`)."""
    ignored: dict[str, int] = field(default_factory=dict)
    """Fields, columns, members and files of the source that were not used, and what of its transcripts is not in the
    text -> how many entries each has."""
    members: dict[str, str] = field(default_factory=lambda: dict(DEFAULT_MEMBERS))
    """Which member of a sample holds what, such as `audio.npy`, `feats.npz:audio` or `json:raw_text`; "" for none."""
    rounding: dict[str, float] = field(default_factory=dict)
    """Per modality the largest error that float16 storage cost; empty for float32."""
    zeroed: dict[str, int] = field(default_factory=dict)
    """Non-finite values that were stored as 0, by `split/modality`; stored values are always finite."""
    statistics: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    """{modality: {"mean", "std": one number per feature}} over the frames of the train split that are not all zero;
    token ids have none. Empty where there is no train split, and in sets of older programs. Not part of the content:
    the same samples have the same generation with and without."""
    shards: tuple[ShardInfo, ...]
    """All shards, in the order of the index."""
    generation: str
    """Digest of the content: equal exactly when every stored byte of every sample is."""
    builder: str
    """The program and version that wrote the set."""
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        check_choice(self.text_kind, TextKind, "text kind")
        check_choice(self.dtype, Storage, "storage type")
        check_choice(self.layout, Layout, "layout")
        check_choice(self.task, Task, "task")
        if self.protocol:
            check_choice(self.protocol, Protocol, "protocol")
        self._check_shapes_and_counts()
        self._check_label_facts()
        if self.tokenizer and not names_tokenizer(self.tokenizer):
            raise ValueError("the index's name and digest of the tokenizer are damaged; rebuild with `dmd shard`")
        for modality, values in self.statistics.items():
            if not _are_statistics(values, self.dims.get(modality)):
                raise ValueError(f"the index's statistics of {modality!r:.20} are damaged; rebuild with `dmd shard`")

    def _check_shapes_and_counts(self) -> None:
        dims = [self.dims.get(m) for m in MODALITIES if m != "text" or self.text_kind == "features"]
        sizes = [*self.lengths.values(), *self.counts.values(), self.samples_per_shard, *dims, self.vocab_size + 1]
        by_shards = {
            split: sum(shard.samples for shard in self.shards if shard.split == split) for split in self.counts
        }
        texts = [self.name, self.generation, self.builder, *self.members.values()]
        consistent = (
            set(self.lengths) == set(MODALITIES)
            and set(self.members) == set(MEMBERS)
            and by_shards == self.counts
            and all(isinstance(text, str) for text in texts)
        )
        if not consistent or not _are_positive_integers(sizes):
            raise ValueError("the index's shapes, counts and shards do not go together; rebuild with `dmd shard`")
        if any(math.prod(self.shape(m)) > _MAX_SAMPLE_VALUES for m in MODALITIES):
            raise ValueError("the index tells of samples that no memory holds; rebuild with `dmd shard`")

    def _check_label_facts(self) -> None:
        if type(self.classes) is not int or not 0 <= self.classes <= CLASS_LIMIT:
            raise ValueError(f"the index tells of {self.classes!r:.20} classes; rebuild with `dmd shard`")
        is_factor = type(self.label_scale) is float and 0 < self.label_scale < math.inf
        is_offset = type(self.label_offset) is float and math.isfinite(self.label_offset)
        holds_labels = {"regression": True, "classes": bool(self.classes), "multilabel": bool(self.emotions)}[self.task]
        named = are_names(self.class_names) and are_names(self.emotions) and len(self.emotions) <= EMOTION_LIMIT
        fits = not self.class_names or len(self.class_names) == self.classes
        counted = set(self.labels) <= set(SPLITS) and all(
            len(facts.classes) <= self.classes and len(facts.emotions) == len(self.emotions)
            for facts in self.labels.values()
        )
        if not (is_factor and is_offset and holds_labels and named and fits and counted):
            raise ValueError("the index's facts of labels do not go together; rebuild with `dmd shard`")

    def shape(self, modality: str) -> tuple[int, int]:
        """The shape of one sample's stored array: [T, D], or [3, T] for text tokens."""
        if modality == "text" and self.text_kind == "tokens":
            return 3, self.lengths["text"]
        return self.lengths[modality], self.dims[modality]

    def stored_dtype(self, modality: str) -> np.dtype[Any]:
        """The little-endian dtype of a modality's arrays in the shards."""
        if modality == "text" and self.text_kind == "tokens":
            return np.dtype("<i4")
        return np.dtype("<f4" if self.dtype == "float32" else "<f2")

    def to_json(self) -> str:
        """The canonical text of this object: sorted keys, no spaces, ASCII."""
        return canonical_json(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "DatasetInfo":
        """Read what `to_json` wrote; `ValueError` on another schema version or unknown or missing fields."""
        fields = json.loads(text)
        version = fields.get("schema_version") if isinstance(fields, dict) else None
        if version != SCHEMA_VERSION:
            raise ValueError(f"schema version {version!r} is not {SCHEMA_VERSION}: rebuild the shards with `dmd shard`")
        try:
            fields["shards"] = tuple(ShardInfo(**shard) for shard in fields["shards"])
            fields["counts"] = {split: fields["counts"][split] for split in SPLITS if split in fields["counts"]}
            for name in ("class_names", "emotions"):
                fields[name] = tuple(fields.get(name, ()))
            labels = fields.get("labels", {}).items()
            fields["labels"] = {split: LabelFacts.from_dict(facts) for split, facts in labels}
            for name in ("dims", "lengths"):
                fields[name] = {modality: fields[name][modality] for modality in MODALITIES}
            return cls(**fields)
        except (AttributeError, TypeError, KeyError) as error:
            raise ValueError(f"the index metadata is incomplete: {error}") from error


def canonical_json(value: object) -> str:
    """JSON with one spelling per value, for digests and files that must be reproducible."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def content_digest(*, facts: dict[str, Any], shards: list[tuple[str, int, str]]) -> str:
    """The content digest of a set: `facts` are name, shapes and kinds; each shard gives (split, samples, sha256)."""
    return hashlib.sha256(canonical_json({"facts": facts, "shards": shards}).encode()).hexdigest()[:16]


def check_sample(sample: Sample) -> None:
    """Reject a sample that no shard may hold; the `ValueError` names the sample and what is wrong with it."""
    where = f"{sample.split} sample {sample.id!r}"
    if not sample.id or not is_utf8(sample.id) or not is_utf8(sample.raw_text):
        raise ValueError(f"{where}: its id is empty or its text cannot be written as UTF-8; use --ids number")
    _check_label(sample, where)
    for modality, length in zip(MODALITIES, sample.lengths, strict=True):
        is_tokens = modality == "text" and sample.text.dtype == np.int32
        _check_array(getattr(sample, modality), length, is_tokens=is_tokens, where=f"{where}: {modality}")


def _check_label(sample: Sample, where: str) -> None:
    has_other = sample.class_label is not None or sample.emotions is not None
    if not (has_other and math.isnan(sample.label)) and not are_sentiments(sample.label):
        raise ValueError(
            f"{where}: label {sample.label} is outside [-3, 3]; bring the labels there with --label-range LOW HIGH "
            "(the ends of their own scale) or --label-scale FACTOR, or say with --classes that they are class numbers"
        )
    if sample.class_label is not None and not are_class_numbers(sample.class_label):
        raise ValueError(f"{where}: class label {sample.class_label} is not from 0 to {CLASS_LIMIT - 1}; number from 0")
    if sample.emotions is not None:
        _check_emotions(sample.emotions, where)


def _check_emotions(emotions: NDArray[Any], where: str) -> None:
    if emotions.ndim != 1 or not 0 < len(emotions) <= EMOTION_LIMIT:
        raise ValueError(f"{where}: emotions have shape {emotions.shape}; give 1 to {EMOTION_LIMIT} per sample")
    if emotions.dtype != np.uint8 or emotions.max() > 1:
        raise ValueError(f"{where}: emotions are {emotions.dtype} {emotions.tolist()}; give 0 or 1 for each, as uint8")


def _check_array(array: NDArray[Any], length: int, *, is_tokens: bool, where: str) -> None:
    """Reject an array [T, D] (tokens: [3, T]) with a wrong shape, type or value, or with fewer than `length` steps."""
    if array.ndim != 2 or 0 in array.shape or (is_tokens and array.shape[0] != 3):
        raise ValueError(f"{where} has shape {array.shape}; it must be [steps, features]")
    steps = array.shape[1 if is_tokens else 0]
    if not 0 <= length <= steps:
        raise ValueError(f"{where} length {length} is not between 0 and its {steps} steps")
    if is_tokens:
        if array.min() < 0:
            raise ValueError(f"{where} has a negative token id")
        return
    if array.dtype != np.float32:
        raise ValueError(f"{where} is {array.dtype}; it must be float32")
    if not np.isfinite(array).all():
        bad = int(array.size - np.isfinite(array).sum())
        raise ValueError(
            f"{where} {array.shape} has {bad} non-finite values, as float32; repair them, or store 0 "
            "with `dmd shard --nonfinite zero`"
        )


def names_tokenizer(value: object) -> bool:
    """Whether a value is `DatasetInfo.tokenizer` of a set whose text was made of transcripts."""
    texts = value.values() if isinstance(value, dict) and set(value) == {"name", "digest"} else [None]
    return all(isinstance(text, str) for text in texts)


def member_suffix(member: str) -> str:
    """What follows the key in the name of one of MEMBERS."""
    return DEFAULT_MEMBERS[member].partition(":")[0]


def check_choice(value: str, kinds: Any, what: str) -> None:
    """Reject a word that is not one of a `Literal`'s values."""
    if value not in get_args(kinds):
        raise ValueError(f"{what} {value!r} is unknown; use one of {', '.join(get_args(kinds))}")


def _are_positive_integers(values: list[Any]) -> bool:
    """Whether all values are whole numbers above zero that fit into an index."""
    return all(type(value) is int and 0 < value < 1 << 62 for value in values)


def _are_statistics(values: Any, dim: int | None) -> bool:
    """Whether values hold a finite mean and a standard deviation for each of `dim` features."""
    if not isinstance(values, dict) or set(values) != {"mean", "std"}:
        return False
    for numbers in values.values():
        finite = isinstance(numbers, list) and all(type(v) is float and abs(v) < math.inf for v in numbers)
        if not finite or len(numbers) != dim:
            return False
    return all(value >= 0 for value in values["std"])


def is_utf8(text: str) -> bool:
    """Whether a text can be written as UTF-8; one with half a surrogate pair cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
