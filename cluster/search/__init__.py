"""Chooses the configs of trials, ends the poor ones, and shows how all do.

`space` reads which keys vary, `strategies` draws their `values` (random, grid, TPE), `recorded_search` hands the trials
to Ray Tune, `asha` stops those that fall behind. `trial_records` keeps request and trials on the experiment's storage:
a restart reads them and goes on, since nothing here relies on what Ray remembers. `live_table` shows trials in the
terminal, `tensorboard_hparams` in TensorBoard.
"""
