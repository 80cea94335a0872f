"""Options of `dmd predict` that only some inputs take: another input with such an option is a mistake, not silence."""

from collections.abc import Mapping
from typing import Literal

from data_shards.places import Place
from dmd.inference.clips import are_clips
from dmd.inference.inputs import are_shards

Kind = Literal["clips", "features", "shards", "parts"]
"""`parts`: shards whose predictions become a directory."""
_NAMES: dict[Kind, str] = {
    "clips": "clips",
    "features": "a feature pickle or a table",
    "shards": "shards",
    "parts": "shards with a directory as --out",
}
_TAKEN_BY: dict[str, tuple[Kind, ...]] = {
    "split": ("features", "shards", "parts"),
    "nonfinite": ("features",),
    "samples_per_part": ("parts",),
    "transcript": ("clips",),
    "face_model": ("clips",),
    "tokenizer": ("clips", "features"),
    "word_vectors": ("clips", "features"),
}
"""Option -> the inputs for which it means something; all other options do for all."""


def kind_of(place: Place) -> Kind:
    """What an input is that is predicted into one file."""
    if not place.is_url and are_clips(place.path):
        return "clips"
    return "shards" if are_shards(place) else "features"


def check_options(given: Mapping[str, object], kind: Kind, place: Place) -> None:
    """Raise ValueError for an option that means nothing for an input.

    Args:
        given: values of options, None for those that were not given.
        place: the input, for the message.
    """
    for name, kinds in _TAKEN_BY.items():
        if given[name] is not None and kind not in kinds:
            *first, last = (_NAMES[taker] for taker in kinds)
            takers = f"{', '.join(first)} and {last}" if first else last
            raise ValueError(
                f"--{name.replace('_', '-')} is of {takers}, and {place} is read as {_NAMES[kind]}; leave it out"
            )
