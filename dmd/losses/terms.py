"""The terms of the objective, one row each. Whatever lists terms reads this table: the objective, the order of the
Triton kernels, the report's figure of losses, the documentation.

A new term is its function and a row; its numbers are then in the log, in TensorBoard and in the report under its name.
Triton kernels do not know it: where a term has no row of theirs, the objective runs in PyTorch.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Literal

import torch
from torch import Tensor

from dmd.kernels.interface import LossKernels
from dmd.losses.config import ObjectiveConfig
from dmd.losses.decoupling import Compared, mean_squared, orthogonality
from dmd.losses.distillation import logit_distillation, prior_regulariser, representation_distillation
from dmd.losses.margin import margin_loss
from dmd.losses.model_objective import LossTerm, task_term, weighted_mean
from dmd.losses.task import task_loss
from dmd.model.config import MODALITIES, Kind
from dmd.model.dmd import HEADS, SampleOutput

Part = Literal["task", "decoupling", "relation", "distillation", "regulariser"]
"""Where in the weighted sum a term stands (`dmd.losses.objective.Objective.weighted_sum`):
task: as it is;
decoupling: times `objective.decoupling_weight`, nothing without `model.decoupling`;
relation: times `objective.decoupling_weight` and `objective.gamma`, nothing without `model.decoupling`;
distillation, regulariser: times `objective.distillation_weight`, nothing without the distillation of its space."""
_WEIGHTS: dict[Part, str] = {
    "task": "1",
    "decoupling": "`objective.decoupling_weight`",
    "relation": "`objective.decoupling_weight` × `objective.gamma`",
    "distillation": "`objective.distillation_weight`",
    "regulariser": "`objective.distillation_weight`",
}
TRITON_HEADS = 8
"""Heads whose task losses the Triton kernels compute: the first ones."""


@dataclass(frozen=True, kw_only=True)
class Distilled:
    """What the terms of one space's graph distillation read."""

    edges: Tensor
    """[G, S, 6], in the order of `dmd.model.graph.PAIRS`."""
    prior: Tensor
    """[6]"""
    logits: dict[str, Tensor]
    """{m: [G, S]}, of a classifier [G, S, classes], of emotions [G, S, L]."""
    reprs: dict[str, Tensor]
    """{m: [G, S, n]}"""


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What terms read of G ghost batches of S samples."""

    config: ObjectiveConfig
    output: SampleOutput
    """With [G, S, ...] in the place of [B, ...], in float32 at least."""
    compared: Compared
    """What is left of the decoupled features, which are too large to be gathered where ranks share a ghost batch: a
    term that needs something else of them adds it there."""
    kind: Kind
    """What the heads predict."""
    labels: Tensor
    """[G, S], sentiments or class numbers; [G, S, L], emotions as 0 and 1."""
    mask: Tensor
    """[G, S], 1 for a sample, 0 for padding."""
    label_weights: Tensor | None
    """[G, S], of the task losses of samples; None: 1."""
    kernels: LossKernels | None
    """Of the backend, which the margin loss may use; None: PyTorch."""
    distilled: dict[str, Distilled] = field(default_factory=dict)
    """By space; a term of a space finds its own."""


@dataclass(frozen=True, kw_only=True)
class Term:
    """A term of the objective."""

    name: str
    """In the log: `train/NAME`."""
    title: str
    """In figures."""
    about: str
    """What it is, for the documentation."""
    part: Part
    function: Callable[[Inputs], Tensor]
    """The term of each ghost batch before weighting, [G]."""
    space: Literal["homo", "hetero"] | None = None
    """Whose graph distillation it belongs to."""
    triton: int | None = None
    """Its row in the result of the Triton kernels; None: they do not know it."""

    @property
    def described(self) -> LossTerm:
        """What people are told of it."""
        return LossTerm(name=self.name, title=self.title, about=self.about, weight=_WEIGHTS[self.part])

    def __post_init__(self) -> None:
        assert (self.space is not None) == (self.part in ("distillation", "regulariser")), f"{self.name} is not summed"


def total(terms: Iterable[Tensor]) -> Tensor:
    """Sum of tensors of one shape."""
    return torch.stack(list(terms)).sum(0)


def _task(inputs: Inputs, *, head: str) -> Tensor:
    losses = task_loss(inputs.output.predictions[head], inputs.labels, inputs.kind)
    return weighted_mean(losses, inputs.mask, inputs.label_weights)


def _reconstruction(inputs: Inputs) -> Tensor:
    return mean_squared(inputs.compared.reconstruction, inputs.mask)


def _cycle(inputs: Inputs) -> Tensor:
    return mean_squared(inputs.compared.cycle, inputs.mask)


def _orthogonality(inputs: Inputs) -> Tensor:
    return orthogonality(inputs.compared, inputs.mask)


def _margin(inputs: Inputs) -> Tensor:
    config = inputs.config
    return margin_loss(
        torch.stack([inputs.output.margin_features[m] for m in MODALITIES], 1),  # [G, 3, S, d]
        inputs.labels,
        inputs.mask,
        constant=config.margin_constant if config.margin == "constant" else None,
        smoothing=config.margin_smoothing,
        kernels=inputs.kernels,
    )


def _logit(inputs: Inputs, *, space: str) -> Tensor:
    own = inputs.distilled[space]
    return logit_distillation(own.edges, own.prior, own.logits, inputs.mask, kind=inputs.kind)


def _regulariser(inputs: Inputs, *, space: str) -> Tensor:
    own = inputs.distilled[space]
    return prior_regulariser(own.edges, own.prior, inputs.mask) * (inputs.config.prior != "none")


def _representation(inputs: Inputs, *, space: str) -> Tensor:
    own = inputs.distilled[space]
    return representation_distillation(own.edges, own.prior, own.reprs, inputs.mask)


_ROWS = (
    Term(
        name="reconstruction",
        title="reconstruction",
        about="features against what the decoders make of them (eq. 2)",
        part="decoupling",
        function=_reconstruction,
        triton=13,
    ),
    Term(
        name="cycle",
        title="cycle",
        about="heterogeneous features against those of the reconstruction (eq. 3)",
        part="decoupling",
        function=_cycle,
        triton=14,
    ),
    Term(
        name="orthogonality",
        title="orthogonality",
        about="cosine of heterogeneous and homogeneous features (eq. 5)",
        part="relation",
        function=_orthogonality,
        triton=15,
    ),
    Term(
        name="margin",
        title="margin",
        about="triplets of homogeneous features of equal and of other labels (eq. 4)",
        part="relation",
        function=_margin,
        triton=16,
    ),
    Term(
        name="homo_logit",
        title="homo logit",
        about="HomoGD: distance of the logits of student and teacher (eq. 9)",
        part="distillation",
        space="homo",
        function=partial(_logit, space="homo"),
        triton=8,
    ),
    Term(
        name="homo_regulariser",
        title="homo regulariser",
        about="HomoGD: distance of the edges from their prior (published code)",
        part="regulariser",
        space="homo",
        function=partial(_regulariser, space="homo"),
        triton=9,
    ),
    Term(
        name="hetero_logit",
        title="hetero logit",
        about="HeteroGD: distance of the logits of student and teacher (eq. 9)",
        part="distillation",
        space="hetero",
        function=partial(_logit, space="hetero"),
        triton=10,
    ),
    Term(
        name="hetero_regulariser",
        title="hetero regulariser",
        about="HeteroGD: distance of the edges from their prior (published code)",
        part="regulariser",
        space="hetero",
        function=partial(_regulariser, space="hetero"),
        triton=11,
    ),
    # The published code computes the next one for HomoGD too and leaves it out of its sum.
    Term(
        name="hetero_representation",
        title="hetero representation",
        about="HeteroGD: cosine of the representations of student and teacher (published code)",
        part="distillation",
        space="hetero",
        function=partial(_representation, space="hetero"),
        triton=12,
    ),
)
TERMS: dict[str, Term] = {row.name: row for row in _ROWS}
"""The terms by name, without the task losses: those are one for each row of `dmd.model.dmd.HEADS`."""


def all_terms() -> tuple[Term, ...]:
    """Every term, in the order of the log."""
    return (*(_task_row(head, number) for number, head in enumerate(HEADS)), *TERMS.values())


@cache
def _task_row(head: str, number: int) -> Term:
    """The task loss of a row of `HEADS`, made once: each pass asks for all terms."""
    described = task_term(head)
    return Term(
        name=described.name,
        title=described.title,
        about=described.about,
        part="task",
        function=partial(_task, head=head),
        triton=number if number < TRITON_HEADS else None,
    )


def triton_order() -> list[str]:
    """The names of the terms that Triton kernels know, in the order of their result's rows."""
    rows = {term.triton: term.name for term in all_terms() if term.triton is not None}
    return [rows[number] for number in range(len(rows))]


def all_in_triton() -> bool:
    """Whether Triton kernels know every term."""
    return all(term.triton is not None for term in all_terms())
