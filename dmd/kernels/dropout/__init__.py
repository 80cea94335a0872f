"""Dropout whose masks depend on seed, step, ghost batch and place alone: `rng` and `keys`; in Triton: `triton`."""
