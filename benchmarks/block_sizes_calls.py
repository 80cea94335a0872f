"""The calls whose kernels `benchmarks.block_sizes` times: of one layer of a stage, with sizes that are asked for.

Import it when it is settled whether kernels are interpreted.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from triton import knobs

from benchmarks.kernels import HEADS, STAGES, one_layer, replayed
from benchmarks.step_sides import SIZE, STEP
from dmd.kernels.attention.plan import attention_tables
from dmd.kernels.attention.triton_launch import AttentionLaunch, TritonAttended
from dmd.kernels.common.block_sizes import attention_sizes, padded, row_sizes
from dmd.kernels.common.measured_sizes import ATTENTION_KERNELS, BLOCKS, OPTIONS, PACK, TILES
from dmd.kernels.common.triton_rows import QUERIES
from dmd.kernels.encoder.backward_kernels import launch_project_backward, launch_residual_mlp_backward
from dmd.kernels.encoder.forward_kernels import launch_project, launch_residual_mlp
from dmd.kernels.encoder.triton_layer_call import ActivationGradients, Activations, LayerCall, operand_channels, slots
from dmd.kernels.encoder.weight_gradient_kernels import weight_gradients
from dmd.kernels.triton_backend import TRITON
from dmd.model.transformer import TransformerStack

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
RATE = 0.2
"""Of the attention's dropout."""
REPLAY_MILLISECONDS = 5
"""Of a graph of calls, which is replayed ten times: some 150 candidates share half a minute."""
TINY_STEPS, TINY_SAMPLES = 17, 1
CALLS = {
    "weight_shares": "weight_gradients",
    "backward_query": "attention backward",
    "backward_key": "attention backward",
}
"""What is timed where it is more than the kernel's own launch."""
_shared: dict[tuple[Any, ...], int] = {}


class SizedAttention(AttentionLaunch):
    """Takes the sizes of some kernels from `asked`."""

    asked: dict[str, Mapping[str, int]]

    def sizes(self, kernel: str, query: Tensor, key: Tensor) -> Mapping[str, int]:
        """Those asked for, else its own."""
        return self.asked.get(kernel) or super().sizes(kernel, query, key)


@dataclass(frozen=True, kw_only=True)
class SizedCall(LayerCall):
    """Takes the sizes of some kernels from `asked`."""

    asked: dict[str, Mapping[str, int]] = field(default_factory=dict)

    def sizes(self, kernel: str, dim: int) -> dict[str, Any]:
        """Its own, with those asked for in their place."""
        return super().sizes(kernel, dim) | dict(self.asked.get(kernel, {}))


class Calls:
    """One layer of a stage of `benchmarks.kernels`, with random weights and activations.

    Args:
        precision: bf16 or fp32, of products.
        tiny: short sequences of two encoders and one sample.
    """

    def __init__(self, stage: str, *, precision: str, device: torch.device, tiny: bool = False) -> None:
        dim, queries, keys = STAGES[stage]
        if tiny:
            queries, keys = (tuple(min(length, TINY_STEPS) for length in lengths[:2]) for lengths in (queries, keys))
        self.dim, self.samples, self.half = dim, TINY_SAMPLES if tiny else STEP * SIZE, precision != "fp32"
        self.lengths = {"rows": max(queries), "keys": max(keys)}
        plan = one_layer(dim, queries, keys, attention_rate=RATE)
        torch.manual_seed(0)
        stack = TransformerStack(plan, TRITON).to(device).requires_grad_(False).tensors()
        self.weights = stack.layers[0]
        dtype = DTYPES[precision]
        encoders = len(queries)
        shape, scales = (table.to(device) for table in attention_tables(queries, keys, plan.attn_rates))
        dropout = torch.randint(-(2**31), 2**31, (encoders, self.samples, 2), dtype=torch.int32, device=device)
        attention = SizedAttention(shape, scales, dropout, None, heads=HEADS, last_step=False)
        self.sized: dict[str, Mapping[str, int]] = {}
        attention.asked = self.sized
        self.layer = SizedCall(
            table=stack.tables["table"],
            attention=attention,
            last=False,
            dtype=dtype,
            queries=queries,
            asked=self.sized,
        )

        def random(steps: int, channels: int, kind: torch.dtype = torch.float32) -> Tensor:
            return torch.randn(encoders, self.samples, steps, channels, device=device).to(kind)

        rows, others = self.lengths["rows"], self.lengths["keys"]
        self.activations = Activations(
            x=random(rows, dim),
            source=random(others, dim),
            query=random(rows, dim, dtype),
            key_value=random(others, 2 * dim, dtype),
            mixed=random(rows, dim, dtype),
            log_sums=torch.empty(0, device=device),  # nothing here reads them
            middle=random(rows, dim),
        )
        (query,), (normed,) = (slots(self.activations.x, rows, 1, dim, dtype) for _ in range(2))
        key, value = slots(self.activations.x, others, 2, dim, dtype)
        for tensor in (query, key, value, normed):
            tensor.normal_()
        operands = random(rows, operand_channels(dim), dtype)
        self.grads = ActivationGradients(query, key, value, normed, operands)
        self.grad_middle, self.grad_out = random(rows, dim), random(rows, dim)
        self._results: dict[str, tuple[Tensor, ...]] = {}

    def place(self, kernel: str) -> tuple[dict[str, Any], dict[str, int]]:
        """What a row of the table belongs to but for the card, and the rule's sizes."""
        about: dict[str, Any] = {"bits": 16 if self.half else 32}
        if kernel not in ATTENTION_KERNELS:
            rule = row_sizes(kernel, self.dim, half=self.half)
            return about | {"width": rule["WIDTH"], **dict.fromkeys(self.lengths, ""), PACK: ""}, rule
        rule = attention_sizes(self.dim // HEADS, *self.lengths.values(), heads=HEADS, half=self.half)
        lengths = {name: padded(length) for name, length in self.lengths.items()}
        return about | {"width": rule["WIDTH"], **lengths, PACK: rule["PACK"]}, rule

    def call(self, kernel: str) -> str:
        """What is timed, by name."""
        return CALLS.get(kernel, kernel)

    def run(self, kernel: str, sizes: Mapping[str, int]) -> tuple[Tensor, ...]:
        """Run the kernel's call with these sizes of it alone; a copy of what it computes."""
        return tuple(x.clone() for x in self.prepared(kernel, sizes)())

    def prepared(self, kernel: str, sizes: Mapping[str, int]) -> Callable[[], Sequence[Tensor]]:
        """The call, which fills the same tensors each time. Steps past an encoder's length stay 0."""
        self.sized.clear()
        self.sized[kernel] = sizes
        run = getattr(self, f"_{self.call(kernel).replace(' ', '_')}")
        knobs.compilation.listener = note(knobs.compilation.listener)
        return run  # type: ignore[no-any-return]

    def shared_bytes(self, kernel: str, sizes: Mapping[str, int]) -> int | str:
        """Bytes of shared memory of a block; empty where it is interpreted."""
        return _shared.get((kernel, *_sizes_of(sizes)), "")

    def _project(self) -> tuple[Tensor, ...]:
        x = self.activations.x
        (out,) = self._filled("project", ((x, 3 * self.dim, self.layer.dtype),))
        launch_project(self.layer, self.weights, x, out, first=0, side=QUERIES.value, last=False, norm=True)
        return (out,)

    def _residual_mlp(self) -> tuple[Tensor, ...]:
        x, mixed = self.activations.x, self.activations.mixed
        middle, out = self._filled("residual_mlp", ((x, self.dim, torch.float32),) * 2)
        launch_residual_mlp(self.layer, self.weights, x, mixed, middle=middle, out=out)
        return middle, out

    def _residual_mlp_backward(self) -> tuple[Tensor, ...]:
        middle, dtype = self.activations.middle, self.layer.dtype
        kinds = (
            (middle, self.dim, torch.float32),
            (middle, self.dim, dtype),
            (middle, operand_channels(self.dim), dtype),
        )
        grad_middle, grad_mixed, operands = self._filled("residual_mlp_backward", kinds)
        launch_residual_mlp_backward(
            self.layer,
            self.weights,
            self.activations,
            self.grad_out,
            grad_middle=grad_middle,
            grad_mixed=grad_mixed,
            operands=operands,
        )
        return grad_middle, grad_mixed, operands

    def _project_backward(self) -> tuple[Tensor, ...]:
        x = self.activations.x
        (out,) = self._filled("project_backward", ((x, self.dim, torch.float32),))
        launch_project_backward(
            self.layer,
            self.weights,
            x,
            self.grads,
            self.grad_middle,
            out,
            side=QUERIES.value,
            query=True,
            key=False,
        )
        return (out,)

    def _weight_gradients(self) -> tuple[Tensor, ...]:
        return tuple(weight_gradients(self.layer, self.weights, self.activations.source, self.grads))

    def _forward(self) -> tuple[Tensor, ...]:
        query, (key, value) = self.activations.query, self.activations.key_value.chunk(2, dim=-1)
        (out,) = self._filled("forward", ((query, self.dim, query.dtype),))
        self.layer.attention.forward(query, key, value, out)
        return (out,)

    @cached_property
    def _attended(self) -> TritonAttended:
        """A forward pass with the rule's sizes."""
        query, (key, value) = self.activations.query, self.activations.key_value.chunk(2, dim=-1)
        return self.layer.attention.forward(query, key, value, torch.zeros_like(query))

    def _attention_backward(self) -> tuple[Tensor, ...]:
        attended = self._attended
        kinds = ((attended.query, self.dim, self.layer.dtype), (attended.key, 2 * self.dim, self.layer.dtype))
        grad_query, grad_key_value = self._filled("attention backward", kinds)
        grad_key, grad_value = grad_key_value.chunk(2, dim=-1)
        self.layer.attention.backward(
            attended, self.activations.mixed, grad_query=grad_query, grad_key=grad_key, grad_value=grad_value
        )
        return grad_query, grad_key_value

    def _filled(self, name: str, kinds: Sequence[tuple[Tensor, int, torch.dtype]]) -> tuple[Tensor, ...]:
        """[E, B, T, channels] of zeros for results, of each (whose E, B and T, channels, type); made once."""
        if name not in self._results:
            self._results[name] = tuple(
                torch.zeros(*like.shape[:3], channels, device=like.device, dtype=kind) for like, channels, kind in kinds
            )
        return self._results[name]


def note(before: Callable[..., None] | None) -> Callable[..., None]:
    """A listener of Triton's that notes the shared memory of what is compiled, and then calls the one before."""
    if getattr(before, "notes", False):
        assert before is not None
        return before

    def listen(*, src: Any, metadata: dict[str, Any], **more: Any) -> None:
        names = src.fn.arg_names
        constants = {names[path[0]]: value for path, value in src.constants.items()}
        sizes = _sizes_of(constants | {name: metadata[name] for name in OPTIONS})
        _shared[(src.fn.__name__, *sizes)] = metadata["shared"]
        if before is not None:
            before(src=src, metadata=metadata, **more)

    vars(listen)["notes"] = True
    return listen


def _sizes_of(constants: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(constants.get(name) for name in ("WIDTH", *BLOCKS, *TILES.values(), *OPTIONS))


def distance(got: Sequence[Tensor], want: Sequence[Tensor]) -> float:
    """The largest relative error of a result."""
    pairs = [(a.double(), b.double()) for a, b in zip(got, want, strict=True)]
    return max(float((a - b).norm() / b.norm().clamp(min=1e-30)) for a, b in pairs)


def seconds(calls: Calls, kernel: str, sizes: Mapping[str, int], device: torch.device) -> float:
    """Of a warm call on the device; on a CPU of one interpreted call, for nothing but a dry run."""
    run = calls.prepared(kernel, sizes)
    if device.type == "cuda":
        return replayed(run, milliseconds=REPLAY_MILLISECONDS) / 1e6
    began = time.perf_counter()
    run()
    return time.perf_counter() - began
