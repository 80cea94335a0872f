"""Attention of several MulT encoders at once: `plan` says which; made for CPUs, exportable, and in Triton."""
