"""Objectives of other models that are more than the task loss of the fused head: one file each, a `ModelObjective`."""
