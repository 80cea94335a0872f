"""The training loop, on every rank.

`loop` makes epochs of `step`s, validates after each, and obeys `schedule`; `passes` settles beforehand how many ghost
batches run at once. `ema` averages weights, `nonfinite` bounds steps that are not finite, `output` is what the one rank
that writes holds, `logging` what it writes, `callbacks` what a caller does meanwhile, `outcome` what it is told.
`in_process` is `dmd.train`. `audit` is the test mode.

    ghost batches -> step -> callbacks -> schedule, checkpoint, logging -> outcome
"""
