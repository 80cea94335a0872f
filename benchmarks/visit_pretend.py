"""A pytest plugin: tests marked `gpu` without a GPU, for what they launch. They run on the CPU and compare nothing.

    VISIT_TRITON=FOLDER VISIT_ARCH=90 TRITON_CACHE_DIR=CACHE pytest -p benchmarks.visit_pretend tests/dmd/kernels -m gpu

Tests that need a device beyond their kernels fail; what they launched before is compiled.
"""

import contextlib
import functools
import inspect
import os
from collections.abc import Callable
from typing import Any

import pytest

from benchmarks.offline_driver import offline  # before a kernel is defined

# isort: split
from benchmarks.other_triton import pretend

_FOR_GOOD = contextlib.ExitStack()


def pytest_configure() -> None:
    """From here on kernels are compiled for the card, and launched nowhere."""
    _FOR_GOOD.enter_context(offline(int(os.environ["VISIT_ARCH"]), noting=False))
    pretend()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Nothing is skipped, checks run on the CPU, and every error is 0."""
    for item in items:
        item.own_markers = [mark for mark in item.own_markers if mark.name != "skipif"]
        assert isinstance(item, pytest.Function)
        for name, value in list(vars(item.module).items()):
            if name == "error":
                setattr(item.module, name, lambda *_: 0.0)
            elif name.startswith("check_") and inspect.isfunction(value) and not hasattr(value, "__wrapped__"):
                setattr(item.module, name, on_cpu(value))


def on_cpu(check: Callable[..., Any]) -> Callable[..., Any]:
    """A check that takes "cuda" for "cpu"."""

    @functools.wraps(check)
    def run(*arguments: Any, **options: Any) -> Any:
        return check(*("cpu" if argument == "cuda" else argument for argument in arguments), **options)

    return run
