"""Constants of the losses and of the GD-Units' edges, for PyTorch and for the Triton kernels alike: plain numbers."""

MARGIN_EPSILON = 1e-8
"""Added to the squared norm of a row of the margin loss, inside the square root (published code)."""
MARGIN_PER_LABEL = 0.15
"""Margin between two samples whose labels differ by one (published code; eq. 4 has a constant margin)."""
COSINE_EPSILON = 1e-12
"""Added to the squared norms of a cosine, inside the square root: a zero vector has cosine 0 and a finite gradient
(CosineEmbeddingLoss of PyTorch 1.9, which the published code runs on)."""
REGULARISER_WEIGHT = 10.0
"""Of the squared distance of the mean edges from their prior (published code)."""
REPRESENTATION_WEIGHT = 10.0
"""Of the representation distillation (published code)."""
EDGE_TEMPERATURE = 8.0
"""Divides the scores of the six pairs before the softmax that makes edges of them (published code)."""
