"""Compile here what a visit launches on the GPU machine, and pack it for `.whl/`.

Compilation took most of the first visit.

    python -m benchmarks.visit_cache TRITON_WHEEL --arch 90 --out .whl/triton_cache.tar.xz

TRITON_WHEEL is the wheel that the GPU machine's Python has (`pip download --python-version 3.12 ... triton==3.6.0`).
Compiled are training steps of the presets, what the tests marked `gpu` launch and the candidates of
`benchmarks.block_sizes`; some ten minutes on two cores. With 1553 carried kernels, three trainings on an H100 compiled
34 more.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.offline_driver import offline  # before a kernel is defined

# isort: split
from benchmarks.block_sizes import compile_candidates
from benchmarks.compile_kernels import CASES, compile_case
from benchmarks.other_triton import UNPACKED, pretend, unpack
from benchmarks.visit_site import pack_cache
from dmd.kernels.common.cards import SHARED_MEMORY

BLOCK_SIZES = "block-sizes"
STEPS = (f"{BLOCK_SIZES}:bf16", "mosi-aligned:bf16", "mosi-aligned:fp32", "mosi-aligned:tf32", "mosi-unaligned:bf16")
TESTS = ("pytest", "-p", "benchmarks.visit_pretend", "-p", "no:cacheprovider", "-q", "tests/dmd/kernels", "-m", "gpu")
GROUPS = ("bfloat16", "not bfloat16")
"""Tests of a process, as expressions for `pytest -k`."""


def compile_step(name: str, arch: int) -> None:
    """Compile what a training step, PRESET:PRECISION, launches, or the candidates of `benchmarks.block_sizes`."""
    preset, _, precision = name.partition(":")
    pretend()
    if preset == BLOCK_SIZES:
        print(compile_candidates(arch, [precision]), flush=True)
        return
    with offline(arch, noting=False) as driver:
        compile_case(CASES[preset], precision, driver)


def compile_all(unpacked: Path, arch: int, cache: Path) -> None:
    """Compile everything into a cache, two processes at once."""
    environment = {
        **os.environ,
        UNPACKED: str(unpacked),
        "VISIT_ARCH": str(arch),
        "TRITON_CACHE_DIR": str(cache),
        "OMP_NUM_THREADS": "1",
    }
    own = ("benchmarks.visit_cache", "--arch", str(arch), "--step")
    commands = [(*TESTS, "-k", group) for group in GROUPS] + [(*own, step) for step in STEPS]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda command: subprocess.run([sys.executable, "-m", *command], env=environment), commands))


def main() -> None:
    """Compile and pack."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheel", type=Path, nargs="?", metavar="TRITON_WHEEL")
    parser.add_argument("--arch", type=int, choices=SHARED_MEMORY, default=90)
    parser.add_argument("--out", type=Path, default=Path(".whl/triton_cache.tar.xz"))
    parser.add_argument("--step", choices=STEPS, help="compile this one step into TRITON_CACHE_DIR, and pack nothing")
    options = parser.parse_args()
    if options.step:
        compile_step(options.step, options.arch)
        return
    if options.wheel is None:
        parser.error("TRITON_WHEEL is missing; pip download it for the GPU machine's Python")
    with tempfile.TemporaryDirectory(prefix="visit-cache-") as folder:
        unpacked, cache = Path(folder) / "triton", Path(folder) / "cache"
        unpack(options.wheel, unpacked)
        compile_all(unpacked, options.arch, cache)
        number = pack_cache(cache, options.out)
    print(f"{options.out}: {number} kernels for sm_{options.arch}, {options.out.stat().st_size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
