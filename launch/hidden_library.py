"""Imports without a library that is installed: DeepSpeed's are quicker without MLflow.

DeepSpeed imports its autotuner, which nothing here uses, and that imports MLflow wherever it is installed. MLflow takes
as long to import as torch and DeepSpeed together.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def hidden(library: str) -> Iterator[None]:
    """Make a library unavailable to imports in the block; one that is loaded stays as it is."""
    if library in sys.modules:
        yield
        return
    sys.modules[library] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[library]
