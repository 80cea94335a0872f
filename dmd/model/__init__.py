"""The DMD network; needs torch alone (and transformers only where a text encoder is asked for)."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from dmd.model.config import ModelConfig

if TYPE_CHECKING:
    from dmd.model.dmd import DMD, DMDOutput
    from dmd.model.graph import GDUnit

__all__ = ["DMD", "DMDOutput", "GDUnit", "ModelConfig"]


def __getattr__(name: str) -> Any:
    """The modules, loaded where they are asked for: whoever reads `dmd.model.config` alone does without torch."""
    modules = {"DMD": "dmd", "DMDOutput": "dmd", "GDUnit": "graph"}
    if name not in modules:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{modules[name]}"), name)
