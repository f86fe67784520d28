"""The activations, in Triton. The only file that may call an exponential.

Safe for every float32, infinities included: no quotient of two infinities arises. NaN goes through.
"""

import triton
import triton.language as tl
from triton.language.extra import libdevice

from fastcells.kernels.triton.tiles import INTERPRETED


@triton.jit
def exp(x):
    if INTERPRETED:
        return tl.exp(x)
    return libdevice.fast_expf(x)


@triton.jit
def divide(a, b):
    if INTERPRETED:
        return a / b
    return libdevice.fast_dividef(a, b)


@triton.jit
def sigmoid(x):
    return divide(1.0, 1.0 + exp(-x))


@triton.jit
def tanh(x):
    # The exponential is at most 1, so that the quotient is never that of two infinities. 2 * sigmoid(2 * x) - 1 would
    # be as safe, with four times the rounding error near 0.
    e = exp(-2.0 * tl.abs(x))
    y = divide(1.0 - e, 1.0 + e)
    return tl.where(x < 0.0, -y, y)


@triton.jit
def relu(x):
    return tl.where(x < 0.0, 0.0, x)  # unlike tl.maximum, hands NaN on
