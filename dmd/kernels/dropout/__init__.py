"""Dropout whose masks depend on seed, step, sample and place in the network alone, the same in every backend.

`rng` has `DropoutRNG`, which every forward pass with dropout is handed, and the hash that draws masks. `keys` computes
the hash's keys, and holds those of a whole pass in the device's memory. `triton_dropout` has `FusedDropout`, dropout of
a tensor as one launch each way. Other Triton kernels draw their masks themselves (`common.triton_rows.draw_keep_mask`).

    seed, step, sample (ghost batch, place in it), call site -> key; key, number of an element -> kept or dropped
"""
