"""Evaluation: a split, every sample exactly once, metrics computed from all of them.

`evaluate` runs the modules of a training over a split, on any number of ranks. `trained_run` does it for a
checkpoint of a run directory, as `dmd evaluate` shows it, and finds the shards that the run was trained on.
`ensemble` evaluates several runs as one and calibrates them. `any_model` is `dmd.evaluate`: of runs or loaded models.
"""
