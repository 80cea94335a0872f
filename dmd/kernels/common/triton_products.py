"""The matrix product of the Triton kernels, in the precision that the model runs in."""

import triton
import triton.language as tl


@triton.jit
def product(
    a,  # [M, K], bfloat16 or float32
    b,  # [K, N], of the same type
    PRECISION: tl.constexpr,  # of float32 operands, Triton's `input_precision`: "ieee" or "tf32"
):
    """a b in float32, [M, N].

    Tensor cores cut float32 operands off after the 10 bits of TF32, which makes every product smaller. Operands are
    rounded to the nearest before, which halves the largest error and leaves none that has a sign.
    """
    if PRECISION == "tf32":
        a = nearest_tf32(a)
        b = nearest_tf32(b)
    return tl.dot(a, b, input_precision=PRECISION)


@triton.jit
def nearest_tf32(
    x,  # any shape and type
):
    """Float32 values rounded to 10 bits of mantissa; other types as they are."""
    if x.dtype == tl.float32:
        x = ((x.to(tl.int32, bitcast=True) + 0x1000) & -0x2000).to(tl.float32, bitcast=True)
    return x
