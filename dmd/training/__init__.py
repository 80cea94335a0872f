"""The training loop, on every rank.

`loop` makes epochs of `step`s, validates after each, and obeys `schedule`; `passes` settles beforehand how many ghost
batches run at once. `ema` averages weights, `nonfinite` bounds steps that are not finite, `output` is what the one rank
that writes holds, `logging` what it writes, `outcome` what a caller gets. `audit` is the test mode.

    ghost batches -> step -> schedule, checkpoint, logging -> outcome
"""
