"""Losses of ghost batches as Triton kernels: the margin loss, the decoupling losses, both GD-Units with theirs."""
