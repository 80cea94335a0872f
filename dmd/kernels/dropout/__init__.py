"""Dropout whose masks depend on seed, step, ghost batch and place in the network alone, the same in every backend.

`rng` has `DropoutRNG`, which every forward pass with dropout is handed, and the hash that draws masks. `keys` holds the
hash's keys of a whole pass in the device's memory. `triton_dropout` has `FusedDropout`, dropout of a tensor as one
launch each way. Other Triton kernels draw their masks themselves (`common.triton_rows.draw_keep_mask`).

    seed, step, ghost batch, call site -> key; key, number of an element -> kept or dropped
"""
