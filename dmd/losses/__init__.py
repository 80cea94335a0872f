"""The objective of DMD on ghost batches: decoupling, margin and distillation losses, assembled from named terms.

`dmd.losses.terms` lists the terms, one row each: name, title, function, part of the weighted sum, row of the Triton
kernels. `Objective` holds the two GD-Units, computes every term of every ghost batch, and weighs and adds them:

    DMDOutput, labels, mask -> Inputs -> term.function -> {name: [G]} and "total"

A new term is its function and a row there. Where ranks share a ghost batch, `sharing` gathers what terms read, so that
each of them computes all terms.
"""

from dmd.losses.config import MisaConfig, ObjectiveConfig
from dmd.losses.objective import Objective

__all__ = ["MisaConfig", "Objective", "ObjectiveConfig"]
