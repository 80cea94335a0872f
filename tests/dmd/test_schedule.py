"""Learning rates over epochs: the published plateau by default, a half cosine and a text warm-up on request."""

import pytest
import torch

from dmd.config.loading import load_config
from dmd.training.schedule import Schedule


def optimizer(*rates: float) -> torch.optim.Optimizer:
    return torch.optim.Adam([{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": rate} for rate in rates])


def rates_over(epochs: int, overrides: list[str], *rates: float, warmup: int = 0, losses=None) -> list[list[float]]:
    """Rates of every group in every epoch."""
    adam = optimizer(*rates)
    schedule = Schedule(adam, load_config(None, overrides).train, text_warmup=warmup)
    found = []
    for epoch in range(epochs):
        found.append([group["lr"] for group in adam.param_groups])
        schedule.update(1.0 if losses is None else losses[epoch], epoch=epoch, step=epoch)
    return found


def test_the_published_plateau_is_the_default():
    found = rates_over(9, ["train.plateau_patience=2"], 1e-3, 1e-4)
    assert found[:4] == [[1e-3, 1e-4]] * 4
    assert found[4] == pytest.approx([5e-4, 5e-5])
    assert found[8] == pytest.approx([2.5e-4, 2.5e-5])


def test_a_cosine_falls_from_the_rate_to_zero_whatever_the_loss():
    overrides = ["train.schedule=cosine", "train.epochs=4", "train.plateau_patience=0"]
    found = rates_over(5, overrides, 1e-3)
    assert [rate for (rate,) in found] == pytest.approx([1e-3, 0.8535534e-3, 0.5e-3, 0.1464466e-3, 0], abs=1e-9)


def test_a_warm_up_touches_the_text_encoder_alone():
    found = rates_over(6, [], 1e-3, 2e-5, warmup=3)
    assert [network for network, _ in found] == [1e-3] * 6
    assert [text for _, text in found] == pytest.approx([0.5e-5, 1e-5, 1.5e-5, 2e-5, 2e-5, 2e-5])
    assert rates_over(3, [], 1e-3, warmup=3) == [[1e-3]] * 3, "shards with text features have no second group"


def test_a_warm_up_and_a_plateau_multiply():
    found = rates_over(5, ["train.plateau_patience=0"], 1e-3, 2e-5, warmup=1)
    assert found[0] == pytest.approx([1e-3, 1e-5])
    for network, text in found[1:]:
        assert text / network == pytest.approx(0.02)


def test_a_resumed_schedule_goes_on_as_if_it_had_never_stopped():
    config = load_config(None, ["train.schedule=cosine", "train.epochs=6"]).train
    one = Schedule(whole := optimizer(1e-3, 1e-4), config, text_warmup=4)
    for epoch in range(3):
        one.update(1.0, epoch=epoch, step=epoch)
    two = Schedule(part := optimizer(1e-3, 1e-4), config, text_warmup=4)
    two.load_state(one.state())
    for epoch in range(3, 5):
        assert [g["lr"] for g in part.param_groups] == [g["lr"] for g in whole.param_groups]
        one.update(1.0, epoch=epoch, step=epoch)
        two.update(1.0, epoch=epoch, step=epoch)
    assert one.state() == two.state()


def test_impossible_values_are_rejected():
    for override, message in (
        ("text.warmup_epochs=-1", "text.warmup_epochs is -1"),
        ("train.schedule=linear", "train.schedule is 'linear'"),
    ):
        with pytest.raises(ValueError, match=message.replace(".", r"\.")):
            load_config(None, [override])
