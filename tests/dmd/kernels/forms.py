"""How the Triton forms are checked: in a process of its own where they are interpreted, in place on CUDA."""

import os
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import cache, lru_cache
from importlib import import_module
from multiprocessing import get_context

import numpy as np
import pytest
import torch

CUDA = torch.cuda.is_available()
TOLERANCE = {"float32": 2e-6, "bfloat16": 2e-2}
on_cuda = pytest.mark.skipif(not CUDA, reason="needs a CUDA device")


def other_process(prepare: Callable[[], None]) -> ProcessPoolExecutor:
    """A process of its own for checks, which `prepare` makes ready before any kernel is defined."""
    return ProcessPoolExecutor(1, get_context("spawn"), initializer=prepare)


def run_check(process: ProcessPoolExecutor, module: str, check: str, *arguments: object) -> None:
    """Run a check of a module there; what it raises is raised here."""
    process.submit(_check, module, check, arguments).result()


def _check(module: str, check: str, arguments: tuple[object, ...]) -> None:
    getattr(import_module(module), check)(*arguments)


@lru_cache
def _interpreter() -> ProcessPoolExecutor:
    """One process for all checks: to import everything takes longer than most of them."""
    return other_process(_interpret)


def _interpret() -> None:
    """Prepare the process. Triton decides about its interpreter when kernels are defined, which none is yet."""
    os.environ["TRITON_INTERPRET"] = "1"
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    prepare_interpreter()


def interpreted(module: str, check: str, *arguments: object) -> None:
    """Run a check on the CPU, with the kernels interpreted.

    Memory is not-a-number until it is written, so that what no kernel wrote is not read either.
    """
    run_check(_interpreter(), module, check, "cpu", *arguments)


def prepare_interpreter() -> None:
    """Make Triton's interpreter of this process right and fast enough for whole models."""
    _repair_bfloat16()
    _omit_repeated_work()


def _repair_bfloat16() -> None:
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


def _omit_repeated_work() -> None:
    """Two parts of Triton 3.6's interpreter take half its time and do not change a result.

    It replaces the functions of the language by its own at every call of a function, and puts back the ones before at
    the end of a launch. In this process kernels are interpreted alone, so each function needs them once, for good.
    It computes every integer sum and product a second time, in 64 bits, for an assertion that it makes only in its
    debug mode, which nobody sets.
    """
    from triton.runtime import interpreter

    replace_language = interpreter._patch_lang

    @cache
    def replace_once(fn):
        replace_language(fn)
        return interpreter._LangPatchScope()  # puts nothing back

    interpreter._patch_lang = replace_once
    options = interpreter.interpreter_builder.options
    assert not options.debug
    interpreter.interpreter_builder.options = replace(options, sanitize_overflow=False)


def error(got: torch.Tensor, want: torch.Tensor) -> float:
    """|got - want| / |want|."""
    assert bool(got.isfinite().all())
    return float((got.detach().double().cpu() - want.detach().cpu()).norm() / want.detach().norm().clamp(min=1e-6))
