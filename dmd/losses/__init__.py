"""The objective of DMD on ghost batches: decoupling, margin and distillation losses, assembled from named terms."""

from dmd.losses.objective import Objective, ObjectiveConfig

__all__ = ["Objective", "ObjectiveConfig"]
