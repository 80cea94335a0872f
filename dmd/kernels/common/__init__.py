"""What all Triton kernels share: launching, cards, block sizes, rows of several encoders, matrix products."""
