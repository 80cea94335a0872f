"""A driver of Triton for a card that is not there: launches are bound, specialised, compiled and checked as on it.

    with offline(86) as driver:
        ...  # what launches Triton kernels, on CPU tensors
    driver.kernels  # what was compiled
    driver.launches  # what would have run

Triton brings its own ptxas. Nothing is computed: what a kernel would write stays as it was. Tensors on the CPU stand
for those of the card; torch aligns both, so that views are as far from a 16-byte boundary as on the card.
"""

import contextlib
import io
import itertools
import os
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

os.environ["TRITON_INTERPRET"] = "0"  # before a kernel is defined

import torch
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime import driver as active_driver

from dmd.kernels.common.cards import SHARED_MEMORY

MOST_THREADS = 1024


@dataclass(kw_only=True)
class Kernel:
    """A compiled variant of a kernel."""

    module: str
    name: str
    constants: dict[str, Any]
    shared: int
    """Bytes of shared memory."""
    seconds: float = 0.0
    """Of compilation, ptxas included; 0 where Triton's cache had it."""
    registers: int = -1
    spills: int = -1
    """Bytes of spill stores of a thread; -1 where Triton's cache had the kernel."""
    matrix: str = "none"
    """Kinds of matrix instructions."""
    binary: str = ""
    """Path of the machine code in Triton's cache."""
    parameters: tuple[str, ...] = ()
    """Names of the arguments of a launch, in their order."""


@dataclass(frozen=True, kw_only=True)
class Launch:
    """A launch that would have happened."""

    kernel: Kernel
    grid: tuple[int, int, int]
    arguments: tuple[Any, ...]


@dataclass
class OfflineDriver:
    """What Triton asks of its driver. Each is a device with a number of its own, and so with kernels of its own.

    Args:
        capability: compute capability, 90 for 9.0.
        limit: bytes of shared memory of a block.
    """

    capability: int
    limit: int
    kernels: dict[str, Kernel] = field(default_factory=dict)
    """By Triton's hash."""
    launches: list[Launch] = field(default_factory=list)
    on_launch: Callable[[Launch], None] | None = None
    """Called with each launch, which is then not kept."""
    noting: bool = True
    """Whether kernels and launches are kept at all."""
    log: io.StringIO = field(default_factory=io.StringIO)
    """What ptxas prints."""
    number: int = field(default_factory=itertools.count().__next__)

    @property
    def utils(self) -> "OfflineDriver":
        """Triton's name for the part that loads binaries."""
        return self

    def get_device_properties(self, device: int) -> dict[str, int]:
        """Of the card, what Triton reads."""
        assert device == self.number
        return {"max_shared_mem": self.limit}

    def load_binary(self, name: str, binary: bytes, shared: int, device: int) -> tuple[int, int, int, int, int]:
        """(module, function, registers, spills, most threads); Triton reads the last alone."""
        return 1, 1, 0, 0, MOST_THREADS

    def launcher_cls(self, source: Any, metadata: Any) -> Callable[..., None]:
        """What launches a compiled kernel."""

        if not self.noting:
            return lambda *_: None

        def run(x: int, y: int, z: int, *rest: Any) -> None:
            # Stream, function, metadata of the kernel and of the launch, two hooks; then what the kernel is given.
            launch = Launch(kernel=self.kernels[metadata.hash], grid=(x, y, z), arguments=rest[6:])
            if self.on_launch is None:
                self.launches.append(launch)
            else:
                self.on_launch(launch)

        return run

    def get_current_device(self) -> int:
        """Its number."""
        return self.number

    def get_current_stream(self, device: int) -> int:
        """The only stream."""
        return 0

    def get_current_target(self) -> GPUTarget:
        """What to compile for."""
        return GPUTarget("cuda", self.capability, 32)

    def get_active_torch_device(self) -> torch.device:
        """Where tensors lie."""
        return torch.device("cpu")

    def compiled(
        self, *, src: Any, metadata: dict[str, Any], metadata_group: dict[str, str], times: Any, cache_hit: bool
    ) -> None:
        """Triton's listener: notes a kernel."""
        report, names = self.log.getvalue(), src.fn.arg_names
        self.log.seek(0)
        self.log.truncate()
        constants = {names[path[0]]: value for path, value in src.constants.items()}
        paths = {name.rpartition(".")[2]: path for name, path in metadata_group.items()}
        kernel = Kernel(
            module=src.fn.__module__,
            name=src.fn.__name__,
            constants=constants,
            shared=metadata["shared"],
            binary=paths["cubin"],
            parameters=tuple(names),
        )
        with open(paths["ptx"], encoding="utf-8") as stream:
            found = re.findall(r"(wgmma\.mma_async|tcgen05\.mma|mma\.sync)", stream.read())
        kernel.matrix = " ".join(sorted(set(found))) or "none"
        if not cache_hit:
            kernel.seconds = times.total / 1e6
            kernel.registers = _number(r"Used (\d+) registers", report)
            kernel.spills = _number(r"(\d+) bytes spill stores", report)
        for option in ("num_warps", "num_stages"):
            constants[option] = metadata[option]
        self.kernels[metadata["hash"]] = kernel

    @staticmethod
    def say(message: object) -> None:
        """Print, while standard output belongs to ptxas."""
        print(message, file=sys.stderr, flush=True)


def _number(pattern: str, report: str) -> int:
    found = re.search(pattern, report)
    assert found is not None, report
    return int(found[1])


@contextlib.contextmanager
def offline(
    capability: int,
    *,
    limit: int | None = None,
    cached: bool = True,
    noting: bool = True,
    on_launch: Callable[[Launch], None] | None = None,
) -> Iterator[OfflineDriver]:
    """Compile for a card for a while.

    Args:
        limit: bytes of shared memory of a block; None: the card's.
        cached: take from Triton's cache on disk what it has; registers and spills are then unknown.
        noting: keep what is compiled and launched; standard output is ptxas's then.
    """
    limit = SHARED_MEMORY[capability] if limit is None else limit
    driver = OfflineDriver(capability, limit, on_launch=on_launch, noting=noting)
    before = active_driver._active
    with knobs.compilation.scope(), knobs.nvidia.scope():
        knobs.compilation.always_compile = not cached
        knobs.nvidia.dump_ptxas_log = noting
        knobs.compilation.listener = driver.compiled if noting else None
        active_driver.set_active(driver)
        try:
            with contextlib.redirect_stdout(driver.log) if noting else contextlib.nullcontext():
                yield driver
        finally:
            active_driver._active = before
            knobs.compilation.listener = None
