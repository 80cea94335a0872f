"""What Triton kernels of losses over ghost batches share: the samples' weights in a mean."""

import triton
import triton.language as tl


@triton.jit
def sample_weights(
    mask,  # [G, samples], 1 for a sample, 0 for padding
    ghost,  # number of the ghost batch
    samples,  # of a ghost batch
    S: tl.constexpr,  # samples, padded to a power of two
):
    """Each sample's share in the mean over a ghost batch, and which samples are no padding (1 or 0), [S] each."""
    s = tl.arange(0, S)
    real = tl.load(mask + ghost * samples + s, s < samples, 0.0)
    return real / tl.maximum(tl.sum(real, 0), 1.0), real
