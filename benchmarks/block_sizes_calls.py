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
from dmd.kernels.common.block_sizes import attention_sizes, padded, row_sizes, slot
from dmd.kernels.common.measured_sizes import ATTENTION_KERNELS, BLOCKS, OPTIONS, PACK, TILES
from dmd.kernels.common.triton_rows import KEYS, QUERIES
from dmd.kernels.encoder.backward_kernels import launch_project_backward, launch_residual_mlp_backward
from dmd.kernels.encoder.forward_kernels import launch_project, launch_residual_mlp
from dmd.kernels.encoder.triton_layer_call import Activations, LayerCall, WeightOperands, operand_places
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

    def sizes(self, kernel: str) -> dict[str, Any]:
        """Its own, with those asked for in their place."""
        return super().sizes(kernel) | dict(self.asked.get(kernel, {}))


class Calls:
    """One layer of a stage of `benchmarks.kernels`, with random weights and activations.

    Launches are those of a training, and rows lie as they do there.
    Encoders of a crossmodal stage attend to a source: their queries, and their keys with values, are two tensors and
    two launches of the projection. Those of other stages attend to themselves, with one of each.

    Args:
        precision: bf16 or fp32, of products.
        tiny: short sequences of two encoders and one sample.
    """

    def __init__(self, stage: str, *, precision: str, device: torch.device, tiny: bool = False) -> None:
        dim, queries, keys = STAGES[stage]
        if tiny:
            queries, keys = (tuple(min(length, TINY_STEPS) for length in lengths[:2]) for lengths in (queries, keys))
        self.device = device
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
        attention = SizedAttention(shape, scales, dropout, None, dim=dim, heads=HEADS, last_step=False)
        self.sized: dict[str, Mapping[str, int]] = {}
        attention.asked = self.sized
        self.layer = SizedCall(
            dim=dim,
            table=stack.tables["table"],
            attention=attention,
            last=False,
            dtype=dtype,
            queries=queries,
            asked=self.sized,
        )

        def random(steps: int, kind: torch.dtype = torch.float32, *, count: int = 1) -> Tensor:
            """Rows of so many slots."""
            rows = torch.zeros(encoders, self.samples, steps, count, slot(dim), device=device, dtype=kind)
            rows[..., :dim].normal_()
            return rows.flatten(3)

        def attended() -> tuple[Tensor, ...]:
            """Rows like those of queries, keys and values."""
            if not self.crossmodal:
                return random(rows, dtype, count=3).split(slot(dim), dim=-1)
            return random(rows, dtype), *random(others, dtype, count=2).split(slot(dim), dim=-1)

        self.crossmodal = stage.startswith("crossmodal")
        rows, others = self.lengths["rows"], self.lengths["keys"]
        query, key, value = attended()
        self.activations = Activations(
            x=random(rows),
            source=random(others) if self.crossmodal else None,
            query=query,
            key=key,
            value=value,
            mixed=random(rows, dtype),
            log_sums=torch.empty(0, device=device),  # nothing here reads them
            middle=random(rows),
        )
        self.operand_channels = operand_places(dim)["OPERANDS"]
        grad_query, grad_key, _ = attended()
        self.operands = WeightOperands(
            grad_query=grad_query,
            grad_key=grad_key,
            normed=random(rows, dtype),
            mixed=self.activations.mixed,
            others=torch.randn(encoders, self.samples, rows, self.operand_channels, device=device).to(dtype),
        )
        self.grad_middle, self.grad_out, self.grad_mixed = random(rows), random(rows), random(rows, dtype)
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
        layer, weights, x, source = self.layer, self.weights, self.activations.x, self.activations.source
        outs = self._like_attended("project")
        if source is None:
            launch_project(layer, weights, x, *outs, first=0, side=QUERIES.value, last=False, norm=True)
        else:
            query, key_value = outs
            launch_project(layer, weights, x, query, first=0, side=QUERIES.value, last=False, norm=True)
            launch_project(layer, weights, source, key_value, first=1, side=KEYS.value, last=False, norm=False)
        return outs

    def _residual_mlp(self) -> tuple[Tensor, ...]:
        x, mixed = self.activations.x, self.activations.mixed
        middle, out = self._filled("residual_mlp", ((x, self.layer.slot, torch.float32),) * 2)
        launch_residual_mlp(self.layer, self.weights, x, mixed, middle=middle, out=out)
        return middle, out

    def _residual_mlp_backward(self) -> tuple[Tensor, ...]:
        middle, dtype = self.activations.middle, self.layer.dtype
        kinds = (
            (middle, self.layer.slot, torch.float32),
            (middle, self.layer.slot, dtype),
            (middle, self.operand_channels, dtype),
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
        x, source = self.activations.x, self.activations.source
        inputs = (x,) if source is None else (x, source)
        outs = self._filled("project_backward", [(own, self.layer.slot, torch.float32) for own in inputs])
        common = self.layer, self.weights, x, self.operands, self.grad_middle
        launch_project_backward(*common, outs[0], side=QUERIES.value, query=True, key=source is None)
        if source is not None:
            launch_project_backward(*common, outs[1], side=KEYS.value, query=False, key=True)
        return outs

    def _weight_gradients(self) -> tuple[Tensor, ...]:
        return tuple(weight_gradients(self.layer, self.weights, self.activations.source, self.operands))

    def _forward(self) -> tuple[Tensor, ...]:
        query, key, value = self.activations.query, self.activations.key, self.activations.value
        (out,) = self._filled("forward", ((query, self.layer.slot, query.dtype),))
        self.layer.attention.forward(query, key, value, out)
        return (out,)

    @cached_property
    def _attended(self) -> TritonAttended:
        """A forward pass with the rule's sizes."""
        query, key, value = self.activations.query, self.activations.key, self.activations.value
        return self.layer.attention.forward(query, key, value, torch.zeros_like(self.activations.mixed))

    def _attention_backward(self) -> tuple[Tensor, ...]:
        attended = self._attended
        grads = self._like_attended("attention backward")
        slots = [own for grad in grads for own in grad.split(self.layer.slot, dim=-1)]
        names = ("grad_query", "grad_key", "grad_value")
        self.layer.attention.backward(attended, self.grad_mixed, **dict(zip(names, slots, strict=True)))
        return grads

    def _like_attended(self, name: str) -> tuple[Tensor, ...]:
        """Rows of queries, keys and values for results: one tensor of three slots, or one and one of two."""
        parts = {"query": 1, "key": 2} if self.crossmodal else {"query": 3}
        rows, own, dtype = self.activations._asdict(), self.layer.slot, self.layer.dtype
        return self._filled(name, [(rows[part], count * own, dtype) for part, count in parts.items()])

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


def seconds(calls: Calls, kernel: str, sizes: Mapping[str, int]) -> float:
    """Of a warm call on the device; on a CPU of one interpreted call, for nothing but a dry run."""
    run = calls.prepared(kernel, sizes)
    if calls.device.type == "cuda":
        return replayed(run, milliseconds=REPLAY_MILLISECONDS) / 1e6
    began = time.perf_counter()
    run()
    return time.perf_counter() - began
