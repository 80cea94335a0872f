"""Launches as Triton binds, specialises and checks them on a card, which its interpreter leaves out; nothing is run."""

from typing import Any

import pytest
import torch

from dmd.kernels.attention.plan import AttentionPlan
from dmd.kernels.backend import float32_products
from dmd.kernels.common.cards import KernelError
from dmd.kernels.dropout.keys import DropoutKeys, number_samples
from dmd.kernels.dropout.rng import DropoutRNG
from dmd.kernels.encoder.plan import StackPlan
from dmd.losses import Objective, ObjectiveConfig
from dmd.model import DMD
from dmd.model.transformer import TransformerStack
from tests.dmd.kernels.without_card import without_card
from tests.support.small_system import GHOSTS, LENGTHS, MODEL, SAMPLES, SIZES

LEAST = 86
"""Compute capability of a card with the least shared memory."""
FLOATS = (torch.float32, torch.bfloat16)
TYPES = {*FLOATS, torch.int32}
KERNELS = {
    "_drop",
    "embed",
    "embed_backward",
    "norm",
    "norm_backward",
    "project",
    "project_backward",
    "residual_mlp",
    "residual_mlp_backward",
    "weight_shares",
    "add_up_weights",
    "forward",
    "backward",
    "backward_query",
    "backward_key",
    "backward_weights",
    "_forward",
    "_backward",
}


def check_launch(launch: Any) -> None:
    """A grid that CUDA takes; pointers to memory of a type that kernels know; integers of 32 bits."""
    x, y, z = launch.grid
    assert 0 < x < 2**31
    assert 0 < y <= 65535
    assert 0 < z <= 65535
    for argument in launch.arguments:
        if isinstance(argument, torch.Tensor):
            assert argument.dtype in TYPES, (launch.kernel.name, argument.dtype)
            assert argument.device.type == "cpu"
            assert argument.numel() > 0
            assert argument.data_ptr() % argument.element_size() == 0
        elif isinstance(argument, int):
            assert -(2**31) <= argument < 2**31, (launch.kernel.name, argument)
        else:
            assert isinstance(argument, (float, str, bool)) or "triton" in type(argument).__module__, argument


def check_step() -> None:
    """A whole pass with its objective, forward and backward."""
    from benchmarks.offline_driver import offline
    from dmd.kernels.triton_backend import TRITON

    launched: set[str] = set()

    def on_launch(launch: Any) -> None:
        check_launch(launch)
        launched.add(launch.kernel.name)

    model, objective = DMD(MODEL, SIZES, LENGTHS, backend=TRITON), Objective(ObjectiveConfig(), MODEL, backend=TRITON)
    parts = [torch.zeros(GHOSTS * SAMPLES, LENGTHS[m], SIZES[m]) for m in SIZES]
    labels = torch.zeros(GHOSTS, SAMPLES)
    cpu = torch.device("cpu")
    rng = DropoutRNG(
        seed=1, step=0, samples=number_samples(range(GHOSTS), range(SAMPLES)), device=cpu, keys=DropoutKeys()
    )
    with offline(LEAST, on_launch=on_launch):
        with torch.autocast("cpu", torch.bfloat16):
            output = model(*parts, rng)
        objective(output, labels, torch.ones_like(labels))["total"].sum().backward()
    assert launched == KERNELS


def check_grids() -> None:
    """More samples times heads, and more time steps, than CUDA has programs along y."""
    from benchmarks.offline_driver import offline
    from dmd.kernels.losses.decoupling import BLOCK, FusedDecoupling
    from dmd.kernels.triton_backend import TRITON

    grids: list[tuple[int, int, int]] = []
    samples, blocks = 70_000, 65_536
    with offline(LEAST, on_launch=lambda launch: grids.append(launch.grid)):
        plan = AttentionPlan(heads=4, queries=(1,), keys=(1,), rates=(0.0,))  # a program takes two heads
        parts = [torch.zeros(1, samples, 1, 8, requires_grad=True) for _ in range(3)]
        TRITON.attention(*parts, plan).sum().backward()
        assert grids == [(2 * samples, 1, 1)] * 3
        grids.clear()
        features = [torch.zeros(1, blocks * BLOCK // 8, 8, requires_grad=True) for _ in range(5)]
        FusedDecoupling.apply(torch.ones(1, 1), *features).sum().backward()
        assert grids == [(blocks, 1, 1)] * 2


def check_refusals() -> None:
    """What a card cannot run is named; what is a bug, or a card's own fault, stays what it is."""
    from benchmarks.offline_driver import offline
    from dmd.kernels.common.launching import launch
    from dmd.kernels.encoder.triton_norm import norm
    from dmd.kernels.triton_backend import TRITON

    x = torch.zeros(1, 2, 16, 64)
    plan = AttentionPlan(heads=1, queries=(16,), keys=(16,), rates=(0.0,))
    with offline(LEAST, limit=1024), pytest.raises(KernelError, match="bytes of shared memory, and 1024 is") as caught:
        TRITON.attention(x, x, x, plan)
    assert caught.value.kernel == "attention.triton_kernels.forward"
    assert caught.value.device == "cpu"
    assert "it needs " in caught.value.reason

    def fails(error: BaseException) -> Any:
        def on_launch(_: object) -> None:
            raise error

        return on_launch

    refused = RuntimeError("Triton Error [CUDA]: device kernel image is invalid")
    for error, expected in (
        (refused, KernelError),
        (RuntimeError("Failed to find C compiler"), KernelError),
        (FileNotFoundError("ptxas"), KernelError),
        (RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered"), RuntimeError),
        (torch.OutOfMemoryError("CUDA out of memory"), torch.OutOfMemoryError),
        (TypeError("bug"), TypeError),
        (RuntimeError("Triton Error [CUDA]: out of memory"), torch.OutOfMemoryError),
    ):
        with offline(LEAST, on_launch=fails(error)), pytest.raises((RuntimeError, TypeError)) as caught:
            TRITON.attention(x, x, x, plan)
        assert type(caught.value) is expected, (error, caught.value)
    with offline(LEAST), pytest.raises(KeyError, match="out_ptr"):
        launch(norm, (1,), x_ptr=x)
    arguments = dict.fromkeys(norm.arg_names, 1) | {"x_ptr": x, "out_ptr": x, "WIDTH": 16, "M": 16}
    with offline(LEAST), pytest.raises(KernelError, match="CompilationError"):
        launch(norm, (1, 65535), **arguments)  # a gain that is no tensor
    with offline(LEAST), pytest.raises(AssertionError):
        launch(norm, (1, 65536), **arguments)


def check_later_launches() -> None:
    """A launch whose compiled kernel is known hands it what Triton hands it, and takes another where Triton does."""
    from benchmarks.offline_driver import offline
    from dmd.kernels.triton_backend import TRITON

    plan = AttentionPlan(heads=2, queries=(5, 9), keys=(9, 5), rates=(0.0, 0.0))

    def parts(first: int, samples: int, dtype: torch.dtype) -> list[torch.Tensor]:
        """Query, key and value, whose memory begins `first` elements after an aligned place."""
        shape = 2, samples, 9, 8
        memory = [torch.zeros(first + torch.Size(shape).numel(), dtype=dtype) for _ in range(3)]
        return [x[first:].view(shape).requires_grad_() for x in memory]

    cases = [(first, samples, dtype) for first in (0, 1) for samples in (1, 2, 3) for dtype in FLOATS]
    kernels = []
    for capability in (LEAST, 90):
        rounds = []
        with offline(capability) as driver:
            for _ in range(3):
                driver.launches.clear()
                for case in cases:
                    TRITON.attention(*parts(*case), plan).sum().backward()
                rounds.append([(id(x.kernel), x.grid, tuple(map(describe, x.arguments))) for x in driver.launches])
            kernels.append({id(kernel): kernel for kernel in driver.kernels.values()})
        assert rounds[1:] == rounds[:1] * 2
        assert {kernel for kernel, *_ in rounds[0]} == kernels[-1].keys()
    assert not kernels[0].keys() & kernels[1].keys()
    # Aligned or not, one sample or more (Triton knows of a 1), and types; the gradient of the output is always aligned.
    assert len(kernels[0]) >= 3 * 2 * 2


def describe(argument: Any) -> Any:
    """An argument of a launch, to be compared with the same in another pass."""
    return (argument.dtype, tuple(argument.shape)) if isinstance(argument, torch.Tensor) else argument


def check_tf32() -> None:
    """Float32 products are TF32 where torch's are in the forward pass, and then in its backward pass too."""
    from benchmarks.offline_driver import offline
    from dmd.kernels.triton_backend import TRITON

    found = {}
    for tf32 in (False, True):
        plan = StackPlan(
            dim=16,
            heads=1,
            levels=1,
            queries=(20,),
            keys=(20,),
            attn_rates=(0.0,),
            relu_rate=0.0,
            res_rate=0.0,
            embed_rate=0.0,
            last_step=False,
        )
        stack = TransformerStack(plan, TRITON)
        with offline(LEAST) as driver:
            with float32_products(tf32=tf32):
                (out,) = stack([torch.zeros(2, 20, 16)])
            out.sum().backward()
        with_products = [kernel for kernel in driver.kernels.values() if "PRECISION" in kernel.constants]
        assert len(with_products) == 8
        assert {kernel.constants["PRECISION"] for kernel in with_products} == {"tf32" if tf32 else "ieee"}
        found[tf32] = {kernel.matrix for kernel in with_products}
    assert found == {False: {"none"}, True: {"mma.sync"}}


def test_a_step_is_launched_as_a_card_wants_it():
    without_card(__name__, "check_step")


def test_no_grid_grows_past_its_limit_with_the_data():
    without_card(__name__, "check_grids")


def test_a_kernel_that_the_card_refuses_is_named():
    without_card(__name__, "check_refusals")


def test_later_launches_are_those_of_triton():
    without_card(__name__, "check_later_launches")


def test_float32_products_follow_torch():
    without_card(__name__, "check_tf32")
