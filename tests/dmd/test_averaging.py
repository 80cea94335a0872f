"""Averaged weights: what an update does, and that the training's own weights come back bitwise identical."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from data_shards.format.schema import DatasetInfo
from dmd.checkpoint.state import Cursor, check_continues, make_state, saved_config
from dmd.config import Config
from dmd.config.loading import load_config
from dmd.training.ema import DELAY, START, WeightAverage
from tests.support.small_data import build_from, mmsa

SCHEDULE = {"plateau": {}, "learning_rates": [], "best_loss": 1.0, "best_epoch": 0, "best_step": -1}


def state_of(config: Config, info: DatasetInfo) -> dict[str, Any]:
    return make_state(
        config=config,
        info=info,
        cursor=Cursor(),
        schedule=SCHEDULE,
        nonfinite_in_a_row=0,
        text_encoder=None,
        library_versions={},
        averaged_steps=None,
    )


def network() -> torch.nn.Linear:
    torch.manual_seed(0)
    made = torch.nn.Linear(3, 2)
    made.bias.requires_grad_(False)
    return made


def averaged(average: WeightAverage, module: torch.nn.Linear) -> torch.Tensor:
    with average.in_place():
        return module.weight.detach().clone()


def test_an_average_follows_the_weights_and_warms_up():
    module = network()
    average, expected = WeightAverage(module, 0.5), module.weight.detach().clone()
    for step in range(12):
        with torch.no_grad():
            module.weight += 1
        average.update()
        decay = min(0.5, (START + step) / (DELAY + step))
        expected = decay * expected + (1 - decay) * module.weight.detach()
        own = module.weight.detach().clone()
        torch.testing.assert_close(averaged(average, module), expected)
        assert torch.equal(module.weight, own)
    assert average.updates == 12


def test_own_weights_come_back_after_a_failure():
    module = network()
    average, own = WeightAverage(module, 0.9), module.weight.detach().clone()
    with torch.no_grad():
        module.weight.mul_(2)
    with pytest.raises(RuntimeError, match="shape"), average.in_place():
        module(own.T)
    assert torch.equal(module.weight, 2 * own)


def test_frozen_weights_are_not_averaged_and_without_a_decay_nothing_is():
    module = network()
    assert list(WeightAverage(module, 0.9).own_weights()) == ["weights/weight"]
    off = WeightAverage(module, 0.0)
    off.update()
    with off.in_place():
        assert off.own_weights() == {}
    assert off.updates is None


def test_an_impossible_decay_is_rejected():
    with pytest.raises(ValueError, match=r"train\.ema_decay is 1\.0; it must be at least 0 and below 1"):
        load_config(None, ["train.ema_decay=1"])


def test_checkpoints_of_older_programs_continue(tmp_path):
    """They know none of the options that came later, which are off by default."""
    task = "model.task=regression"
    info, config = build_from(mmsa(), tmp_path), load_config(None, [task])
    state = state_of(config, info)
    del state["averaged_steps"]
    later = {
        "train": ["ema_decay"],
        "model": ["normalise", "task", "emotions", "masked_padding"],
        "data": ["classes"],
        "objective": ["margin_smoothing", "consistency", "label_density_smoothing"],
    }
    for section, names in later.items():
        for name in names:
            del state["config"][section][name]
    check_continues(state, config, info, tmp_path)
    assert saved_config(state) == config
    for override in (
        "train.ema_decay=0.9",
        "model.normalise=train",
        "model.task=3",
        "model.masked_padding=true",
        "objective.margin_smoothing=0.5",
        "objective.consistency=1",
        "objective.label_density_smoothing=0.5",
        "data.classes=stored",
    ):
        with pytest.raises(ValueError, match=rf"was trained with {override.partition('=')[0]}=.*; give that value"):
            check_continues(state, load_config(None, [task, override]), info, tmp_path)


def test_sentiments_in_other_units_do_not_continue(tmp_path):
    info = build_from(mmsa(), tmp_path)
    scaled, sims = replace(info, label_scale=1.5, label_offset=3.0), replace(info, protocol="sims")
    other = {"label_scale": 1.0, "label_offset": 0.5}

    def check(before: dict[str, object], now: DatasetInfo, *overrides: str) -> None:
        config = load_config(None, overrides)
        state = state_of(config, info)
        for name in ("label_scale", "label_offset", "protocol"):
            del state["data"][name]
        state["data"].update(before)
        check_continues(state, config, now, tmp_path)

    with pytest.raises(ValueError, match=r"with label_scale 1\.0, these shards \(tiny\) have 1\.5; write them with"):
        check({}, scaled)
    with pytest.raises(ValueError, match=r"with label_offset 0\.5, these shards \(tiny\) have 0\.0"):
        check(other, info)
    with pytest.raises(ValueError, match=r"with protocol mosi, these shards \(tiny\) have sims"):
        check({"protocol": ""}, sims, "model.task=3")
    check({}, sims, "model.task=regression")
    check({"protocol": "mosi"}, info, "model.task=3")
    check({}, replace(scaled, protocol="sims"), "model.task=3", "data.classes=stored")
    check({}, scaled, "model.task=multilabel")


@pytest.mark.parametrize(
    ("task", "changed", "message"),
    [
        ("model.task=3 data.classes=stored", {"class_names": ("b", "a")}, r"with class_names \['a', 'b'\]"),
        ("model.task=3 data.classes=stored", {"protocol": "meld"}, "with protocol classes, these shards"),
        ("model.task=multilabel data.classes=emotions", {"emotions": ("b", "a")}, r"with emotions \['a', 'b'\]"),
        ("model.task=multilabel data.classes=emotions", {"protocol": "iemocap"}, "with protocol emotions, these"),
    ],
)
def test_classes_and_emotions_of_other_names_do_not_continue(tmp_path, task, changed, message):
    info = build_from(mmsa(), tmp_path)
    config = load_config(None, [*task.split(), *(["model.emotions=2"] if "multilabel" in task else [])])
    state = state_of(config, info)
    state["data"].update({"class_names": ["a", "b"], "emotions": ["a", "b"], "protocol": ""})
    same = SimpleNamespace(**{**vars(info), "class_names": ("a", "b"), "emotions": ("a", "b")})
    check_continues(state, config, same, tmp_path)
    with pytest.raises(ValueError, match=message):
        check_continues(state, config, SimpleNamespace(**{**vars(same), **changed}), tmp_path)
