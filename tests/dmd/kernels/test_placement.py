"""Where tensors lie when a model trains, evaluates, predicts and is exported: all in the device's memory, and no value
comes back to the host.

On torch's `meta` device, which holds no numbers: there an operation with a tensor on the CPU is one that a GPU would
refuse, a copy from the CPU one that it would wait for (unless pinned), and no value can be read. Every preset at its
real size, in plain torch and with Triton kernels, whose launches check their arguments and are not run; of variants and
of programs a first and a last level alone, since those between are alike.
"""

import collections
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.step_sides import LENGTHS, shapes
from data_shards.reading.reader import ShardReader
from dmd.config import Config
from dmd.config.loading import config_to_dict, load_config
from dmd.data.loader import Batch
from dmd.data.synthetic import random_batch
from dmd.evaluation import evaluate as evaluation
from dmd.model.text import build_text_encoder
from dmd.system.input_arrays import Inputs
from dmd.system.system import TrainingSystem
from dmd.system.trained_model import InferenceModules, ModelCard, TrainedModel
from dmd.training.step import make_plan, train_step
from tests.dmd.kernels.forms import interpreted
from tests.support.small_data import COUNTS, build_from, mmsa

pytestmark = pytest.mark.slow

META = torch.device("meta")
BERT = {"model_type": "bert", "hidden_size": 6, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 50}
TOKENS = "tokens"
VARIANTS = {
    "published": [],
    TOKENS: [],
    "frozen tokens": ["text.frozen=true"],
    "masked padding": ["model.masked_padding=true"],
    "every dropout": [
        "model.res_dropout=0.1",
        "model.relu_dropout=0.1",
        "model.modality_dropout=0.1",
        "model.embed_dropout=0.1",
    ],
    "classes": ["model.task=3"],
    "no decoupling": ["model.decoupling=false"],
    "no crossmodal": ["model.crossmodal=false"],
    "no distillation": ["objective.homo_distillation=false", "objective.hetero_distillation=false"],
    "paper": ["objective.orthogonality=feature", "objective.margin=constant", "objective.prior=none"],
    "smooth margin": ["objective.margin_smoothing=0.5"],
    "normalised": ["model.normalise=train"],
    "wide": ["model.dim=200"],
}
"""Of the preset mosi-aligned."""
EXPORTED = [("mosi-aligned", "published"), ("mosi-unaligned", "masked padding"), ("mosi-aligned", "classes")]
FORWARD = [("mosi-aligned", name) for name in ("published", TOKENS, "masked padding", "classes", "wide")]
"""What differs in a forward pass with Triton kernels."""
COPIES = ("copy_", "_to_copy", "to")
"""The last is what inference mode shows of a copy."""
CASES = [(preset, "published") for preset in LENGTHS] + [("mosi-aligned", name) for name in VARIANTS][1:]


class Places(TorchDispatchMode):
    """Notes copies between devices, and refuses operations on both."""

    def __init__(self) -> None:
        super().__init__()
        self.copies: collections.Counter[str] = collections.Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        tensors = [x for x in tree_leaves((args, kwargs or {}, out)) if isinstance(x, torch.Tensor)]
        if len({x.device.type for x in tensors}) > 1:
            if name in COPIES:
                self.copies[name] += 1
            else:  # a constant on the CPU becomes an argument of the launch
                assert all(x.dim() == 0 for x in tensors if x.device.type == "cpu"), (name, tensors)
        return out


def build(
    preset: str, variant: str, kernels: str, *, program: bool = False
) -> tuple[TrainingSystem, Config, SimpleNamespace]:
    """A system of a preset's real size on the meta device, its config and its data's description.

    Variants, and models to be exported as a program, have two levels.
    """
    levels = [] if variant == "published" and not program else ["model.levels=2"]
    overrides = [
        "model.task=regression",
        *VARIANTS[variant],
        *levels,
        f"train.kernels={kernels}",
        "train.precision=fp32",
    ]
    config = load_config(preset, overrides)
    dims, lengths = shapes(preset)
    tokens = variant.endswith(TOKENS)
    info = SimpleNamespace(
        dims={**dims, "text": 0} if tokens else dims,
        lengths=lengths,
        vocab_size=50,
        text_kind="tokens" if tokens else "features",
    )
    encoder = build_text_encoder(BERT, frozen=config.text.frozen) if tokens else None
    return TrainingSystem(config, info, encoder, META).to(META), config, info


def make_batch(info: SimpleNamespace, config: Config, ghosts: int) -> Batch:
    """A batch on the meta device."""
    return random_batch(info, ghosts, config.train.ghost_batch_size).to(META)


class Updateless:
    """An engine of one rank that updates nothing."""

    num_ranks, device = 1, META

    def __init__(self, system: TrainingSystem) -> None:
        self.system = self.forward = system

    def backward(self, loss: torch.Tensor) -> None:
        loss.backward()

    def step(self, numbers: torch.Tensor) -> tuple[list[float], bool]:
        assert numbers.device == META
        return [0.0] * (len(numbers) + 1), True


def train(preset: str, variant: str, kernels: str) -> None:
    """Two steps; the second copies what its dropout's keys need, from pinned memory, and nothing else."""
    system, config, info = build(preset, variant, kernels)
    assert system.execution.fused == (kernels == "fused")
    batch = make_batch(info, config, 2)
    plan = make_plan(config, batch.mask.numel(), 1)
    for step in range(2):
        with Places() as places:
            train_step(Updateless(system), [batch], config, plan, step=step, step_in_epoch=0)
    assert places.copies == {"copy_": 1}, places.copies


def evaluate(preset: str, variant: str, kernels: str) -> None:
    """A validation's pass: no copy at all."""
    system, config, info = build(preset, variant, kernels)
    system.eval()
    batch = make_batch(info, config, 1)
    with torch.inference_mode():
        system.predict(batch)  # small tables are copied once
        with Places() as places:
            system.predict(batch)
    assert not places.copies, places.copies


def test_a_validation_reads_nothing_before_its_last_batch(tmp_path, monkeypatch):
    """Nothing can be read from this device, so the first attempt is an error, and it comes after every batch."""
    monkeypatch.setattr(evaluation, "BATCH_SIZE", 2)
    info = build_from(mmsa(), tmp_path)
    system = TrainingSystem(
        load_config("mosi-aligned", ["model.task=regression", "model.dim=4", "model.heads=1"]), info, None, META
    ).to(META)
    batches: list[None] = []
    with ShardReader(tmp_path / "shards") as reader, pytest.raises(NotImplementedError, match="meta tensor"):
        evaluation.evaluate(system, reader, "train", system.config, device=META, heartbeat=lambda: batches.append(None))
    assert len(batches) == -(-COUNTS["train"] // 2)


def predict(preset: str, variant: str, kernels: str) -> None:
    """`dmd predict`, `report` and `missing` run a trained model: its samples are copied, and nothing else."""
    system, config, info = build(preset, variant, kernels)
    encoder = system.network.text_encoder
    settings = None if encoder is None else BERT
    data = {"name": "x", "generation": "x", "text_kind": info.text_kind, "dims": info.dims, "lengths": info.lengths}
    card = ModelCard(config=config_to_dict(config), data=data, text_encoder=settings, source={})
    weights = {name: torch.zeros(tensor.shape, dtype=tensor.dtype) for name, tensor in system.state_dict().items()}
    model = TrainedModel(card, weights, META)
    assert model.modules.execution.fused == (kernels == "fused")
    batch = random_batch(info, 1, 3)
    samples = Inputs(arrays={"text": batch.text, "audio": batch.audio, "vision": batch.vision})
    with torch.inference_mode():
        model.output(samples)  # small tables are copied once
        with Places() as places:
            output = model.output(samples)
            heads, edges = model.modules.all_heads(output), model.modules.objective.edges(output)
    assert places.copies == {"to": 3}, places.copies
    assert {x.device for x in (heads, *edges.values())} == {META}


def export(preset: str, variant: str, kernels: str) -> None:
    """A program's operations are those of its device alone."""
    system, config, info = build(preset, variant, kernels, program=True)
    modules = InferenceModules(
        config,
        data=vars(info),
        text_encoder=system.network.text_encoder,
        device=META,
        binding=False,
    )
    modules.requires_grad_(False).to(META).eval()
    batch = make_batch(info, config, 1)
    samples = torch.export.Dim("samples", min=1)
    program = torch.export.export(
        modules, (batch.text, batch.audio, batch.vision), strict=False, dynamic_shapes=({0: samples},) * 3
    )
    for node in program.graph.nodes:
        assert node.kwargs.get("device", META) == META, node


WAYS: dict[str, Callable[[str, str, str], None]] = {"train": train, "evaluate": evaluate, "predict": predict}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("preset, variant", CASES)
def test_plain_torch_stays_on_the_device(preset, variant, way):
    WAYS[way](preset, variant, "plain")


@pytest.mark.parametrize("preset, variant", EXPORTED)
def test_a_program_stays_on_the_device(preset, variant):
    """An export runs plain torch, whatever the model was trained with."""
    export(preset, variant, "plain")


@contextmanager
def without_launches() -> Iterator[collections.Counter[str]]:
    """Triton's interpreter checks the arguments of launches and does not run them; how often each kernel was asked."""
    from triton.runtime.interpreter import GridExecutor

    launched: collections.Counter[str] = collections.Counter()

    def launch(executor: Any, *args: Any, **kwargs: Any) -> None:
        launched[executor.fn.__name__] += 1
        for x in (*args, *kwargs.values()):
            assert not isinstance(x, torch.Tensor) or x.device == META, (executor.fn.__name__, x)

    run = GridExecutor.__call__
    autocast = torch.is_autocast_enabled
    GridExecutor.__call__ = launch
    torch.is_autocast_enabled = lambda *_: False  # torch knows none for `meta`
    try:
        yield launched
    finally:
        GridExecutor.__call__ = run
        torch.is_autocast_enabled = autocast


def check_fused(_: str, way: str) -> None:
    with without_launches() as launched:
        for preset, variant in CASES if way == "train" else FORWARD:
            launched.clear()
            WAYS[way](preset, variant, "fused")
            assert "residual_mlp" in launched, (preset, variant, launched)


@pytest.mark.parametrize("way", WAYS)
def test_triton_kernels_stay_on_the_device(way):
    interpreted(__name__, "check_fused", way)
