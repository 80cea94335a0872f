"""How kernels are checked for a card that is not there: in a process that defines them for compilation."""

import warnings
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache
from importlib import import_module

import torch

from tests.dmd.kernels.forms import other_process, run_check


@lru_cache
def _compiler() -> ProcessPoolExecutor:
    """One process for all checks: to import everything takes longer than most of them."""
    return other_process(_prepare)


def _prepare() -> None:
    """Prepare the process: the driver comes before any kernel is defined."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    import_module("benchmarks.offline_driver")


def without_card(module: str, check: str, *arguments: object) -> None:
    """Run a check of a module."""
    run_check(_compiler(), module, check, *arguments)
