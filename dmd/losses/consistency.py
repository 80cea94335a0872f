"""R-Drop: two passes of the same samples, with dropouts of their own, are to predict the same.

Liang et al., R-Drop: Regularized Dropout for Neural Networks, NeurIPS 2021 (https://arxiv.org/abs/2106.14448): the
objective is the mean of both passes' objectives, plus a weight times the distance of their predictions. The second pass
is part of the first one: its ghost batches follow those of the first, so a training makes as many passes as before.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from dmd.losses.ghost import sample_mean
from dmd.losses.model_objective import LossTerm
from dmd.losses.sharing import Sharing
from dmd.model.config import Kind

PASSES = 2


CONSISTENCY = LossTerm(
    name="consistency",
    title="consistency",
    weight="`objective.consistency`",
    about="distance of the fused predictions of two passes with dropouts of their own (R-Drop); only with this weight",
)
"""As logs, figures and the documentation call it; any model has it."""


def distance(first: Tensor, second: Tensor, kind: Kind) -> Tensor:
    """How far two predictions of the same samples are apart, [...].

    Sentiments: the squared difference. Classes: the symmetric Kullback-Leibler divergence, (KL(p | q) + KL(q | p)) / 2.
    Emotions: the mean over emotions of that of the two Bernoulli distributions.

    Args:
        first: sentiments [...], or logits [..., outputs].
        second: the same.
        kind: what they are.
    """
    if kind == "regression":
        return (first - second).square()
    if kind == "multilabel":
        return ((first.sigmoid() - second.sigmoid()) * (first - second)).mean(-1) / 2
    return ((first.softmax(-1) - second.softmax(-1)) * (first.log_softmax(-1) - second.log_softmax(-1))).sum(-1) / 2


def joined_terms(
    terms: Mapping[str, Tensor],
    prediction: Tensor,
    mask: Tensor,
    *,
    kind: Kind,
    weight: float,
    sharing: Sharing | None,
) -> dict[str, Tensor]:
    """The terms of G ghost batches from those of both passes, with `consistency` and `total`.

    Args:
        terms: {name: [2 G, ...]}, of the ghost batches of the first pass and then of the second.
        prediction: fused predictions [2 * G * P] or [2 * G * P, outputs] of the samples that this rank runs.
        mask: [G, S], 1 for a sample, 0 for padding.
        kind: what the predictions are.
        weight: of `consistency` in `total`.
        sharing: the ranks that share each ghost batch; None where this one has whole ones. Then a collective.

    Returns:
        {name: [G, ...]}.
    """
    own_mask = mask if sharing is None else sharing.own(mask)
    wide = prediction.to(torch.promote_types(prediction.dtype, torch.float32))
    first, second = wide.unflatten(0, (PASSES, *own_mask.shape)).unbind(0)  # [G, P, ...]
    distances = distance(first, second, kind)  # [G, P]
    if sharing is not None:
        (distances,) = sharing.gather([distances], mask.shape[1])
    joined = {name: term.unflatten(0, (PASSES, -1)).mean(0) for name, term in terms.items()}
    joined[CONSISTENCY.name] = sample_mean(distances, mask.to(distances.dtype))
    joined["total"] = joined["total"] + weight * joined[CONSISTENCY.name]
    return joined
