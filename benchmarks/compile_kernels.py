"""Compile every Triton kernel of a training for a GPU that need not be there, and tell what it takes of it.

    python -m benchmarks.compile_kernels --capability 90 --out benchmarks/results/compiled_sm90.csv

A step of the model runs on the CPU with launches replaced by compilations of the same kernels with the same constants;
nothing is computed. Triton brings its own ptxas. A kernel that does not compile, or that needs more shared memory than
the GPU gives a block, fails here and not on the GPU.
"""

import argparse
import os
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

os.environ["TRITON_INTERPRET"] = "0"

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from benchmarks.step_sides import LENGTHS, shapes
from benchmarks.tables import write_rows
from dmd.kernels.keys import DropoutKeys
from dmd.kernels.noise import Noise
from dmd.losses import Objective
from dmd.model import DMD
from dmd.presets import load_config
from dmd.training.provenance import git_commit

TYPES = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.int32: "*i32", torch.int64: "*i64"}
SHARED_LIMIT = {90: 227 * 1024, 80: 163 * 1024}
"""Shared memory of a block, by compute capability."""


class Compiler:
    """Stands in for launches while it is on."""

    def __init__(self, capability: int) -> None:
        self.target = GPUTarget("cuda", capability, 32)
        self.rows: dict[tuple[Any, ...], dict[str, Any]] = {}

    def __enter__(self) -> "Compiler":
        self._run = JITFunction.run
        compiler = self

        def run(kernel: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
            compiler.compile(kernel, args, kwargs)

        JITFunction.run = run
        return self

    def __exit__(self, *_: object) -> None:
        JITFunction.run = self._run

    def compile(self, kernel: JITFunction, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Compile a kernel for these arguments, once."""
        names = [parameter.name for parameter in kernel.params]
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        options = {name: given.pop(name) for name in ("num_warps", "num_stages") if name in given}
        signature, constants, aligned = {}, {}, {}
        for number, parameter in enumerate(kernel.params):
            value = given[parameter.name]
            if parameter.is_constexpr or value is None or (isinstance(value, int) and value == 1):
                signature[parameter.name] = "constexpr"
                constants[(number,)] = value
            elif isinstance(value, torch.Tensor):
                signature[parameter.name] = TYPES[value.dtype]
                aligned[(number,)] = [["tt.divisibility", 16]]
            else:
                signature[parameter.name] = "i32" if isinstance(value, int) else "fp32"
                if isinstance(value, int) and value % 16 == 0:
                    aligned[(number,)] = [["tt.divisibility", 16]]
        key = (kernel.__module__, kernel.__name__, str(signature), str(constants), str(options))
        if key in self.rows:
            self.rows[key]["launches"] += 1
            return
        source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned)
        compiled = triton.compile(source, target=self.target, options=options)
        shown = {k: v for k, v in given.items() if k in ("WIDTH", "DOT", "LAST", "BLOCK_M", "QUERY", "KEY", "SIDE")}
        self.rows[key] = {
            "module": kernel.__module__, "kernel": kernel.__name__, "launches": 1,
            "constants": " ".join(f"{k}={v}" for k, v in shown.items()), "shared_bytes": compiled.metadata.shared,
            **resources(compiled.asm["ptx"], self.target.arch), "matrix_instructions": matrix(compiled.asm["ptx"]),
        }  # fmt: skip
        print(self.rows[key], flush=True)


def matrix(ptx: str) -> str:
    """Kinds of matrix instructions in a program."""
    return " ".join(sorted(set(re.findall(r"(wgmma\.mma_async|mma\.sync)", ptx)))) or "none"


def resources(ptx: str, capability: int) -> dict[str, int]:
    """Registers and spills that ptxas reports."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.ptx"
        path.write_text(ptx, encoding="utf-8")
        arch = f"sm_{capability}a" if capability == 90 else f"sm_{capability}"
        tool = triton.knobs.nvidia.ptxas.path
        command = [tool, "-v", f"--gpu-name={arch}", str(path), "-o", str(Path(folder) / "kernel.cubin")]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    registers = re.search(r"Used (\d+) registers", report)
    spills = re.search(r"(\d+) bytes spill stores", report)
    return {"registers": int(registers[1]) if registers else -1, "spill_bytes": int(spills[1]) if spills else -1}


def step(preset: str, overrides: list[str], *, bf16: bool, samples: int) -> None:
    """Forward, losses and backward of a model, for what they launch."""
    config = load_config(preset, overrides)
    dims, lengths = shapes(preset)
    model, losses = DMD(config.model, dims, lengths, fused=True), Objective(config.objective, config.model, fused=True)
    parts = [torch.randn(samples, lengths[m], dims[m]) for m in dims]
    cpu = torch.device("cpu")
    noise = Noise(seed=1, step=0, ghosts=[0], ghost_size=samples, device=cpu, keys=DropoutKeys())
    labels = torch.zeros(1, samples)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        output = model(*parts, noise)
    losses(output, labels, torch.ones_like(labels))["total"].sum().backward()


def main() -> None:
    """Compile the kernels of a step and write the CSV."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    parser.add_argument("--preset", choices=LENGTHS, default="mosi-aligned")
    parser.add_argument("--precisions", nargs="+", default=["bf16", "fp32"])
    parser.add_argument("--capability", type=int, choices=SHARED_LIMIT, default=90)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    rows = []
    for precision in options.precisions:
        with Compiler(options.capability) as compiler:
            step(options.preset, options.overrides, bf16=precision == "bf16", samples=16)
        about = {"precision": precision, "triton": triton.__version__, "commit": git_commit()}
        rows += [{**row, **about} for row in compiler.rows.values()]
    worst = max(rows, key=lambda row: row["shared_bytes"])
    limit = SHARED_LIMIT[options.capability]
    print(f"{len(rows)} kernels; most shared memory: {worst['shared_bytes']} of {limit} bytes by {worst['kernel']}")
    assert worst["shared_bytes"] <= limit
    if options.out is not None:
        write_rows(options.out, rows)


if __name__ == "__main__":
    main()
