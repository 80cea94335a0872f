"""Counts launches: Triton kernels, and torch operations that are neither views nor allocations."""

import collections
import os
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

ONE_ON_CUDA = ("bernoulli_", "div_")
"""Parts of torch's dropout on CPUs, which on CUDA is one operation; its product is counted."""
ALLOCATING = ("promote_types", "empty", "new_empty", "empty_like", "empty_strided", "new_empty_strided", "lift_fresh")


def interpret_without_a_device() -> torch.device:
    """The CUDA device; without one the CPU, with Triton's interpreter. Call it before a kernel is defined."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    os.environ.setdefault("TRITON_INTERPRET", "1")
    return torch.device("cpu")


class Counter(TorchDispatchMode):
    """Counts what is dispatched while it is on, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.names: collections.Counter[str] = collections.Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if not func.is_view and name not in ALLOCATING + ONE_ON_CUDA:
            self.names[name] += 1
        return func(*args, **(kwargs or {}))


class TritonCounter:
    """Counts Triton launches while it is on; interpreted kernels are not run."""

    def __init__(self) -> None:
        self.names: collections.Counter[str] = collections.Counter()

    def __enter__(self) -> "TritonCounter":
        from triton import knobs
        from triton.runtime.interpreter import GridExecutor

        names = self.names

        def count(executor: Any, *args: Any, **kwargs: Any) -> None:
            names[executor.fn.__name__] += 1

        self._executor = GridExecutor
        self._call = GridExecutor.__call__
        GridExecutor.__call__ = count
        self._hooks = knobs.runtime.launch_enter_hook
        self._hook = lambda metadata: names.update([metadata.get()["name"]])
        self._hooks.add(self._hook)
        return self

    def __exit__(self, *_: object) -> None:
        self._executor.__call__ = self._call
        self._hooks.remove(self._hook)
