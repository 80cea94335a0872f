"""A pytest plugin for tests on a GPU in parallel processes: every result is reported at once, and one broken CUDA
context fails one test.

A run that is cut off shows no summary, so each test is a line when it ends, with the reason where it failed.

After an illegal access every later CUDA call of its process fails. A worker of pytest-xdist that finds its context
broken writes down why and ends; xdist reports the test as crashed and starts another worker.
"""

import os
import sys
from collections.abc import Generator
from typing import Any

import pytest

BROKEN_CONTEXT = 70
"""Exit code of a worker whose context is broken."""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    """After a failed test, end the worker if its device no longer answers."""
    report = yield
    if call.excinfo is not None and "PYTEST_XDIST_WORKER" in os.environ and _context_is_broken():
        print(f"CUDA context broken by {item.nodeid}:\n{report.longreprtext}", file=sys.__stderr__, flush=True)
        os._exit(BROKEN_CONTEXT)
    return report


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Tell a result; in the process that the others report to."""
    if "PYTEST_XDIST_WORKER" not in os.environ and (report.when == "call" or report.failed):
        print(f"\n{report.outcome} in {report.duration:.1f} s: {report.nodeid}", flush=True)
        if report.failed:
            print(report.longreprtext, flush=True)


def _context_is_broken() -> bool:
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return False
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False
