"""The loss terms of a pass as few tensors: the host handles two, not some twenty."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from dmd.model.graph import PAIRS

TOTAL = "total"
EDGES = "edges_"
"""How the names of mean edges begin, [G, 6] of each space; all other terms are [G]."""
EDGE_NAMES = tuple(f"{to}_from_{source}" for to, source in PAIRS)


class PassTerms(NamedTuple):
    """What a training's pass gives of G ghost batches."""

    names: tuple[str, ...]
    """Of the rows: `total`, each other term, `edges_SPACE/TO_from_SOURCE`."""
    total: Tensor
    """[G], the objective; it alone has a gradient."""
    rows: Tensor
    """[names, G]"""


def pass_terms(terms: Mapping[str, Tensor]) -> PassTerms:
    """Terms {name: [G]} and mean edges {name: [G, 6]}, as `ModelObjective.forward` gives them, in one tensor."""
    single = [TOTAL, *(name for name in terms if name != TOTAL and not name.startswith(EDGES))]
    spaces = [name for name in terms if name.startswith(EDGES)]
    names = (*single, *(f"{space}/{edge}" for space in spaces for edge in EDGE_NAMES))
    with torch.no_grad():
        rows = torch.cat([torch.stack([terms[name] for name in single]), *(terms[name].T for name in spaces)])
    return PassTerms(names, terms[TOTAL], rows)


def mean_edges(values: Mapping[str, float]) -> dict[str, Tensor]:
    """{space: [6]} of a step's numbers by the names of its rows."""
    spaces = dict.fromkeys(name.split("/")[0] for name in values if name.startswith(EDGES))
    return {
        space.removeprefix(EDGES): torch.tensor([values[f"{space}/{edge}"] for edge in EDGE_NAMES]) for space in spaces
    }
