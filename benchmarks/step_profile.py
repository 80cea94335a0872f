"""What a step is made of: its dispatches, its floating-point operations, its operations by time."""

from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

ALLOCATIONS = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "detach", "lift_fresh")


class Dispatches(TorchDispatchMode):
    """Counts what would be kernel launches, and waits for the device, on a GPU.

    A launch is a dispatched operation that is neither a view (its result aliases an argument that it does not write)
    nor a bare allocation. A sync is a read of a value (`.item()`), `nonzero`, or an index by booleans.
    """

    def __init__(self) -> None:
        super().__init__()
        self.launches = self.syncs = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        returns = func._schema.returns
        view = bool(returns) and all(r.alias_info is not None and not r.alias_info.is_write for r in returns)
        by_booleans = name in ("index", "index_put", "index_put_") and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        )
        self.syncs += name in ("_local_scalar_dense", "nonzero") or by_booleans
        self.launches += not (view or name in ALLOCATIONS or name == "_local_scalar_dense")
        return func(*args, **(kwargs or {}))


def count(step: Callable[[], None]) -> tuple[int, int]:
    """(launches, syncs) of a step."""
    with Dispatches() as found:
        step()
    return found.launches, found.syncs


def flops(step: Callable[[], None]) -> float:
    """Operations of the products and convolutions of a step (two for a multiplication with its addition)."""
    with FlopCounterMode(display=False) as counter:
        step()
    return float(counter.get_total_flops())


def product_rate(run: Callable[[Callable[[], object]], float], side: int = 1024) -> float:
    """Operations per second of a float32 product of two matrices of 1024 x 1024; `run` gives the seconds of a call."""
    a, b = torch.randn(side, side), torch.randn(side, side)
    return 2 * side**3 / min(run(lambda: a @ b) for _ in range(30))


def top_operations(step: Callable[[], None], number: int = 10) -> list[tuple[str, float, int]]:
    """(operation, share of the step's time that is its own, calls) of those that take most."""
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        step()
    averages = profiled.key_averages()
    total = sum(entry.self_cpu_time_total for entry in averages)
    top = sorted(averages, key=lambda entry: -entry.self_cpu_time_total)[:number]
    return [(entry.key, entry.self_cpu_time_total / total, entry.count) for entry in top]
