"""Where tensors lie in a pass with Triton kernels: all that it reads is in the device's memory, and nothing comes back.

On torch's `meta` device, which holds no numbers: there an operation with a tensor on the CPU is one that a GPU would
refuse, a copy from the CPU one that it would wait for (unless pinned), and no value can be read. Launches are not run.
"""

import collections
from dataclasses import replace
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dmd.kernels.keys import DropoutKeys
from dmd.kernels.noise import Noise
from dmd.losses import Objective, ObjectiveConfig
from dmd.model import DMD
from dmd.model.text import build_text_encoder
from tests.dmd.kernels.forms import interpreted
from tests.dmd.kernels.test_whole_fused import GHOSTS, LENGTHS, MODEL, SAMPLES, SIZES

META = torch.device("meta")
TOKENS = "tokens"
BERT = {"model_type": "bert", "hidden_size": 6, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 50}
CASES: dict[str, dict[str, dict[str, Any]]] = {
    "published": {},
    TOKENS: {},
    "masked padding": {"model": {"masked_padding": True}},
    "classes": {"model": {"task": 3}},
    "one stage": {"model": {"crossmodal": False}},
    "paper": {"objective": {"orthogonality": "feature", "margin": "constant", "prior": "none"}},
    "smooth": {"objective": {"margin_smoothing": 0.5}},
}


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
            if name in ("copy_", "_to_copy"):
                self.copies[name] += 1
            else:  # a constant on the CPU becomes an argument of the launch
                assert all(x.dim() == 0 for x in tensors if x.device.type == "cpu"), (name, tensors)
        return out


def check_placement(_: str) -> None:
    from triton.runtime.interpreter import GridExecutor

    launched: collections.Counter[str] = collections.Counter()

    def launch(executor: Any, *args: Any, **kwargs: Any) -> None:
        launched[executor.fn.__name__] += 1
        for x in (*args, *kwargs.values()):
            assert not isinstance(x, torch.Tensor) or x.device == META, (executor.fn.__name__, x)

    GridExecutor.__call__ = launch
    torch.is_autocast_enabled = lambda *_: False  # torch knows none for `meta`
    for case in CASES:
        copies = run_passes(case, launched)
        assert copies == {"copy_": 1}, (case, copies)  # the dropout's keys, from pinned memory
        assert {"forward", "residual_mlp", "mlp_weights", "embed_backward"} <= set(launched), (case, launched)


def run_passes(case: str, launched: collections.Counter[str]) -> collections.Counter[str]:
    """Two passes; the copies of the second, and its launches in `launched`."""
    model_config = replace(MODEL, **CASES[case].get("model", {}))
    encoder = build_text_encoder(BERT, frozen=False) if case == TOKENS else None
    model = DMD(model_config, SIZES, LENGTHS, encoder, fused=True).to(META)
    objective = Objective(ObjectiveConfig(**CASES[case].get("objective", {})), model_config, fused=True).to(META)
    parts = [torch.empty(GHOSTS * SAMPLES, LENGTHS[m], SIZES[m], device=META) for m in SIZES]
    if encoder is not None:
        parts[0] = torch.empty(GHOSTS * SAMPLES, 3, LENGTHS["text"], dtype=torch.int64, device=META)
    labels = torch.empty(GHOSTS, SAMPLES, device=META)
    keys = DropoutKeys()
    for step in range(2):
        launched.clear()
        with Places() as places:
            noise = Noise(seed=1, step=step, ghosts=range(GHOSTS), ghost_size=SAMPLES, device=META, keys=keys)
            terms = objective(model(*parts, noise), labels, torch.ones_like(labels))
            terms["total"].sum().backward()
    return places.copies


def test_a_pass_stays_on_the_device():
    interpreted(__name__, "check_placement")
