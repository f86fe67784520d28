"""The activations, in Triton. The only file that may call `tl.exp`.

Safe for every float32, infinities included: no quotient of two infinities arises. NaN goes through.
"""

import triton
import triton.language as tl


@triton.jit
def sigmoid(x):
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def tanh(x):
    # The exponential is at most 1, so that the quotient is never that of two infinities. 2 * sigmoid(2 * x) - 1 would
    # be as safe, with four times the rounding error near 0.
    e = tl.exp(-2.0 * tl.abs(x))
    y = (1.0 - e) / (1.0 + e)
    return tl.where(x < 0.0, -y, y)


@triton.jit
def relu(x):
    return tl.where(x < 0.0, 0.0, x)  # unlike tl.maximum, hands NaN on
