"""Several trained models as one: a deep ensemble (Lakshminarayanan et al., NeurIPS 2017).

    model = dmd.load(["runs/seed_1", "runs/seed_2", "runs/seed_3"])      # or the directory of an exported ensemble
    result = model.predict(text=text, audio=audio, vision=vision)
    result.sentiment, result.spread                                      # [N], [N]
    model.calibrated("shards/mosi").predict(...).uncertainty             # [N]

A sentiment is the mean of the members' sentiments; a probability of a class or an emotion is the mean of theirs. How
far the members are apart is the spread. Its size says little of the error, since it leaves out what all members have in
common. So `Calibration` holds one number, fitted on the validation split, that makes an uncertainty of it
(`dmd.metrics.calibration`). Whether a larger spread belongs to a larger error, an evaluation says.

Results do not depend on the order of the members: they are sorted before they are added, in float64.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor

from data_shards.sources.mmsa import Nonfinite
from dmd.checkpoint.writer import weights_digest
from dmd.config import Config
from dmd.inference.clips import check_made_alike
from dmd.metrics import Scoring
from dmd.metrics.calibration import fit_scale, fit_temperature
from dmd.metrics.emotions import EVEN
from dmd.model.config import Kind
from dmd.system.input_arrays import Inputs
from dmd.system.trained_model import ModelCard, Prediction, TrainedModel, config_of, fitted_batches, join

FEWEST, MOST = 2, 99
"""Members of an ensemble."""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What makes an uncertainty of an ensemble, fitted on a validation split; plain values, for JSON."""

    value: float
    """Of sentiments the factor of the spread (`fit_scale`), of classes and emotions the temperature
    (`fit_temperature`)."""
    data: str
    """Name of the shards."""
    generation: str
    samples: int

    def uncertainty(self, prediction: Prediction) -> Tensor:
        """See `Prediction.uncertainty`; of the prediction of an ensemble."""
        if prediction.scoring.kind == "regression":
            assert prediction.spread is not None, "it is the prediction of an ensemble"
            return prediction.spread * self.value
        probabilities = self.probabilities(prediction)
        if prediction.scoring.kind == "classes":
            return (1 - probabilities.amax(-1)).float()
        return torch.where(probabilities > EVEN, 1 - probabilities, probabilities).float()

    def probabilities(self, prediction: Prediction) -> Tensor:
        """Those of classes or emotions by logits that are divided by the temperature, [N, outputs] float64."""
        return probabilities_at(prediction, self.value)


def probabilities_at(prediction: Prediction, temperature: float | Tensor) -> Tensor:
    """Probabilities of classes or emotions by logits that are divided by a temperature, or by one of each sample
    [N, 1]: [N, outputs] float64."""
    logits = prediction.heads["fused"].double() / temperature
    return logits.softmax(-1) if prediction.scoring.kind == "classes" else logits.sigmoid()


def fit_value(prediction: Prediction, labels: Tensor) -> float:
    """The number of a `Calibration`, of an ensemble's predictions of labelled samples; of classes and emotions also of
    one model's.

    Args:
        labels: sentiments [N] in the units of the source, class numbers [N], or emotions [N, L].
    """
    if prediction.scoring.kind == "regression":
        assert prediction.spread is not None, "it is the prediction of an ensemble"
        return fit_scale(prediction.heads["fused"] - labels, prediction.spread)
    return fit_temperature(prediction.heads["fused"], labels)


def ensemble_prediction(members: Sequence[Prediction]) -> Prediction:
    """The prediction of an ensemble, of those of its members for the same N samples, with its spread.

    Heads and GD-Units are those that all members have. Heads of classes and emotions are logits of the mean
    probabilities.

    Raises:
        ValueError: fewer than two members, other samples, or answers that do not mean the same.
    """
    if len(members) < FEWEST:
        raise ValueError(f"an ensemble of {len(members)} members; give at least {FEWEST}")
    first = members[0]
    for member in members[1:]:
        if member.scoring != first.scoring:
            raise ValueError(
                f"members answer {first.scoring} and {member.scoring}; give models of one task and one set of labels"
            )
    counts = sorted({len(member.heads["fused"]) for member in members})
    if len(counts) > 1:
        raise ValueError(f"members predict {counts[0]} and {counts[-1]} samples; give predictions of the same ones")
    kind = first.scoring.kind
    return Prediction(
        heads={
            head: mean_answers([member.heads[head] for member in members], kind)
            for head in first.heads
            if all(head in member.heads for member in members)
        },
        edges={
            space: _mean(_sorted([member.edges[space] for member in members])).float()
            for space in first.edges
            if all(space in member.edges for member in members)
        },
        scoring=first.scoring,
        spread=spread_of([member.heads["fused"] for member in members], kind),
    )


def mean_answers(members: Sequence[Tensor], kind: Kind) -> Tensor:
    """What a head of an ensemble answers: the mean of sentiments [N], or logits [N, outputs] of the mean probabilities;
    of the members' type."""
    if kind == "regression":
        return _mean(_sorted(members)).to(members[0].dtype)
    if kind == "classes":
        return _log_mean([logits.double().log_softmax(-1) for logits in members]).to(members[0].dtype)
    present = _log_mean([F.logsigmoid(logits.double()) for logits in members])
    absent = _log_mean([F.logsigmoid(-logits.double()) for logits in members])
    return (present - absent).to(members[0].dtype)


def spread_of(members: Sequence[Tensor], kind: Kind) -> Tensor:
    """Standard deviation (n - 1) over the members of what a head says: sentiments [N], or probabilities [N, outputs];
    of the members' type, 0 where all are equal."""
    if kind == "regression":
        values = _sorted(members)
    elif kind == "classes":
        values = _sorted([logits.double().softmax(-1) for logits in members])
    else:
        values = _sorted([logits.double().sigmoid() for logits in members])
    mean = _mean(values)
    variance = _folded([(value - mean).square() for value in values], torch.add) / (len(values) - 1)
    return variance.sqrt().masked_fill(values[0] == values[-1], 0.0).to(members[0].dtype)


def _sorted(members: Sequence[Tensor]) -> list[Tensor]:
    """The members' values in float64, the smallest of each place first."""
    return list(torch.stack([member.double() for member in members]).sort(0).values)


def _mean(values: Sequence[Tensor]) -> Tensor:
    return _folded(values, torch.add) / len(values)


def _log_mean(logarithms: Sequence[Tensor]) -> Tensor:
    """Logarithm of the mean of values that are given by their logarithms."""
    return _folded(_sorted(logarithms), torch.logaddexp) - math.log(len(logarithms))


def _folded(values: Sequence[Tensor], add: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """One after the other, so that digits depend on nothing but the values."""
    total = values[0]
    for value in values[1:]:
        total = add(total, value)
    return total


class Ensemble:
    """Trained models that answer together; what `TrainedModel` has, but for what belongs to one network.

    Args:
        members: models in evaluation mode, of any config, that read the same features and learn the same labels.
        calibration: what makes an uncertainty of the spread; None: predictions have none.

    Raises:
        ValueError: fewer than two members or more than 99, members that do not agree, or two of the same weights.
    """

    def __init__(self, members: Sequence[TrainedModel], *, calibration: Calibration | None = None) -> None:
        check_members([member.card for member in members])
        different = DifferentWeights()
        for member in members:
            different.add(member.card, member.modules.state_dict())
        self.members = tuple(members)
        self.calibration = calibration
        self.card: ModelCard = members[0].card
        """That of the first member; its data facts are those of all."""
        self.config: Config = members[0].config
        """That of the first member."""
        self.device: torch.device = members[0].device

    @property
    def scoring(self) -> Scoring:
        """What the answers mean."""
        return self.members[0].scoring

    def answer(self, inputs: Inputs) -> Prediction:
        """The predictions for a batch, with their spread; and their uncertainty, where the ensemble is calibrated."""
        found = ensemble_prediction([member.answer(inputs) for member in self.members])
        if self.calibration is None:
            return found
        return replace(found, uncertainty=self.calibration.uncertainty(found))

    def predict(
        self, *, text: Any = None, audio: Any = None, vision: Any = None, nonfinite: Nonfinite = "refuse"
    ) -> Prediction:
        """Predict N samples; arguments and errors are those of `TrainedModel.predict`."""
        batches = fitted_batches(self.card, {"text": text, "audio": audio, "vision": vision}, nonfinite)
        return join([self.answer(inputs) for inputs in batches])

    def features(self, **given: Any) -> NoReturn:
        """Raise ValueError: members have a space each, whose mean says nothing."""
        raise ValueError(
            f"an ensemble of {len(self.members)} has no one representation; ask a member: "
            "model.members[0].features(...)"
        )

    def __repr__(self) -> str:
        number = "uncalibrated" if self.calibration is None else f"calibrated by {self.calibration.value:.3g}"
        members = "".join(f"\n  {member!r}" for member in self.members)
        return f"Ensemble({len(self.members)} members, {number}:{members})"


def check_distinct(paths: Sequence[Path]) -> None:
    """Raise ValueError where a path is named twice."""
    seen: set[Path] = set()
    for path in paths:
        resolved = path.resolve()
        if resolved in seen:
            raise ValueError(f"{path} is named twice; name each run once, an ensemble is of different ones")
        seen.add(resolved)


class DifferentWeights:
    """Compares the weights of members, which are added one by one, without keeping them."""

    def __init__(self) -> None:
        self._cards: dict[str, ModelCard] = {}

    def add(self, card: ModelCard, weights: Mapping[str, Tensor]) -> None:
        """Raise ValueError where a member before has the very same weights: a copy of its run."""
        digest = weights_digest(weights)
        if digest in self._cards:
            raise ValueError(
                f"{name_of(self._cards[digest])} and {name_of(card)} have the same weights; name each model once"
            )
        self._cards[digest] = card


def encoder_for(card: ModelCard, text_encoder: str | None) -> str | None:
    """Of a text encoder's weights that are named for an ensemble, those of a member: None where it holds all itself."""
    return None if card.text_base is None else text_encoder


def check_encoder(cards: Sequence[ModelCard], text_encoder: str | None) -> None:
    """Raise ValueError where a text encoder's weights are named and no member needs them."""
    if text_encoder is not None and all(card.text_base is None for card in cards):
        raise ValueError(f"the text encoder {text_encoder!r} was named, but the members hold all their weights")


def check_members(cards: Sequence[ModelCard]) -> None:
    """Raise ValueError unless there are several models that read the same features and learn the same labels."""
    if len(cards) < FEWEST:
        raise ValueError(f"an ensemble of {len(cards)} members; give at least {FEWEST}")
    if len(cards) > MOST:
        raise ValueError(f"an ensemble of {len(cards)} members; give at most {MOST}")
    first = cards[0]
    for other in cards[1:]:
        theirs = _facts(other)
        for what, ours in _facts(first).items():
            if ours != theirs[what]:
                raise ValueError(
                    f"{name_of(first)} has {what} {ours}, {name_of(other)} has {theirs[what]}; members of an ensemble "
                    "read the same features and learn the same labels: leave one out"
                )
        check_made_alike(first, other.data.get("extraction") or {}, name_of(other))


def name_of(card: ModelCard) -> str:
    """What messages call a model: its run, and which checkpoint."""
    steps = ", ".join(map(str, card.averaged))
    chosen = f"mean of steps {steps}" if steps else f"step {card.source.get('step', 'unknown')}"
    return f"{card.source.get('run', 'a model')} ({chosen})"


def _facts(card: ModelCard) -> dict[str, object]:
    """What members must have in common, by the name that a message gives it."""
    data, config, encoder = card.data, config_of(card), card.text_encoder or {}
    tokenizer = data.get("tokenizer") or {}
    return {
        "text_kind": data["text_kind"],
        "dims": data["dims"],
        "lengths": data["lengths"],
        "the tokenizer or word vectors": tokenizer.get("digest"),
        "token ids in the text encoder": (encoder.get("vocab_size"), encoder.get("pad_token_id")),
        "model.task": config.model.task,
        "data.classes": config.data.classes,
        "label_scale": float(data.get("label_scale", 1.0)),
        "label_offset": float(data.get("label_offset", 0.0)),
        "protocol": data.get("protocol") or "",
        "class names": list(data.get("class_names") or ()),
        "emotions": list(data.get("emotions") or ()),
    }
