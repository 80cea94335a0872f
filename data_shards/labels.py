"""What the labels of a set mean: sentiments in [-3, 3] or class numbers, as the user declares, and what is doubtful.

Nothing is guessed. Labels that look like something else than sentiments in [-3, 3] are refused until somebody says
what they are: `--classes`, `--binary`, or `--label-scale` with the factor that brings them to [-3, 3], which is 1 for
sentiments that are right as they are.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

Task = Literal["regression", "classes"]
Reading = Literal["sentiments", "classes", "binary"]
CLASS_LIMIT = 1000
LABEL_LIMIT = 3.0
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

    def __post_init__(self) -> None:
        ends = [self.min, self.max]
        numbers = all(type(end) is float and math.isfinite(end) for end in ends)
        counted = all(type(count) is int and 0 <= count < 1 << 62 for count in self.classes)
        if not (numbers or ends == [None, None]) or not counted or len(self.classes) > CLASS_LIMIT:
            raise ValueError("the index's facts of labels are damaged; rebuild with `dmd shard`")

    def __or__(self, other: "LabelFacts") -> "LabelFacts":
        """Of the samples of both."""
        lows, highs = ([v for v in pair if v is not None] for pair in ((self.min, other.min), (self.max, other.max)))
        longest = max(len(self.classes), len(other.classes))
        padded = ((*facts.classes, *[0] * (longest - len(facts.classes))) for facts in (self, other))
        return LabelFacts(
            min=min(lows, default=None), max=max(highs, default=None), whole=self.whole and other.whole,
            classes=tuple(map(sum, zip(*padded, strict=True))),
        )  # fmt: skip

    @property
    def occurring(self) -> list[int]:
        """The class numbers that occur."""
        return [number for number, count in enumerate(self.classes) if count]

    def words(self) -> str:
        """The facts for people."""
        words = [] if self.min is None else [f"sentiments {self.min:g} to {self.max:g}"]
        if self.classes:
            words.append("classes " + ", ".join(f"{number} ({self.classes[number]})" for number in self.occurring))
        return ", ".join(words)

    @classmethod
    def of(cls, labels: ArrayLike, classes: ArrayLike) -> "LabelFacts":
        """Facts of labels [N], as float32 as they are stored (NaN: none), and of class numbers [N] or [0]."""
        values = np.asarray(labels, dtype=np.float32)
        known = values[~np.isnan(values)]
        numbers = np.asarray(classes, dtype=np.int64)
        return cls(
            min=float(known.min()) if len(known) else None, max=float(known.max()) if len(known) else None,
            whole=bool((known == np.floor(known)).all()), classes=tuple(np.bincount(numbers).tolist()),
        )  # fmt: skip

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> "LabelFacts":
        """What `asdict` gave, after JSON."""
        return cls(**{**fields, "classes": tuple(fields["classes"])})


@dataclass(frozen=True, kw_only=True)
class Labels:
    """What a user says that the labels of a source are."""

    reading: Reading = "sentiments"
    scale: float | None = None
    """Factor that brings sentiments to [-3, 3]; None: nothing was said."""

    def __post_init__(self) -> None:
        if self.scale is not None and not (math.isfinite(self.scale) and self.scale > 0):
            raise ValueError(f"--label-scale {self.scale} is no factor; give a number above 0, such as 3 for CH-SIMS")
        if self.scale is not None and self.reading != "sentiments":
            raise ValueError(f"--label-scale is for sentiments, not with --{self.reading}; give one of them")

    @property
    def factor(self) -> float:
        """What sentiments are multiplied with."""
        return 1.0 if self.scale is None else self.scale

    def read(self, label: float) -> tuple[float, int | None]:
        """Sentiment and class number of a label: (sentiment, None), or (NaN, number)."""
        if math.isnan(label):
            raise ValueError("its label is not a number (NaN); leave out samples without a label")
        if self.reading == "sentiments":
            return label * self.factor, None
        if self.reading == "binary" and label not in (0, 1):
            raise ValueError(
                f"label {label:g} is neither 0 nor 1, which --binary means; for -1 and +1 use --label-scale 1 and "
                "model.task=2, for other numbers --classes"
            )
        if not (label >= 0 and float(label).is_integer() and label < CLASS_LIMIT):
            raise ValueError(f"label {label:g} is no class number from 0 to {CLASS_LIMIT - 1}; leave out --classes")
        return math.nan, int(label)


def check_meaning(splits: dict[str, LabelFacts], labels: Labels, name: str) -> list[str]:
    """Refuse labels that are doubtful or teach nothing; what is left to warn of, in words.

    Raises:
        ValueError: a training split with one label or one class; labels that look like class numbers or another scale
            and were not declared.
    """
    train = splits.get("train")
    if train is not None:
        _check_varies(train, name)
    everything = LabelFacts()
    for facts in splits.values():
        everything |= facts
    if everything.min is not None and labels.scale is None:
        _check_scale(everything, name)
    unseen = [n for n in everything.occurring if train and train.classes and n not in train.occurring]
    gaps = [n for n in range(len(everything.classes)) if n not in everything.occurring]
    warnings = [f"class {n} is in no training sample" for n in unseen]
    return [*warnings, *(f"class {n} never occurs; number the classes from 0 without gaps" for n in gaps)]


def _check_varies(train: LabelFacts, name: str) -> None:
    if train.min != train.max or len(train.occurring) > 1:
        return
    what = f"class {train.occurring[0]}" if train.min is None else f"label {train.min:g}"
    raise ValueError(
        f"{name}: every sample of train has the {what}, from which nothing can be learned; check the field that the "
        "labels come from, or name the split otherwise if it is not to train on"
    )


def _check_scale(facts: LabelFacts, name: str) -> None:
    assert facts.min is not None
    assert facts.max is not None
    where = f"{name}: the labels lie in [{facts.min:g}, {facts.max:g}]"
    if facts.min == facts.max:
        return
    if facts.whole and facts.min >= 0:
        kind = "0 and 1" if facts.max == 1 else "whole numbers and never negative"
        raise ValueError(f"{where}, all {kind}: class numbers rather than sentiments; say what they are: {_DECLARE}")
    if max(abs(facts.min), abs(facts.max)) <= 1:
        signs = " (with model.task=3 for negative, neutral, positive)" if facts.whole else ""
        raise ValueError(
            f"{where}, a third of the scale [-3, 3], as CH-SIMS has them; multiply them with --label-scale 3, or "
            f"keep them with --label-scale 1{signs}"
        )
