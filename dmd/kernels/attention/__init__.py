"""Attention of several MulT encoders at once: `plan` says which; in blocks on a CPU, exportable, and in Triton."""
