"""Checkpoints: whole or invisible, written by one rank, read by all.

`format` says what a checkpoint directory holds and when it is whole, and reads it. `writer` writes one; `saver` decides
when, and what happens where the storage fails. `state` is what a training puts into it; `resume` chooses the one to
continue from, `select` the one to evaluate, predict with or export, or the
mean of several (`averaging`). `standing` says how far a run has come by its
checkpoints, and `storage_trial` tries the storage before the first step.

    training state -> saver -> writer -> RUN/checkpoints/STEP -> format -> resume, select
"""
