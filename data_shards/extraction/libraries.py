"""The libraries of the extras `extract` and `librosa`, loaded where they are used."""

import importlib
import importlib.metadata
from types import ModuleType

LIBRARIES = {
    "av": ("av", "dmd-cluster[extract]"),
    "opensmile": ("opensmile", "dmd-cluster[extract]"),
    "mediapipe": ("mediapipe", "dmd-cluster[extract]"),
    "librosa": ("librosa", "dmd-cluster[librosa]"),
}
"""A module -> the package that holds it, and what pip is told to install."""


def load(module: str) -> ModuleType:
    """A module of LIBRARIES or inside one.

    Raises:
        ValueError: it is not installed, or does not load: what to install.
    """
    package, install = LIBRARIES[module.partition(".")[0]]
    try:
        return importlib.import_module(module)
    except (ImportError, OSError) as error:
        raise ValueError(
            f"features of clips need {package}, which cannot be loaded ({error}); install it: pip install '{install}'"
        ) from error


def version(module: str) -> str:
    """The version of a module of LIBRARIES; `ValueError` where it is not installed."""
    load(module)
    return importlib.metadata.version(LIBRARIES[module][0])
