"""Dropout whose masks depend on seed, step, ghost batch and place alone: `noise` and `keys`; in Triton: `triton`."""
