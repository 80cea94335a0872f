"""`dmd.evaluate`: the metrics of a run or of a model, on a split."""

from pathlib import Path
from typing import Any

from data_shards.places import PlaceLike
from data_shards.reading.reader import ShardReader
from data_shards.sources.splits import named_split
from dmd.checkpoint.select import Step
from dmd.checkpoint.state import check_fits
from dmd.data.targets import check_same_labels
from dmd.dataset import Dataset
from dmd.evaluation.evaluate import evaluate as evaluate_split
from dmd.evaluation.split_option import DEFAULT_SPLIT
from dmd.evaluation.trained_run import evaluate_run
from dmd.system.trained_model import TrainedModel

Metrics = dict[str, dict[str, float]]
"""{head: {metric: value}}"""


def evaluate(
    run_or_model: str | Path | TrainedModel,
    data: Dataset | PlaceLike | None = None,
    split: str = DEFAULT_SPLIT,
    *,
    step: Step | None = None,
    text_encoder: str | None = None,
) -> Metrics:
    """Metrics of all eight heads on a split, as `dmd evaluate` computes them.

    Args:
        run_or_model: directory of a run, or what `dmd.load` gives.
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
    if not isinstance(run_or_model, str | Path | TrainedModel):
        raise ValueError(
            f"run_or_model is {run_or_model!r:.60}; give the directory of the run, as dmd.train was given it, or a "
            "model of dmd.load"
        )
    split = named_split(split, "split")
    place = data.checked_place() if isinstance(data, Dataset) else data
    if not isinstance(run_or_model, TrainedModel):
        result = evaluate_run(Path(run_or_model), data=place, split=split, step=step, text_encoder=text_encoder)
        metrics: Metrics = result["metrics"]
        return metrics
    if step is not None:
        raise ValueError(
            f"step is {step!r}, but a model in memory is of one step; choose it in dmd.load, or name the run"
        )
    return _evaluate_model(run_or_model, place, split)


def _evaluate_model(model: TrainedModel, place: PlaceLike | None, split: str) -> Metrics:
    if place is None:
        raise ValueError("a model does not say where its data is; give it: dmd.evaluate(model, data)")
    with ShardReader(place) as reader:
        facts: dict[str, Any] = model.card.data
        check_fits(facts, reader.index.info)
        check_same_labels(model.config, facts, reader.index.info)
        with model.running():
            return evaluate_split(model.modules, reader, split, model.config, device=model.device).metrics()
