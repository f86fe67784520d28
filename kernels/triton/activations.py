"""The activations, in Triton, and the other functions of a defined cell. The only file that may call an exponential.

Safe for every float32, infinities included: no quotient of two infinities arises. NaN goes through.
"""

import triton
import triton.language as tl
from triton.language.extra import libdevice

from fastcells.kernels.triton.tiles import INTERPRETED


@triton.jit
def exp2(x):
    return tl.exp2(x) if INTERPRETED else libdevice.exp2(x)


@triton.jit
def divide(a, b):
    return a / b if INTERPRETED else libdevice.fast_dividef(a, b)


@triton.jit
def sigmoid(x):
    return divide(1.0, 1.0 + exp2(-1.4426950408889634 * x))


@triton.jit
def tanh(x):
    # The exponential is at most 1, so that the quotient is never that of two infinities. 2 * sigmoid(2 * x) - 1 would
    # be as safe, with four times the rounding error near 0.
    e = exp2(-2.8853900817779268 * tl.abs(x))
    y = divide(1.0 - e, 1.0 + e)
    sign = x.to(tl.int32, bitcast=True) & -0x80000000  # a select would take a predicate, of which there are seven
    return (y.to(tl.int32, bitcast=True) | sign).to(tl.float32, bitcast=True)


@triton.jit
def relu(x):
    return tl.where(x < 0.0, 0.0, x)  # unlike tl.maximum, hands NaN on


# Of defined cells alone: functions of any operand.
PROPAGATE_NAN = tl.constexpr(tl.PropagateNan.ALL)


@triton.jit
def exp(x):
    power = 1.4426950408889634 * x
    # What the product was rounded by, and the constant: left out, they would be 60 roundings of a large result.
    lost = tl.fma(x, 1.4426950408889634, -power) + 1.9259630335e-08 * x
    return exp2(power) * tl.where(tl.abs(power) < 128.0, 1.0 + 0.6931471805599453 * lost, 1.0)


@triton.jit
def log(x):
    return tl.log(x)


@triton.jit
def log1p(x):
    # log(u) is the logarithm of a rounded sum; the factor makes it that of the sum: Goldberg 1991, theorem 4.
    u = 1.0 + x
    as_it_is = (u == 1.0) | (u == float("inf"))
    return tl.where(as_it_is, x, tl.log(u) * (x / tl.where(as_it_is, 1.0, u - 1.0)))


@triton.jit
def sqrt(x):
    return tl.sqrt_rn(x)


@triton.jit
def minimum(a, b):
    return tl.minimum(a, b, propagate_nan=PROPAGATE_NAN)


@triton.jit
def maximum(a, b):
    return tl.maximum(a, b, propagate_nan=PROPAGATE_NAN)


@triton.jit
def softplus(x):
    return maximum(x, 0.0) + log1p(exp(-tl.abs(x)))
