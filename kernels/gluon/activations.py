"""The activations, in Gluon: as kernels/triton/activations.py, with a reciprocal in place of each division.

The reciprocal is of a number from 1 to infinity, so that nothing is lost without the care for small ones that a
division takes. Safe for every float32, infinities included, and NaN goes through.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

LOG2_E = gl.constexpr(1.4426950408889634)


@gluon.jit
def reciprocal(x):
    return gl.inline_asm_elementwise("rcp.approx.ftz.f32 $0, $1;", "=r,r", [x], dtype=gl.float32, is_pure=True, pack=1)


@gluon.jit
def exp2(x):
    return gl.inline_asm_elementwise("ex2.approx.ftz.f32 $0, $1;", "=r,r", [x], dtype=gl.float32, is_pure=True, pack=1)


@gluon.jit
def sigmoid(x):
    return reciprocal(1.0 + exp2(x * -LOG2_E))


@gluon.jit
def tanh(x):
    return 2.0 * reciprocal(1.0 + exp2(x * (-2.0 * LOG2_E))) - 1.0


@gluon.jit
def relu(x):
    return gl.where(x < 0.0, 0.0, x)  # unlike a maximum, hands NaN on
