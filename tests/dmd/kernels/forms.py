"""How the Triton forms are checked: in a process of its own where they are interpreted, in place on CUDA."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

CUDA = torch.cuda.is_available()
TOLERANCE = {"float32": 2e-6, "bfloat16": 2e-2}
on_cuda = pytest.mark.skipif(not CUDA, reason="needs a CUDA device")


def interpreted(module: str, check: str, *arguments: object) -> None:
    """Run a check on the CPU. Triton decides about its interpreter when the kernels are defined.

    Memory is not-a-number until it is written, so that what no kernel wrote is not read either.
    """
    call = f"checks.{check}('cpu', {', '.join(map(repr, arguments))})"
    prepare = "import torch; torch.use_deterministic_algorithms(True)"
    code = f"{prepare}; import {module} as checks, {__name__} as forms; forms.repair_bfloat16(); {call}"
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stdout + result.stderr


def repair_bfloat16() -> None:
    """Triton 3.6's interpreter keeps bfloat16 as its 16 bits, multiplies those as integers and cuts float32 off.

    Here products take the numbers, and float32 is rounded to the nearest, as on CUDA.
    """
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    def numbers(x: TensorHandle) -> np.ndarray:
        if x.data.dtype == np.uint16:
            return (x.data.astype(np.uint32) << 16).view(np.float32)
        return x.data

    def dot(_, a, b, d, input_precision, max_num_imprecise_acc):
        return TensorHandle(np.matmul(numbers(a), numbers(b), dtype=d.data.dtype) + d.data, d.dtype.scalar)

    cast = InterpreterBuilder.cast_impl

    def rounding_cast(self, src, to):
        if (src.dtype.scalar, to.scalar) == (tl.float32, tl.bfloat16):
            bits = src.data.view(np.uint32)
            bits = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
            return TensorHandle((bits >> np.uint32(16)).astype(np.uint16), tl.bfloat16)
        return cast(self, src, to)

    InterpreterBuilder.create_dot = dot
    InterpreterBuilder.cast_impl = rounding_cast


def error(got: torch.Tensor, want: torch.Tensor) -> float:
    """|got - want| / |want|."""
    assert bool(got.isfinite().all())
    return float((got.detach().double().cpu() - want.detach().cpu()).norm() / want.detach().norm().clamp(min=1e-6))
