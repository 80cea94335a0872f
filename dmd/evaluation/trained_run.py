"""What a run directory holds of a trained model: its checkpoints and where its data is; and its evaluation."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data_shards.format.schema import DatasetInfo
from data_shards.places import Place, PlaceLike, to_place
from data_shards.progress import Progress
from data_shards.reading.index import ShardIndex
from data_shards.reading.reader import ShardReader
from data_shards.storage.store import was_opened
from dmd.checkpoint.averaging import greedy_soup
from dmd.checkpoint.format import Snapshot, read_weights
from dmd.checkpoint.select import (
    AVERAGED,
    SOUP,
    Step,
    all_whole,
    chosen_checkpoint,
    mean_checkpoint,
    mean_of,
    read_known,
)
from dmd.checkpoint.state import check_fits
from dmd.data.loader import num_evaluation_batches
from dmd.data.targets import check_same_labels
from dmd.documents import read_document
from dmd.evaluation.evaluate import Evaluation, check_split, evaluate
from dmd.kernels.backend import default_device
from dmd.system.fallback import settle_prediction
from dmd.system.modules import BATCH_SIZE
from dmd.system.trained_model import ModelCard, TrainedModel, config_of


def read_run(
    run: Path, step: Step | None = None, *, data: PlaceLike | None = None, text_encoder: str | None = None
) -> tuple[ModelCard, dict[str, Tensor]]:
    """Card and weights of a run's checkpoint, or of the mean of several; None: of the best.

    Args:
        data: shards by whose valid split a soup is chosen where those of the run's training are not here.
        text_encoder: see `TrainedModel`; a soup is evaluated with it.

    Raises:
        ValueError: no such checkpoint, a damaged one, or fewer than a mean takes; for a soup, shards of the run's
            training that are not there or without a valid split.
    """
    if step == SOUP:
        return _soup(run, data, text_encoder)
    snapshot = chosen_checkpoint(run, "best" if step is None else step)
    return _card(run, snapshot), snapshot.model


def read_again(card: ModelCard) -> dict[str, Tensor]:
    """The weights that a card names, from the run that it names.

    Raises:
        KeyError: it names none.
        ValueError: the run does not hold them any more.
    """
    run, averaged = Path(card.source["run"]), card.averaged
    return (mean_checkpoint(run, averaged) if averaged else chosen_checkpoint(run, card.source["step"])).model


def _card(run: Path, snapshot: Snapshot) -> ModelCard:
    state = snapshot.state
    source = {"run": str(run), "step": snapshot.step, "versions": state.get("versions", {})}
    if AVERAGED in state:
        source[AVERAGED] = state[AVERAGED]
    return ModelCard(
        config=state["config"],
        data=state["data"],
        text_encoder=state["text_encoder"],
        source=source,
        text_base=state.get("text_base"),
    )


def _soup(run: Path, data: PlaceLike | None, text_encoder: str | None) -> tuple[ModelCard, dict[str, Tensor]]:
    """Card and weights of a greedy soup of all checkpoints of a run, by the valid split of its shards, or of `data`
    where these are not here. A collective where ranks evaluate together."""
    paths = all_whole(run)
    steps = list(paths)
    newest = read_known(paths[steps[-1]])
    card = _card(run, newest)
    device = default_device()
    try:
        place: PlaceLike = training_data(run)
    except ValueError as error:
        if data is None:
            raise ValueError(
                f"a soup is chosen by the shards of the run's training: {error} (of `dmd evaluate`); or give --average"
            ) from error
        place = data
    with ShardReader(place) as reader, Progress(2 * len(steps) - 1, "evaluations") as progress:
        check_fits(card.data, reader.index.info)
        check_same_labels(config_of(card), card.data, reader.index.info)
        encoder = None if card.text_base is None else text_encoder
        model = ready_model(card, newest.model, device, reader.index.info, text_encoder=encoder)

        def loss(weights: Mapping[str, Tensor]) -> float:
            model.modules.load_state_dict(weights)
            with model.running():
                found = evaluate(model.modules, reader, "valid", model.config, device=device).loss
            progress.advance()
            return found

        chosen = greedy_soup(steps, lambda step: read_weights(paths[step]), loss)
    snapshot = mean_of({step: paths[step] for step in chosen})
    return _card(run, snapshot), snapshot.model


def training_data(run: Path) -> Place:
    """Where the shards of a run's training are, as its run.json says.

    A URL is taken from there only where this node's cache has read it before: a run directory may come from anybody,
    and it holds no credentials.

    Raises:
        ValueError: no readable run.json, none that names shards, a URL that nobody here has asked for, or other shards
            than those of the training, which have taken their place.
    """
    try:
        about = read_document(run)["info"]
        data = about.get("data")
    except ValueError as error:
        raise ValueError(f"{error}; or name the shards with --data") from error
    if not isinstance(data, str) or not data:
        raise ValueError(f"{run} does not say where its shards are; name them with --data")
    place = to_place(data)
    if place.is_url and not was_opened(place):
        raise ValueError(
            f"{run} names shards at {place}, which were never read here; to fetch them: --data "
            f"{shlex.quote(str(place))}"
        )
    _check_generation(run, place, about.get("generation"))
    return place


def _check_generation(run: Path, place: Place, trained_on: object) -> None:
    """Raise ValueError where a place holds other shards than a run was trained on."""
    here = ShardIndex.load(place).info.generation
    if trained_on not in (None, here):
        raise ValueError(
            f"{run} was trained on data generation {trained_on}, and {place} holds {here} by now; to take that all the "
            f"same: --data {shlex.quote(str(place))}"
        )


def evaluate_run(
    run: Path, *, data: PlaceLike | None, split: str, step: Step | None = None, text_encoder: str | None = None
) -> dict[str, Any]:
    """Metrics of a run's checkpoint on a split, for all heads; every rank gets them.

    Args:
        step: which checkpoint; None: the best.
        text_encoder: see `TrainedModel`.

    Raises:
        ValueError: no such checkpoint, one whose weights are not of the model that it declares, data that the model
            cannot read, or shards without that split.
    """
    with ShardReader(shards_of(run, data)) as reader:
        card, weights = read_run_for(run, reader.index.info, step, data=data, text_encoder=text_encoder)
        model = ready_model(card, weights, default_device(), reader.index.info, text_encoder=text_encoder)
        check_split(reader, split)
        batches = num_evaluation_batches(reader, split, BATCH_SIZE)
        with model.running(), Progress(batches, "batches") as progress:
            result = evaluate(
                model.modules, reader, split, model.config, device=model.device, heartbeat=progress.advance
            )
    return describe(run, card, reader.index.info, split, result)


def shards_of(run: Path, data: PlaceLike | None) -> PlaceLike:
    """The shards to evaluate a run on; None: those of its training.

    Raises:
        ValueError: no run directory, or none that says where its shards are.
    """
    if not run.is_dir():
        raise ValueError(f"there is no run directory {run}")
    return data or training_data(run)


def read_run_for(
    run: Path,
    info: DatasetInfo,
    step: Step | None = None,
    *,
    data: PlaceLike | None = None,
    text_encoder: str | None = None,
) -> tuple[ModelCard, dict[str, Tensor]]:
    """Card and weights of a run's checkpoint (None: the best) that can read these shards.

    Args:
        data: see `read_run`.
        text_encoder: the same.

    Raises:
        ValueError: as `read_run`, or data that the model cannot read.
    """
    card, weights = read_run(run, step, data=data, text_encoder=text_encoder)
    check_fits(card.data, info)
    check_same_labels(config_of(card), card.data, info)
    return card, weights


def ready_model(
    card: ModelCard,
    weights: Mapping[str, Tensor],
    device: torch.device,
    info: DatasetInfo,
    *,
    text_encoder: str | None = None,
) -> TrainedModel:
    """A model that evaluates as its training did; by PyTorch where a kernel cannot run on the device.

    Args:
        text_encoder: see `TrainedModel`.

    Raises:
        ValueError: as `TrainedModel`.
    """
    model = TrainedModel(card, weights, device, validates=True, text_encoder=text_encoder)
    with model.running():
        settle_prediction(model.modules, info)
    return model


def checkpoint_of(card: ModelCard) -> dict[str, Any]:
    """`step` of a checkpoint, None where an export does not say it, and `averaged` where the weights are a mean, of
    which it is the last."""
    return {"step": card.source.get("step"), **({AVERAGED: card.averaged} if card.averaged else {})}


def describe(run: Path, card: ModelCard, info: DatasetInfo, split: str, result: Evaluation) -> dict[str, Any]:
    """What `dmd evaluate` writes as JSON."""
    return {
        "run": str(run),
        **checkpoint_of(card),
        "data": info.name,
        "generation": info.generation,
        "split": split,
        "samples": len(result.labels),
        "protocol": result.scoring.protocol,
        "metrics": result.metrics(),
    }
