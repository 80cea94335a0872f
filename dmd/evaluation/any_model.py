"""`dmd.evaluate`: the metrics of a run, of a model, or of an ensemble of either, on a split."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_shards.places import PlaceLike
from data_shards.reading.reader import ShardReader
from data_shards.sources.splits import named_split
from dmd.checkpoint.select import Step
from dmd.checkpoint.state import check_fits
from dmd.data.targets import check_same_labels
from dmd.dataset import Dataset
from dmd.evaluation.ensemble import Metrics, evaluate_ensemble, together
from dmd.evaluation.evaluate import Evaluation
from dmd.evaluation.evaluate import evaluate as evaluate_split
from dmd.evaluation.split_option import DEFAULT_SPLIT
from dmd.evaluation.trained_run import evaluate_run
from dmd.inference.ensemble import Ensemble
from dmd.system.trained_model import TrainedModel


def evaluate(
    run_or_model: str | Path | TrainedModel | Ensemble | Sequence[str | Path],
    data: Dataset | PlaceLike | None = None,
    split: str = DEFAULT_SPLIT,
    *,
    step: Step | None = None,
    text_encoder: str | None = None,
) -> Metrics:
    """Metrics of all heads on a split, as `dmd evaluate` computes them.

    Args:
        run_or_model: directory of a run, or what `dmd.load` gives; several runs are an ensemble.
        data: what to evaluate on; None: the shards of the run's training. A model needs it.
        split: train, valid (val, dev) or test. Choose by valid; look at test once, when everything is chosen.
        step: which checkpoint of a run: its step, "best" or "last"; or the mean of several: "average:5", of the newest
            five that it keeps, or "soup" (docs/sharing.md). None: the best.
        text_encoder: where the text encoder's own weights are, of a run that names them.

    Returns:
        {head: {metric: value}}, `fused` first, such as {"fused": {"mae": 0.71, "acc2_non0": 0.86, ...}, ...}: names of
        docs/names.md; Acc and F1 are shares in [0, 1], MAE is in the units of the labels.

    Raises:
        ValueError: neither run nor model, no such checkpoint there, data that the model cannot read, shards that took
            the place of the data, no such split, or a step of a model, which is one already.
    """
    split = named_split(split, "split")
    place = data.checked_place() if isinstance(data, Dataset) else data
    if isinstance(run_or_model, list | tuple):
        return _evaluate_runs([Path(run) for run in run_or_model], place, split, step=step, text_encoder=text_encoder)
    if not isinstance(run_or_model, str | Path | TrainedModel | Ensemble):
        raise ValueError(
            f"run_or_model is {run_or_model!r:.60}; give the directory of the run, as dmd.train was given it, or a "
            "model of dmd.load"
        )
    if not isinstance(run_or_model, TrainedModel | Ensemble):
        return _evaluate_runs([Path(run_or_model)], place, split, step=step, text_encoder=text_encoder)
    if step is not None:
        raise ValueError(
            f"step is {step!r}, but a model in memory is of one step; choose it in dmd.load, or name the run"
        )
    return _evaluate_model(run_or_model, place, split)


def _evaluate_runs(
    runs: Sequence[Path], place: PlaceLike | None, split: str, *, step: Step | None, text_encoder: str | None
) -> Metrics:
    if not runs:
        raise ValueError("no run is named; give the directories of some")
    if len(runs) == 1:
        result = evaluate_run(runs[0], data=place, split=split, step=step, text_encoder=text_encoder)
    else:
        result = evaluate_ensemble(runs, data=place, splits=[split], step=step, text_encoder=text_encoder)[split]
    metrics: Metrics = result["metrics"]
    return metrics


def _evaluate_model(model: TrainedModel | Ensemble, place: PlaceLike | None, split: str) -> Metrics:
    if place is None:
        raise ValueError("a model does not say where its data is; give it: dmd.evaluate(model, data)")
    members = model.members if isinstance(model, Ensemble) else [model]
    with ShardReader(place) as reader:
        found = [_evaluate_one(member, reader, split) for member in members]
    return found[0].metrics() if len(found) == 1 else together(found)[0].metrics()


def _evaluate_one(model: TrainedModel, reader: ShardReader, split: str) -> Evaluation:
    facts: dict[str, Any] = model.card.data
    check_fits(facts, reader.index.info)
    check_same_labels(model.config, facts, reader.index.info)
    with model.running():
        return evaluate_split(model.modules, reader, split, model.config, device=model.device)
