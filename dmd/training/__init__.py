"""Training: steps, schedule, checkpoints, evaluation and the record of a run."""
