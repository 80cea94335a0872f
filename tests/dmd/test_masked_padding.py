"""Masked padding: padded steps change nothing that attention makes, whatever their side; nothing at all is finite."""

from dataclasses import replace

import pytest
import torch
from transformers import BertConfig

from dmd.kernels.cpu import CpuBackend
from dmd.kernels.dropout.keys import number_samples
from dmd.kernels.dropout.rng import DropoutRNG
from dmd.model import DMD, ModelConfig
from dmd.model.config import MODALITIES
from dmd.model.padding import unpadded_range
from dmd.model.text import build_text_encoder

DIMS = {"text": 6, "audio": 3, "vision": 4}
OFF = {name: 0.0 for name in ModelConfig.__dataclass_fields__ if "dropout" in name}
PLAIN = ModelConfig(task="regression", dim=8, heads=2, levels=2, kernel_text=1, kernel_audio=1, kernel_vision=1, **OFF)
MASKED = replace(PLAIN, masked_padding=True)
ATTENDED = ("shared", "text_hetero", "audio_hetero", "vision_hetero", "fused")
"""Heads that read encoders alone; the homogeneous ones read all steps."""


def build(config: ModelConfig, steps: int) -> DMD:
    torch.manual_seed(0)
    return DMD(config, DIMS, dict.fromkeys(MODALITIES, steps))


def inputs(count: int, steps: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {m: torch.randn(count, steps, DIMS[m], generator=generator) for m in MODALITIES}


def test_ranges():
    real = torch.tensor([[0, 0, 1, 0, 1, 1], [1, 1, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 1]]).bool()
    assert unpadded_range(real, 1).tolist() == [[2, 6], [0, 2], [0, 0], [5, 6]]
    assert unpadded_range(real, 3).tolist() == [[0, 4], [0, 2], [0, 0], [3, 4]]
    for kernel in (1, 2, 3):  # behind a convolution just those windows are not zero that hold a real step
        for row, (begin, end) in zip(real.float(), unpadded_range(real, kernel).tolist(), strict=True):
            window = torch.nn.functional.conv1d(row[None, None], torch.ones(1, 1, kernel)).flatten().nonzero().flatten()
            assert (window.tolist() or [0])[0] == begin
            assert (window.tolist() or [-1])[-1] + 1 == end


def test_steps_that_are_padded_behind_change_no_encoder():
    short, sample = build(MASKED, 7), inputs(5, 7)
    padded = {m: torch.nn.functional.pad(x, (0, 0, 0, 4)) for m, x in sample.items()}
    for config, same in ((MASKED, True), (PLAIN, False)):
        long = build(config, 11)
        shared = {n: w for n, w in short.state_dict().items() if w.shape == long.state_dict()[n].shape}
        long.load_state_dict(shared, strict=False)
        want, got = short(**sample).predictions, long(**padded).predictions
        for head in ATTENDED:
            assert torch.allclose(got[head], want[head], atol=1e-5) == same, head


def test_steps_that_are_padded_in_front_are_not_seen():
    """Zero frames in front and a sample's other modality: only the unpadded steps of the source reach the target."""
    network, sample, seen = build(MASKED, 9), inputs(2, 9), []
    for array in sample.values():
        array[:, :5] = 0

    class Recorder(CpuBackend):
        def encode(self, *arguments, key_ranges, **options):
            seen.append(key_ranges)
            return super().encode(*arguments, key_ranges=key_ranges, **options)

    network.use(Recorder())
    masked = network(**sample).predictions
    assert len(seen) == 3, "the shared, the crossmodal and the memory encoders"
    assert all(r.tolist() == [[5, 9]] * 2 for ranges in seen for r in ranges)
    plain = build(PLAIN, 9)(**sample).predictions
    assert all(not torch.allclose(masked[head], plain[head], atol=1e-5) for head in ATTENDED)
    assert all(torch.equal(masked[f"{m}_homo"], plain[f"{m}_homo"]) for m in MODALITIES)


def test_without_padding_it_is_the_published_model():
    masked, plain = build(MASKED, 9)(**inputs(4, 9)).predictions, build(PLAIN, 9)(**inputs(4, 9)).predictions
    for head in masked:
        torch.testing.assert_close(masked[head], plain[head], rtol=0, atol=1e-6)


@pytest.mark.parametrize("kernel", [1, 5])
def test_a_sample_without_any_step_is_finite(kernel):
    widths = {f"kernel_{m}": kernel for m in MODALITIES}
    network, sample = build(replace(MASKED, modality_dropout=0.5, text_dropout=0.3, **widths), 9), inputs(8, 9)
    for number, array in enumerate(sample.values()):
        array[0] = 0
        array[1 + number] = 0
    rng = DropoutRNG(seed=0, step=0, samples=number_samples([0], range(8)), device=torch.device("cpu"))
    for output in (network(**sample, rng=rng), network(**sample)):
        loss = sum(prediction.square().sum() for prediction in output.predictions.values())
        gradients = torch.autograd.grad(loss, list(network.parameters()), allow_unused=True)
        assert all(value.isfinite().all() for value in (*output.predictions.values(), *gradients) if value is not None)


def test_tokens_are_real_where_their_mask_says():
    settings = BertConfig(vocab_size=30, hidden_size=6, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    torch.manual_seed(0)
    network = DMD(
        MASKED, {**DIMS, "text": 0}, dict.fromkeys(MODALITIES, 9), build_text_encoder(settings.to_dict(), frozen=False)
    ).eval()
    sample = inputs(2, 9)
    tokens = torch.randint(1, 30, (2, 3, 9), generator=torch.Generator().manual_seed(0))
    tokens[:, 1], tokens[:, 2] = torch.arange(9) < 4, 0
    other = tokens.clone()
    other[:, 0, 4:] = 7
    before, after = (network(t, sample["audio"], sample["vision"]).predictions for t in (tokens, other))
    for head in ATTENDED:
        torch.testing.assert_close(before[head], after[head], rtol=0, atol=1e-6)
    assert not torch.allclose(before["text_homo"], after["text_homo"], atol=1e-5)
