"""What the labels of a set mean: sentiments on a scale, class numbers, or emotions, as the user declares.

Nothing is guessed. Labels that look like something else than sentiments in [-3, 3] are rejected until the user declares
them: with `--classes` or `--binary`, with `--label-range` and the ends of their scale, or with `--label-scale` and the
factor that brings them to [-3, 3], which is 1 for sentiments that are right as they are. `--emotions` names what is
read beside or instead of them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

Task = Literal["regression", "classes", "multilabel"]
Protocol = Literal["mosi", "sims", "classes", "iemocap", "meld", "emotions"]
"""Which metrics the field reports on a data set:
mosi: MAE, Corr, Acc7, Acc5, Acc3, Acc2 and F1 in both protocols (CMU-MOSI, CMU-MOSEI);
sims: MAE, Corr, Acc5, Acc3, Acc2 and F1 in the bins of CH-SIMS;
classes: accuracy, weighted and macro F1;
iemocap: accuracy and F1 of each emotion against the others;
meld: accuracy and weighted F1;
emotions: of multi-label sets, F1 and weighted accuracy of each emotion."""
DEFAULT_PROTOCOLS: dict[Task, Protocol] = {"regression": "mosi", "classes": "classes", "multilabel": "emotions"}
"""The protocol of a task where none is declared."""
LabelKind = Literal["sentiments", "classes", "binary"]
CLASS_LIMIT = 1000
EMOTION_LIMIT = 100
LABEL_LIMIT = 3.0
_MEAN = "mean"
"""What tables call a metric's mean over all classes or emotions, in the place of a name."""
_Numbers = TypeVar("_Numbers", float, NDArray[np.float64])
RELATIVE_ROUNDING = 1e-6
"""How far a scaled label may exceed the limit, relative to it: float32 labels such as 0.6 are not exact."""


@dataclass(frozen=True, kw_only=True)
class LabelFacts:
    """What the labels of one split are."""

    min: float | None = None
    """The smallest sentiment; None where samples have class numbers alone."""
    max: float | None = None
    whole: bool = True
    """Whether every sentiment is a whole number."""
    classes: tuple[int, ...] = ()
    """How many samples have class 0, 1, ...; empty where samples have no class label."""
    emotions: tuple[int, ...] = ()
    """How many samples have each emotion; empty where samples have none."""

    def __post_init__(self) -> None:
        ends = [self.min, self.max]
        numbers = all(type(end) is float and math.isfinite(end) for end in ends)
        counted = all(type(count) is int and 0 <= count < 1 << 62 for count in (*self.classes, *self.emotions))
        few = len(self.classes) <= CLASS_LIMIT and len(self.emotions) <= EMOTION_LIMIT
        if not (numbers or ends == [None, None]) or not counted or not few:
            raise ValueError("the index's facts of labels are damaged; rebuild with `dmd shard`")

    def __or__(self, other: "LabelFacts") -> "LabelFacts":
        """The facts of the samples of both."""
        lows, highs = ([v for v in pair if v is not None] for pair in ((self.min, other.min), (self.max, other.max)))
        return LabelFacts(
            min=min(lows, default=None),
            max=max(highs, default=None),
            whole=self.whole and other.whole,
            classes=_add_counts(self.classes, other.classes),
            emotions=_add_counts(self.emotions, other.emotions),
        )

    @property
    def occurring(self) -> list[int]:
        """The class numbers that occur."""
        return [number for number, count in enumerate(self.classes) if count]

    def describe(
        self,
        *,
        class_names: Sequence[str] = (),
        emotions: Sequence[str] = (),
        scale: float = 1.0,
        offset: float = 0.0,
    ) -> str:
        """The facts in words, with the names of classes and emotions where there are any.

        Args:
            scale: what the labels of the source were multiplied with,
            offset: after this was subtracted.
        """
        parts = []
        if self.min is not None and self.max is not None:
            low, high = (to_source_units(end, scale, offset) for end in (self.min, self.max))
            stored = f", stored as {self.min:g} to {self.max:g}" if (scale, offset) != (1, 0) else ""
            parts.append(f"sentiments {low:g} to {high:g}{stored}")
        if self.classes:
            names = class_names or range(len(self.classes))
            parts.append(
                "classes " + ", ".join(f"{names[number]} ({self.classes[number]})" for number in self.occurring)
            )
        if self.emotions:
            named = zip(emotions or range(len(self.emotions)), self.emotions, strict=True)
            parts.append("emotions " + ", ".join(f"{name} ({count})" for name, count in named))
        return ", ".join(parts)

    @classmethod
    def of(cls, labels: ArrayLike, classes: ArrayLike, emotions: ArrayLike = ()) -> "LabelFacts":
        """Facts of labels [N], as float32 as they are stored (NaN: none), of class numbers [N] or [0] and of emotions
        [N, L] of 0 and 1, or [0]."""
        values = np.asarray(labels, dtype=np.float32)
        known = values[~np.isnan(values)]
        numbers = np.asarray(classes, dtype=np.int64)
        flags = np.asarray(emotions, dtype=np.int64)
        return cls(
            min=float(known.min()) if len(known) else None,
            max=float(known.max()) if len(known) else None,
            whole=bool((known == np.floor(known)).all()),
            classes=tuple(np.bincount(numbers).tolist()),
            emotions=tuple(flags.sum(axis=0).tolist()) if flags.ndim > 1 else (),
        )

    @classmethod
    def of_rows(cls, rows: NDArray[Any]) -> "LabelFacts":
        """Facts of rows of an index, whose class is -1 where there is none."""
        return cls.of(rows["label"], rows["class"][rows["class"] >= 0], rows["emotions"])

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> "LabelFacts":
        """What `asdict` gave, after JSON."""
        emotions = tuple(fields.get("emotions", ()))
        return cls(**{**fields, "classes": tuple(fields["classes"]), "emotions": emotions})


@dataclass(frozen=True, kw_only=True)
class Labels:
    """What a user says that the labels of a source are."""

    kind: LabelKind = "sentiments"
    scale: float | None = None
    """Factor that brings sentiments to [-3, 3]; None: not declared."""
    range: tuple[float, float] | None = None
    """The ends of the sentiments' own scale, which are stored as -3 and 3; None: not declared."""
    are_stored: bool = False
    """Whether sentiments are on the scale [-3, 3] already, and the declared one is that which they came from."""
    class_names: tuple[str, ...] = ()
    """Names of the classes from 0 on; empty: they have none."""
    emotions: tuple[str, ...] = ()
    """Names of the emotions that a sample has or has not; empty: none are read."""
    protocol: Protocol | Literal[""] = ""
    """Which metrics the field reports on this set; "": those of its task."""

    def __post_init__(self) -> None:
        self._check_scale()
        self._check_names()

    @property
    def factor(self) -> float:
        """What sentiments are multiplied with, after `offset` was subtracted."""
        if self.range is not None:
            return 2 * LABEL_LIMIT / (self.range[1] - self.range[0])
        return 1.0 if self.scale is None else self.scale

    @property
    def offset(self) -> float:
        """The sentiment that is stored as 0."""
        return 0.0 if self.range is None else (self.range[0] + self.range[1]) / 2

    @property
    def label_names(self) -> tuple[str, ...]:
        """What a label may be instead of a number."""
        return () if self.kind == "sentiments" else self.class_names

    @property
    def scale_option(self) -> str:
        """What the user says of the scale of the sentiments, as it is given; "" where nothing is."""
        if self.range is not None:
            return f"--label-range {self.range[0]:g} {self.range[1]:g}"
        return "" if self.scale is None else f"--label-scale {self.scale:g}"

    @property
    def is_scale_declared(self) -> bool:
        """Whether the user says what the scale of the sentiments is."""
        return self.scale is not None or self.range is not None

    def _check_scale(self) -> None:
        if self.scale is not None and not (math.isfinite(self.scale) and self.scale > 0):
            raise ValueError(f"--label-scale {self.scale} is no factor; give a number above 0, such as 3 for CH-SIMS")
        if self.range is not None and not -math.inf < self.range[0] < self.range[1] < math.inf:
            raise ValueError(
                f"{self.scale_option} is no range; give the lowest and the highest label "
                "of the scale, such as -1 1 for CH-SIMS"
            )
        if self.is_scale_declared and self.kind != "sentiments":
            raise ValueError(f"{self.scale_option} is for sentiments, not with --{self.kind}; give one of them")
        if self.scale is not None and self.range is not None:
            raise ValueError("--label-range says what --label-scale does; give one of them")
        if self.are_stored and not self.is_scale_declared:
            raise ValueError("--stored-labels needs the scale that they came from; say it with --label-range LOW HIGH")

    def _check_names(self) -> None:
        for option, names, limit in (
            ("--class-names", self.class_names, CLASS_LIMIT),
            ("--emotions", self.emotions, EMOTION_LIMIT),
        ):
            if not are_names(names) or len(names) > limit:
                raise ValueError(
                    f"{option} {','.join(names)}: give different names, at most {limit}, with commas between them"
                )
            if _MEAN in names:
                raise ValueError(
                    f"{option} {','.join(names)}: tables have means over all as {_MEAN}; name it otherwise"
                )
        if len(self.class_names) == 1 or (self.kind == "binary" and len(self.class_names) not in (0, 2)):
            needed = "2 names, of 0 and of 1" if self.kind == "binary" else "a name for each class"
            raise ValueError(f"--class-names {','.join(self.class_names)}: give {needed}")
        if len(self.emotions) == 1:
            raise ValueError(f"--emotions {self.emotions[0]}: give at least two; one alone is --binary")
        if self.emotions and self.kind != "sentiments":
            raise ValueError(f"--emotions are any number per sample, --{self.kind} one class; give one of them")

    def read(self, label: float) -> tuple[float, int | None]:
        """A label as declared: (sentiment, None), or (NaN, class number)."""
        if math.isnan(label):
            raise ValueError("its label is not a number (NaN); leave out samples without a label")
        if self.kind == "sentiments":
            return self._scaled(label), None
        if self.kind == "binary" and label not in (0, 1):
            raise ValueError(
                f"label {label:g} is neither 0 nor 1, which --binary means; for -1 and +1 use --label-scale 1 and "
                "model.task=2, for other numbers --classes"
            )
        if not are_class_numbers(label):
            raise ValueError(
                f"label {label:g} is no class number from 0 to {CLASS_LIMIT - 1}; number them, or leave out --classes"
            )
        return math.nan, int(label)

    def _scaled(self, label: float) -> float:
        """A sentiment on the scale [-3, 3]; `ValueError` where what is declared brings it beyond."""
        value = (label - self.offset) * self.factor
        if self.are_stored:
            return label
        if self.range is None and self.factor == 1:
            return value
        if not are_sentiments(value, rounding=RELATIVE_ROUNDING):
            if self.range is not None:
                raise ValueError(
                    f"label {label:g} is outside of {self.scale_option}; give the ends of the labels' scale, or mend "
                    "the label"
                )
            raise ValueError(
                f"label {label:g} times {self.scale_option} is {value:g}, beyond [-3, 3]; give a smaller one"
            )
        return max(-LABEL_LIMIT, min(LABEL_LIMIT, value))


def are_sentiments(stored: ArrayLike, *, rounding: float = 0.0) -> NDArray[np.bool_]:
    """Which numbers lie in [-3, 3], or beyond it by no more than a relative rounding; NaN does not."""
    return np.abs(np.asarray(stored, dtype=np.float64)) <= LABEL_LIMIT * (1 + rounding)


def are_class_numbers(labels: ArrayLike, count: int = CLASS_LIMIT) -> NDArray[np.bool_]:
    """Which numbers are those of `count` classes, from 0; NaN is none."""
    numbers = np.asarray(labels, dtype=np.float64)
    return (numbers >= 0) & (numbers < count) & (numbers == np.floor(numbers))


def to_source_units(stored: _Numbers, scale: float, offset: float) -> _Numbers:
    """Stored sentiments as the labels of the source that they were."""
    return stored / scale + offset


def are_names(names: Sequence[object]) -> bool:
    """Whether all are texts that can label a column of a table: not blank, and no two alike."""
    return all(isinstance(name, str) and name.strip() and name.isprintable() for name in names) and (
        len(set(names)) == len(names)
    )


def _add_counts(left: tuple[int, ...], right: tuple[int, ...]) -> tuple[int, ...]:
    """The sums of counts of which either may be longer."""
    return tuple(map(sum, zip_longest(left, right, fillvalue=0)))
