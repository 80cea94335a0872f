"""The DMD network; needs torch alone (and transformers only where a text encoder is asked for)."""

from dmd.model.config import ModelConfig
from dmd.model.dmd import DMD, DMDOutput
from dmd.model.graph import GDUnit

__all__ = ["DMD", "DMDOutput", "GDUnit", "ModelConfig"]
