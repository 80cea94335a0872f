"""Checks of the labels of a whole set: what looks like something else than was declared, and what cannot be learned."""

from collections.abc import Sequence

from data_shards.labels import LABEL_LIMIT, LabelFacts, Labels, Protocol, are_sentiments, to_source_units

_MAX_NAMED = 8
"""Class numbers that a message names."""
_DECLARE = (
    "--classes (class numbers), --binary (0 and 1), --label-range LOW HIGH (sentiments on another scale, such as 1 5), "
    "or --label-scale 1 (sentiments in [-3, 3] as they are)"
)
_HOLDS: dict[Protocol, tuple[str, ...]] = {
    "mosi": ("sentiments",),
    "sims": ("sentiments",),
    "classes": ("classes",),
    "iemocap": ("classes", "emotions"),
    "meld": ("classes",),
    "emotions": ("emotions",),
}
"""What a protocol is about: any of these."""
_SIMS_SCALE = LABEL_LIMIT
"""Factor that brings the labels of CH-SIMS, in [-1, 1], to ours."""


def check_labels(splits: dict[str, LabelFacts], labels: Labels, name: str, *, training_samples: int) -> list[str]:
    """Reject labels that are ambiguous, unknown to their protocol, or all equal in the training split; return warnings
    about odd ones.

    Args:
        training_samples: how many samples the training split has.

    Raises:
        ValueError: a training split with one label, one class or the same emotions everywhere; labels that look like
            class numbers or another scale and were not declared; a protocol of other labels.
    """
    train = splits.get("train")
    if train is not None:
        _check_varies(train, labels, name, samples=training_samples)
    everything = LabelFacts()
    for facts in splits.values():
        everything |= facts
    _check_protocol(everything, labels, name)
    if labels.is_scale_declared and everything.min is None:
        raise ValueError(f"{name}: {labels.scale_option} is of sentiments, but samples have none; leave it out")
    problem = "" if labels.is_scale_declared else _ambiguity(everything)
    if problem:
        raise ValueError(f"{name}: {problem}")
    return [
        *_warn_of_sentiments(train or LabelFacts(), labels),
        *_warn_of_classes(everything, train, labels.class_names),
        *_warn_of_emotions(train or LabelFacts(), labels.emotions, samples=training_samples),
    ]


def needs_declaration(labels: Sequence[float]) -> bool:
    """Whether `dmd shard` rejects sentiments until the user says what they are."""
    return not are_sentiments(labels).all() or bool(_ambiguity(LabelFacts.of(labels, ())))


def _check_varies(train: LabelFacts, labels: Labels, name: str, *, samples: int) -> None:
    if train.min != train.max or len(train.occurring) > 1 or any(0 < count < samples for count in train.emotions):
        return
    if train.min is not None:
        what = f"label {to_source_units(train.min, labels.factor, labels.offset):g}"
    else:
        what = f"class {train.occurring[0]}" if train.classes else "same emotions"
    raise ValueError(
        f"{name}: every sample of train has the {what}, from which nothing can be learned; check the field that the "
        "labels come from, or name the split otherwise if it is not to train on"
    )


def _check_protocol(everything: LabelFacts, labels: Labels, name: str) -> None:
    if not labels.protocol:
        return
    held = {"sentiments": everything.min is not None, "classes": everything.classes, "emotions": everything.emotions}
    needed = _HOLDS[labels.protocol]
    if not any(held[kind] for kind in needed):
        there = " and ".join(kind for kind, is_held in held.items() if is_held)
        about = " or ".join(needed)
        raise ValueError(
            f"{name}: --protocol {labels.protocol} is about {about}, but samples have {there}; leave it out"
        )
    if labels.protocol == "sims" and (labels.factor, labels.offset) != (_SIMS_SCALE, 0.0):
        raise ValueError(
            f"{name}: --protocol sims counts in bins of CH-SIMS, whose labels lie in [-1, 1]; say --label-range -1 1"
        )


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
    shares = "" if facts.min < 0 else "; where 0.5 is neutral, say --label-range 0 1"
    return (
        f"{range_text}, a third of the scale [-3, 3], as CH-SIMS has them; say --label-range -1 1 (or --label-scale 3, "
        f"which is the same), or keep them with --label-scale 1{signs}{shares}"
    )


def _warn_of_sentiments(train: LabelFacts, labels: Labels) -> list[str]:
    """Warnings about the sentiments of the training split, where the whole set or the user's declaration is clear."""
    if train.min is None or train.max is None:
        return []
    if train.min == train.max:
        sentiment = to_source_units(train.min, labels.factor, labels.offset)
        return [f"every training sample has the sentiment {sentiment:g}, from which only classes can be learned"]
    warnings = []
    if not labels.is_scale_declared and (problem := _ambiguity(train)):
        warnings.append(f"of train alone, other than of the other splits, {problem}")
    elif labels.factor != 1 and max(abs(train.min), abs(train.max)) <= 1:
        warnings.append(
            f"after {labels.scale_option} the labels lie in [{train.min:g}, {train.max:g}], a third of the "
            "scale [-3, 3]; check it"
        )
    if train.min >= 0 or train.max <= 0:
        sign = "negative" if train.min >= 0 else "positive"
        low, high = (to_source_units(end, labels.factor, labels.offset) for end in (train.min, train.max))
        relation = sign if labels.offset == 0 else f"{'below' if train.min >= 0 else 'above'} {labels.offset:g}"
        warnings.append(
            f"no training label is {relation} (they lie in [{low:g}, {high:g}]), but {labels.offset:g} is taken for "
            "neutral in Acc2, F1 and model.task; if something else is neutral here, give the ends of the scale with "
            "--label-range"
        )
    return warnings


def _warn_of_classes(everything: LabelFacts, train: LabelFacts | None, names: Sequence[str]) -> list[str]:
    """Warnings about class numbers."""
    warnings = []
    if train and train.min != train.max and len(train.occurring) == 1:
        warnings.append(f"every training sample has class {train.occurring[0]}; data.classes=stored can learn nothing")
    unseen = [n for n in everything.occurring if train and train.classes and n not in train.occurring]
    known = max(len(everything.classes), len(names)) if everything.classes else 0
    gaps = [n for n in range(known) if n not in everything.occurring]
    if unseen:
        warnings.append(f"{_classes(unseen, names)} in no training sample")
    if gaps:
        fix = "leave out names of classes that are not there" if names else "number the classes from 0 without gaps"
        warnings.append(f"{_classes(gaps, names)} in no sample at all; {fix}")
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


def _classes(numbers: Sequence[int], names: Sequence[str]) -> str:
    """`class 4 is`, or `classes 1, 2, 3, ... (17 of them) are`; by name where they have one."""
    known = [names[number] if names else str(number) for number in numbers]
    if len(known) == 1:
        return f"class {known[0]} is"
    more = f", ... ({len(known)} of them)" if len(known) > _MAX_NAMED else ""
    return f"classes {', '.join(known[:_MAX_NAMED])}{more} are"
