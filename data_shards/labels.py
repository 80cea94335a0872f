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
from typing import Any, Literal

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
_RELATIVE_ROUNDING = 1e-6
"""How far a scaled label may exceed the limit, relative to it: float32 labels such as 0.6 are not exact."""
_MAX_NAMED = 8
"""Class numbers that a message names."""
_DECLARE = "--classes (class numbers), --binary (0 and 1), or --label-scale 1 (sentiments in [-3, 3] as they are)"


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

    def describe(self, class_names: Sequence[str] = (), emotions: Sequence[str] = ()) -> str:
        """The facts in words, with the names of classes and emotions where there are any."""
        parts = [] if self.min is None else [f"sentiments {self.min:g} to {self.max:g}"]
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
    def is_scale_declared(self) -> bool:
        """Whether the user says what the scale of the sentiments is."""
        return self.scale is not None or self.range is not None

    def _check_scale(self) -> None:
        if self.scale is not None and not (math.isfinite(self.scale) and self.scale > 0):
            raise ValueError(f"--label-scale {self.scale} is no factor; give a number above 0, such as 3 for CH-SIMS")
        if self.range is not None and not -math.inf < self.range[0] < self.range[1] < math.inf:
            raise ValueError(
                f"--label-range {self.range[0]:g} {self.range[1]:g} is no range; give the lowest and the highest label "
                "of the scale, such as -1 1 for CH-SIMS"
            )
        if self.is_scale_declared and self.kind != "sentiments":
            option = "--label-scale" if self.range is None else "--label-range"
            raise ValueError(f"{option} is for sentiments, not with --{self.kind}; give one of them")
        if self.scale is not None and self.range is not None:
            raise ValueError("--label-range says what --label-scale does; give one of them")

    def _check_names(self) -> None:
        for option, names, limit in (
            ("--class-names", self.class_names, CLASS_LIMIT),
            ("--emotions", self.emotions, EMOTION_LIMIT),
        ):
            if not are_names(names) or len(names) > limit:
                raise ValueError(
                    f"{option} {','.join(names)}: give different names, at most {limit}, with commas between them"
                )
        if len(self.class_names) == 1 or (self.kind == "binary" and len(self.class_names) not in (0, 2)):
            needed = "2 names, of 0 and of 1" if self.kind == "binary" else "a name for each class"
            raise ValueError(f"--class-names {','.join(self.class_names)}: give {needed}")
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
        if not (label >= 0 and float(label).is_integer() and label < CLASS_LIMIT):
            raise ValueError(
                f"label {label:g} is no class number from 0 to {CLASS_LIMIT - 1}; number them, or leave out --classes"
            )
        return math.nan, int(label)

    def _scaled(self, label: float) -> float:
        """A sentiment on the scale [-3, 3]; `ValueError` where what is declared brings it beyond."""
        value = (label - self.offset) * self.factor
        if self.range is None and self.factor == 1:
            return value
        if not abs(value) <= LABEL_LIMIT * (1 + _RELATIVE_ROUNDING):
            raise ValueError(
                f"label {label:g} is outside of --label-range {self.range[0]:g} {self.range[1]:g}; give the ends of "
                "the labels' scale, or mend the label"
                if self.range is not None
                else f"label {label:g} times --label-scale {self.factor:g} is {value:g}, beyond [-3, 3]; give a "
                "smaller one"
            )
        return max(-LABEL_LIMIT, min(LABEL_LIMIT, value))


def check_labels(splits: dict[str, LabelFacts], labels: Labels, name: str, *, training_samples: int) -> list[str]:
    """Reject labels that are ambiguous, or all equal in the training split; return warnings about odd ones.

    Args:
        training_samples: how many samples the training split has.

    Raises:
        ValueError: a training split with one label, one class or the same emotions everywhere; labels that look like
            class numbers or another scale and were not declared.
    """
    train = splits.get("train")
    if train is not None:
        _check_varies(train, name, samples=training_samples)
    everything = LabelFacts()
    for facts in splits.values():
        everything |= facts
    problem = "" if labels.is_scale_declared else _ambiguity(everything)
    if problem:
        raise ValueError(f"{name}: {problem}")
    return [
        *_warn_of_sentiments(train or LabelFacts(), labels),
        *_warn_of_classes(everything, train),
        *_warn_of_emotions(train or LabelFacts(), labels.emotions, samples=training_samples),
    ]


def _check_varies(train: LabelFacts, name: str, *, samples: int) -> None:
    if train.min != train.max or len(train.occurring) > 1 or any(0 < count < samples for count in train.emotions):
        return
    if train.min is not None:
        what = f"label {train.min:g}"
    else:
        what = f"class {train.occurring[0]}" if train.classes else "same emotions"
    raise ValueError(
        f"{name}: every sample of train has the {what}, from which nothing can be learned; check the field that the "
        "labels come from, or name the split otherwise if it is not to train on"
    )


def are_names(names: Sequence[object]) -> bool:
    """Whether all are texts that can label a column of a table: not blank, and no two alike."""
    return all(isinstance(name, str) and name.strip() and name.isprintable() for name in names) and (
        len(set(names)) == len(names)
    )


def _add_counts(left: tuple[int, ...], right: tuple[int, ...]) -> tuple[int, ...]:
    """The sums of counts of which either may be longer."""
    return tuple(map(sum, zip_longest(left, right, fillvalue=0)))


def _ambiguity(facts: LabelFacts) -> str:
    """Why sentiments may be something else, and how to declare it; empty where they look like sentiments in [-3, 3]."""
    if facts.min is None or facts.max is None or facts.min == facts.max:
        return ""
    range_text = f"the labels lie in [{facts.min:g}, {facts.max:g}]"
    if facts.whole and facts.min >= 0:
        kind = "0 and 1" if facts.max == 1 else "whole numbers and never negative"
        return f"{range_text}, all {kind}: class numbers rather than sentiments; say what they are: {_DECLARE}"
    if max(abs(facts.min), abs(facts.max)) > 1:
        return ""
    signs = " (with model.task=3 for negative, neutral, positive)" if facts.whole else ""
    shares = "" if facts.min < 0 else "; where 0.5 is neutral, subtract it and say --label-scale 6"
    return (
        f"{range_text}, a third of the scale [-3, 3], as CH-SIMS has them; multiply them with --label-scale 3, or "
        f"keep them with --label-scale 1{signs}{shares}"
    )


def _warn_of_sentiments(train: LabelFacts, labels: Labels) -> list[str]:
    """Warnings about the sentiments of the training split, where the whole set or the user's declaration is clear."""
    if train.min is None or train.max is None:
        return []
    if train.min == train.max:
        return [f"every training sample has the sentiment {train.min:g}, from which only classes can be learned"]
    warnings = []
    if not labels.is_scale_declared and (problem := _ambiguity(train)):
        warnings.append(f"of train alone, other than of the other splits, {problem}")
    elif labels.factor != 1 and max(abs(train.min), abs(train.max)) <= 1:
        warnings.append(
            f"after --label-scale {labels.factor:g} the labels lie in [{train.min:g}, {train.max:g}], a third of the "
            "scale [-3, 3]; check the factor"
        )
    if train.min >= 0 or train.max <= 0:
        sign = "negative" if train.min >= 0 else "positive"
        warnings.append(
            f"no training label is {sign} (they lie in [{train.min:g}, {train.max:g}]), but 0 is taken for neutral in "
            "Acc2, F1 and model.task; if something else is neutral here, subtract it from the labels first"
        )
    return warnings


def _warn_of_classes(everything: LabelFacts, train: LabelFacts | None) -> list[str]:
    """Warnings about class numbers."""
    warnings = []
    if train and train.min != train.max and len(train.occurring) == 1:
        warnings.append(f"every training sample has class {train.occurring[0]}; data.classes=stored can learn nothing")
    unseen = [n for n in everything.occurring if train and train.classes and n not in train.occurring]
    gaps = [n for n in range(len(everything.classes)) if n not in everything.occurring]
    if unseen:
        warnings.append(f"{_classes(unseen)} in no training sample")
    if gaps:
        warnings.append(f"{_classes(gaps)} in no sample at all; number the classes from 0 without gaps")
    return warnings


def _warn_of_emotions(train: LabelFacts, names: Sequence[str], *, samples: int) -> list[str]:
    """Warnings about emotions that all training samples have, or none; nothing where their names are missing."""
    found = list(zip(names, train.emotions, strict=False))
    parts = [
        ("in no training sample", [name for name, count in found if count == 0]),
        ("in every training sample", [name for name, count in found if count == samples]),
    ]
    return [
        f"{', '.join(constant)}: {where}; nothing can be learned of an emotion that does not vary"
        for where, constant in parts
        if constant
    ]


def _classes(numbers: list[int]) -> str:
    """`class 4 is`, or `classes 1, 2, 3, ... (17 of them) are`."""
    if len(numbers) == 1:
        return f"class {numbers[0]} is"
    more = f", ... ({len(numbers)} of them)" if len(numbers) > _MAX_NAMED else ""
    return f"classes {', '.join(map(str, numbers[:_MAX_NAMED]))}{more} are"
