"""A stack of pre-norm transformer encoders: `plan` says which; a layer made for CPUs, and a stack in Triton."""
