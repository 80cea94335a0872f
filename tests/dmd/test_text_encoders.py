"""Text encoders of every kind: what padding changes, and a training from the first step to a loaded export."""

from pathlib import Path

import pytest
import torch

import dmd
from dmd.checkpoint.select import chosen_checkpoint
from dmd.inference.export import export
from dmd.model.text import build_text_encoder, check_tokens, positions
from tests.support.commands import command
from tests.support.encoders import DECODERS, KINDS, save_encoder
from tests.support.trained import make_shards, train

DIVIDED = ("deberta-v2", "gpt2", "qwen2")
"""Kinds that are trained at ZeRO 3 too, beside BERT in `tests/launch/test_text_encoders.py`."""
ROUNDING = 1e-5
"""Of a gradient's moment: Adam's first step goes by the sign of the gradient, be it rounding alone."""
LENGTHS = (5, 9, 1)
"""Real tokens of three samples of nine steps."""


def padded(*, left: bool) -> torch.Tensor:
    """[3, 3, 9] tokens of `LENGTHS`, padded with id 0."""
    tokens = torch.zeros(3, 3, 9, dtype=torch.int64)
    generator = torch.Generator().manual_seed(0)
    for sample, length in zip(tokens, LENGTHS, strict=True):
        place = slice(9 - length, 9) if left else slice(0, length)
        sample[0, place] = torch.randint(2, 100, (length,), generator=generator)
        sample[1, place] = 1
    return tokens


@pytest.mark.parametrize(
    "kind, left", [*((kind, False) for kind in KINDS), *((kind, True) for kind in KINDS if kind != "bert")]
)
def test_a_padded_sample_has_the_states_of_the_sample_alone(kind, left):
    """Wherever the padding is; but BERT counts positions from the first step, padded or not."""
    torch.manual_seed(0)
    encoder = build_text_encoder(KINDS[kind], frozen=False).eval()
    tokens = padded(left=left)
    states = encoder(tokens)
    assert states.shape == (3, 9, 16)
    assert states.isfinite().all()
    for sample, length, state in zip(tokens, LENGTHS, states, strict=True):
        place = slice(9 - length, 9) if left else slice(0, length)
        alone = encoder(sample[None, :, place])[0]
        torch.testing.assert_close(state[place], alone, rtol=1e-5, atol=1e-6)
        behind = torch.cat([state[: place.start], state[place.stop :]])
        assert bool((behind == 0).all()) == (kind in DECODERS or length == 9)


@pytest.mark.parametrize("kind", KINDS)
def test_decoders_alone_see_nothing_of_later_tokens(kind):
    torch.manual_seed(0)
    encoder = build_text_encoder(KINDS[kind], frozen=False).eval()
    tokens = padded(left=False)
    other = tokens.clone()
    other[1, 0, 6] += 1 if other[1, 0, 6] < 99 else -1
    before, after = encoder(tokens)[1], encoder(other)[1]
    assert not torch.equal(before[6:], after[6:])
    assert torch.equal(before[:6], after[:6]) == (kind in DECODERS)


@pytest.mark.parametrize("kind", ["gpt2", "qwen2"])
def test_a_decoder_ignores_token_types_and_keeps_no_cache(kind):
    encoder = build_text_encoder(KINDS[kind], frozen=False).eval()
    tokens = padded(left=False)
    typed = tokens.clone()
    typed[:, 2] = 1
    assert torch.equal(encoder(tokens), encoder(typed))
    kept = []
    encoder.network.register_forward_hook(lambda _, __, output: kept.append(output.past_key_values))
    encoder(tokens)
    assert kept == [None]


def test_a_layer_of_a_sliding_window_keeps_it():
    """Transformers takes a whole mask as it is, for layers of a window too: such networks get the mask of padding."""
    torch.manual_seed(0)
    settings = {**KINDS["qwen2"], "sliding_window": 3, "use_sliding_window": True, "layer_types": None}
    settings |= {"max_window_layers": 0}
    encoder = build_text_encoder(settings, frozen=False).eval()
    assert encoder.network.config.layer_types == ["sliding_attention"] * 2
    tokens = padded(left=False)
    other = tokens.clone()
    other[1, 0, 0] = 99 - other[1, 0, 0]
    before, after = encoder(tokens)[1], encoder(other)[1]
    assert not torch.allclose(before[4], after[4], atol=1e-6), "two layers of three keys each see five steps"
    assert torch.allclose(before[5:], after[5:], atol=1e-6)


def test_positions_count_unpadded_steps_from_the_first():
    mask = torch.tensor([[1, 1, 1, 0], [0, 0, 1, 1]])
    assert positions(mask, 0).tolist() == [[0, 1, 2, 0], [0, 0, 0, 1]]
    assert positions(mask, 2).tolist() == [[2, 3, 4, 1], [1, 1, 2, 3]]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_says_how_many_tokens_it_takes(kind):
    check_tokens(KINDS[kind], vocab_size=100, length=64)
    with pytest.raises(ValueError, match="65 tokens per sample, but the text encoder takes at most 64"):
        check_tokens(KINDS[kind], vocab_size=100, length=65)
    with pytest.raises(ValueError, match="token id 100, but the text encoder knows 100 tokens"):
        check_tokens(KINDS[kind], vocab_size=101, length=64)
    tokens = torch.ones(1, 3, 64, dtype=torch.int64)
    tokens[:, 2] = 0
    with torch.no_grad():
        assert build_text_encoder(KINDS[kind], frozen=False)(tokens).shape == (1, 64, 16)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shards(tmp_path_factory.mktemp("tokens") / "shards", 40, "--text-kind", "tokens")


@pytest.fixture(scope="module")
def trained(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run of each kind, and of each whose weights ZeRO 3 divides, be it on one rank alone: one step of all samples,
    and its validation."""
    folder = tmp_path_factory.mktemp("kinds")
    overrides = {
        kind: [f"text.encoder={save_encoder(kind, folder / f'{kind}-base')}", "train.epochs=1"] for kind in KINDS
    }
    overrides |= {f"{kind}-divided": [*overrides[kind], "train.zero_stage=3"] for kind in DIVIDED}
    runs = train(shards, {folder / name: of for name, of in overrides.items()})
    return dict(zip(overrides, runs, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_training_of_every_kind_is_evaluated_exported_and_loaded(kind, trained, shards, tmp_path, capsys):
    run = trained[kind]
    base = build_text_encoder(KINDS[kind], frozen=False)
    model = dmd.load(run, "cpu")
    own = model.modules.network.text_encoder
    assert {p.dtype for p in own.parameters()} == {torch.float32}
    torch.manual_seed(0)
    changed = [
        name
        for name, weight in build_text_encoder(KINDS[kind], frozen=False).named_parameters()
        if not torch.equal(weight, own.get_parameter(name))
    ]
    assert {name for name, _ in base.named_parameters()} == set(changed), "every weight is trained"
    assert command("evaluate", run) == 0
    assert "valid split, 4 samples" in capsys.readouterr().out
    assert export(run, tmp_path / "export", program=False) == "not asked for"
    loaded = dmd.load(tmp_path / "export", "cpu")
    samples = {m: torch.randn(3, *model.card.shape(m)) for m in ("audio", "vision")}
    samples["text"] = torch.zeros(3, *model.card.shape("text"), dtype=torch.int64)
    samples["text"][:, :, :9] = padded(left=False)
    assert torch.equal(loaded.predict(**samples).sentiment, model.predict(**samples).sentiment)


@pytest.mark.slow
@pytest.mark.parametrize("kind", DIVIDED)
def test_zero_3_trains_as_stage_0_does(kind, trained):
    ours, plain = chosen_checkpoint(trained[f"{kind}-divided"]), chosen_checkpoint(trained[kind])
    assert ours.model.keys() == plain.model.keys()
    assert ours.optimizer.keys() == plain.optimizer.keys()
    for name, tensor in plain.optimizer.items():
        torch.testing.assert_close(ours.optimizer[name], tensor, rtol=1e-4, atol=1e-7, msg=name)
    for name, weight in plain.model.items():
        assert ours.model[name].shape == weight.shape
        moved = plain.optimizer.get(f"exp_avg/{name}", torch.ones_like(weight)).abs() > ROUNDING
        torch.testing.assert_close(ours.model[name][moved], weight[moved], rtol=1e-4, atol=1e-6, msg=name)
