"""Evaluation of an ensemble: its metrics beside the mean of its members', and its uncertainty before and after the
calibration, which is fitted on the validation split alone.

Members are evaluated one after the other, so that the memory of one is enough.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from data_shards.format.schema import DatasetInfo
from data_shards.places import PlaceLike, to_place
from data_shards.progress import Progress
from data_shards.reading.index import ShardIndex
from data_shards.reading.reader import ShardReader
from dmd.checkpoint.select import Step
from dmd.checkpoint.state import check_fits
from dmd.data.loader import num_evaluation_batches
from dmd.data.targets import check_same_labels
from dmd.evaluation.evaluate import Evaluation, check_split, evaluate
from dmd.evaluation.trained_run import checkpoint_of, read_run, read_run_for, ready_model, shards_of
from dmd.inference.ensemble import (
    Calibration,
    DifferentWeights,
    Ensemble,
    check_distinct,
    check_encoder,
    check_members,
    encoder_for,
    ensemble_prediction,
    fit_value,
)
from dmd.kernels.backend import default_device
from dmd.metrics.calibration import coverage_curve, coverage_error, expected_calibration_error, reliability_curve
from dmd.metrics.sentiment import correlation
from dmd.system.modules import BATCH_SIZE
from dmd.system.trained_model import ModelCard, Prediction, config_of

CALIBRATION_SPLIT = "valid"
"""The split on which a calibration is fitted; never the test split."""
Member = tuple[ModelCard, Mapping[str, Tensor]]
"""Card and weights."""
Metrics = dict[str, dict[str, float]]
"""{head: {metric: value}}"""


def evaluate_ensemble(
    runs: Sequence[Path],
    *,
    data: PlaceLike | None,
    splits: Sequence[str],
    step: Step | None = None,
    text_encoder: str | None = None,
) -> dict[str, dict[str, Any]]:
    """Metrics of the ensemble of several runs on splits, {split: as `describe_ensemble` gives them}; every rank gets
    them.

    Args:
        data: shards; None: those of the trainings, which must be the same.
        step: which checkpoint of each; None: the best.
        text_encoder: see `TrainedModel`; of the members that name one.

    Raises:
        ValueError: as `dmd.evaluation.trained_run.evaluate_run`; a run that is named twice, or copied; runs that do
            not agree.
    """
    check_distinct(runs)
    if text_encoder is not None:  # before a minute's work; all checkpoints of a run have one text encoder
        check_encoder([read_run(run, "last")[0] for run in runs], text_encoder)
    with ShardReader(shards_of_all(runs, data)) as reader:
        info, cards, different = reader.index.info, list[ModelCard](), DifferentWeights()
        for split in splits:
            check_split(reader, split)

        def read(run: Path) -> Member:
            card, weights = read_run_for(run, info, step, data=data, text_encoder=text_encoder)
            cards.append(card)
            if len(cards) > 1:
                check_members([cards[0], card])
            different.add(card, weights)
            return card, weights

        found = evaluate_members(
            map(read, runs), reader, splits_for(reader, splits), len(runs), text_encoder=text_encoder
        )
    return {split: describe_ensemble(runs, cards, info, split, found) for split in splits}


def splits_for(reader: ShardReader, splits: Sequence[str]) -> list[str]:
    """The splits that the evaluation of an ensemble on some of them reads: those first."""
    there = reader.index.num_samples(CALIBRATION_SPLIT) > 0
    return list(dict.fromkeys([*splits, *([CALIBRATION_SPLIT] if there else [])]))


def shards_of_all(runs: Sequence[Path], data: PlaceLike | None) -> PlaceLike:
    """The shards to evaluate runs on; None: those of their trainings.

    Raises:
        ValueError: as `shards_of`, or runs of different shards.
    """
    first, *others = [to_place(shards_of(run, data)) for run in runs]
    if data is None:
        generation = ShardIndex.load(first).info.generation
        for run, place in zip(runs[1:], others, strict=True):
            if place != first and ShardIndex.load(place).info.generation != generation:
                raise ValueError(
                    f"{runs[0]} was trained on {first}, {run} on {place}, which hold other data; name the shards: "
                    "--data"
                )
    return first


def evaluate_members(
    members: Iterable[Member],
    reader: ShardReader,
    splits: Sequence[str],
    count: int,
    *,
    text_encoder: str | None = None,
) -> list[dict[str, Evaluation]]:
    """Each of `count` members on each split, as its training validates; {split: evaluation} of each member."""
    device, found = default_device(), list[dict[str, Evaluation]]()
    batches = count * sum(num_evaluation_batches(reader, split, BATCH_SIZE) for split in splits)
    with Progress(batches, "batches") as progress:
        for card, weights in members:
            encoder = encoder_for(card, text_encoder)
            model = ready_model(card, weights, device, reader.index.info, text_encoder=encoder)
            with model.running():
                found.append(
                    {
                        split: evaluate(
                            model.modules, reader, split, model.config, device=device, heartbeat=progress.advance
                        )
                        for split in splits
                    }
                )
            del model, weights  # before the next is read
    return found


@dataclass(frozen=True, kw_only=True)
class Validated:
    """What the validation split says of an ensemble."""

    calibration: Calibration
    metrics: dict[str, dict[str, float]]
    """{"ensemble", "members_mean": {metric: value}} of the fused head."""


def validate(members: Sequence[Member], data: PlaceLike, *, text_encoder: str | None = None) -> Validated:
    """Fit the calibration of an ensemble on the validation split of shards, and measure it there.

    Raises:
        ValueError: shards without that split, or that the members cannot read.
    """
    with ShardReader(data) as reader:
        info = reader.index.info
        check_split(reader, CALIBRATION_SPLIT)
        for card, _ in members:
            check_fits(card.data, info)
            check_same_labels(config_of(card), card.data, info)
        found = evaluate_members(members, reader, [CALIBRATION_SPLIT], len(members), text_encoder=text_encoder)
    valid = [evaluations[CALIBRATION_SPLIT] for evaluations in found]
    metrics = together(valid)[0].metrics()
    mean = mean_metrics(metrics, [one.metrics() for one in valid])
    return Validated(
        calibration=_calibration(valid, info),
        metrics={"ensemble": metrics["fused"], "members_mean": mean["fused"]},
    )


def calibrate(model: Ensemble, data: PlaceLike) -> Ensemble:
    """The same ensemble, whose predictions have an uncertainty, fitted on the validation split of shards.

    Args:
        model: what `dmd.load` gives for several runs.
        data: shards with a validation split, such as those of the trainings.

    Raises:
        ValueError: no ensemble; shards without a validation split, or that the members cannot read.
    """
    if not isinstance(model, Ensemble):
        raise ValueError(f"model is {model!r:.60}; give an ensemble: dmd.load([RUN, RUN])")
    members = [(member.card, member.modules.state_dict()) for member in model.members]
    return Ensemble(model.members, calibration=validate(members, data).calibration)


def together(evaluations: Sequence[Evaluation]) -> tuple[Evaluation, Prediction]:
    """The evaluation of an ensemble, of those of its members on one split; and its prediction, with the spread."""
    first = evaluations[0]
    prediction = ensemble_prediction(
        [Prediction(heads=one.predictions, edges={}, scoring=one.scoring) for one in evaluations]
    )
    return Evaluation(predictions=prediction.heads, labels=first.labels, scoring=first.scoring), prediction


def mean_metrics(of_ensemble: Mapping[str, Mapping[str, float]], members: Sequence[Metrics]) -> Metrics:
    """The mean over members of the metrics that an ensemble has."""
    return {
        head: {name: math.fsum(one[head][name] for one in members) / len(members) for name in values}
        for head, values in of_ensemble.items()
    }


def _calibration(evaluations: Sequence[Evaluation], info: DatasetInfo) -> Calibration:
    whole, prediction = together(evaluations)
    return Calibration(
        value=fit_value(prediction, whole.labels),
        data=info.name,
        generation=info.generation,
        samples=len(whole.labels),
    )


def describe_ensemble(
    runs: Sequence[Path],
    cards: Sequence[ModelCard],
    info: DatasetInfo,
    split: str,
    found: Sequence[Mapping[str, Evaluation]],
) -> dict[str, Any]:
    """What `dmd evaluate RUN RUN` writes as JSON.

    `metrics` are the ensemble's, `members` has those of each member, `members_mean` their mean and `gain` the
    difference. `calibration`, where there is a validation split, has the value of `Calibration` and, on the evaluated
    split before and after it, the curve (`coverage_curve`, `reliability_curve`) and its mean distance from the
    diagonal; of sentiments also Pearson's `correlation` of the spread with the absolute error there.

    Args:
        found: {split: evaluation} of each member, with the validation split where the shards have one.
    """
    own = [evaluations[split] for evaluations in found]
    whole, prediction = together(own)
    metrics, of_members = whole.metrics(), [one.metrics() for one in own]
    mean = mean_metrics(metrics, of_members)
    valid = [evaluations[CALIBRATION_SPLIT] for evaluations in found if CALIBRATION_SPLIT in evaluations]
    return {
        "data": info.name,
        "generation": info.generation,
        "split": split,
        "samples": len(whole.labels),
        "protocol": whole.scoring.protocol,
        "metrics": metrics,
        "members_mean": mean,
        "gain": {h: {name: metrics[h][name] - mean[h][name] for name in metrics[h]} for h in metrics},
        "members": [
            {"run": str(run), **checkpoint_of(card), "metrics": one}
            for run, card, one in zip(runs, cards, of_members, strict=True)
        ],
        "calibration": _described(_calibration(valid, info), prediction, whole.labels) if valid else None,
    }


def _described(calibration: Calibration, prediction: Prediction, labels: Tensor) -> dict[str, Any]:
    about: dict[str, Any] = {"fitted_on": CALIBRATION_SPLIT, "samples": calibration.samples}
    if prediction.scoring.kind == "regression":
        assert prediction.spread is not None, "it is that of an ensemble"
        error, before = prediction.heads["fused"] - labels, prediction.spread
        after = calibration.uncertainty(prediction)
        return {
            "scale": calibration.value,
            **about,
            "correlation": correlation(before.double(), error.abs().double()),
            "before": _curve(coverage_curve, coverage_error, error, before, names=("nominal", "observed")),
            "after": _curve(coverage_curve, coverage_error, error, after, names=("nominal", "observed")),
        }
    names, measure = ("confidence", "accuracy", "count"), expected_calibration_error
    before, after = prediction.probabilities, calibration.probabilities(prediction)
    return {
        "temperature": calibration.value,
        **about,
        "before": _curve(reliability_curve, measure, before, labels, names=names),
        "after": _curve(reliability_curve, measure, after, labels, names=names),
    }


def _curve(
    curve: Callable[[Tensor, Tensor], tuple[Tensor, ...]],
    measure: Callable[[Tensor, Tensor], float],
    values: Tensor,
    others: Tensor,
    *,
    names: Sequence[str],
) -> dict[str, Any]:
    columns = curve(values, others)
    return {"error": measure(values, others), **{n: column.tolist() for n, column in zip(names, columns, strict=True)}}
