"""The order of test files: those that take longest come first, so that parallel workers end at the same time; and what
tests of all floors need."""

import signal
from collections.abc import Iterator

import pytest

LONGEST = (
    "tests/launch/test_hosts.py",
    "tests/launch/test_launcher.py",
    "tests/launch/test_stop.py",
    "tests/launch/test_resume.py",
    "tests/launch/test_text_encoders.py",
    "tests/launch/test_every_task.py",
    "tests/launch/test_adam.py",
    "tests/test_readme.py",
    "tests/test_main_job.py",
    "tests/launch/test_kill.py",
    "tests/test_notebooks.py",
    "tests/dmd/kernels/test_placement.py",
    "tests/dmd/kernels/test_fused.py",
    "tests/dmd/test_docs.py",
    "tests/dmd/kernels/test_compiled.py",
    "tests/dmd/test_predict.py",
    "tests/test_visit.py",
    "tests/dmd/test_report.py",
    "tests/dmd/kernels/test_stack_fused.py",
    "tests/launch/test_determinism.py",
    "tests/launch/test_in_process.py",
    "tests/dmd/kernels/test_whole_fused.py",
    "tests/dmd/test_remote_runs.py",
    "tests/dmd/test_tasks.py",
    "tests/dmd/test_text_encoders.py",
    "tests/dmd/test_lora.py",
    "tests/dmd/test_quantize.py",
    "tests/dmd/test_normalisation.py",
    "tests/dmd/test_ranks.py",
    "tests/dmd/test_models.py",
    "tests/dmd/test_trackers.py",
    "tests/test_extras.py",
)
"""By the CPU time of a whole file, over some ten seconds; the order of others does not matter."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort files; pytest-xdist keeps their order with `--no-loadscope-reorder`, else it goes by numbers of tests.

    Raises:
        pytest.UsageError: a test of Ray where `make clusters` does not look for it.
    """
    astray = [item.nodeid for item in items if item.get_closest_marker("ray") and "tests/cluster/" not in item.nodeid]
    if astray:
        raise pytest.UsageError(f"tests marked `ray` belong in tests/cluster: {', '.join(astray)}")
    order = {file: number for number, file in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.nodeid.partition("::")[0], len(LONGEST)))


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C reaches a test also where it runs in the background of a shell, which lets it ignore SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
