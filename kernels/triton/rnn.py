"""The simple (Elman) RNN: `h' = act(x + h)`, where h stands for `W_hh h + b_hh`; act is tanh or relu.

Equations: documentation of torch.nn.RNN. Backward, in terms of the new state: `d = dh' (1 - h'^2)` for tanh,
`d = dh'` for relu, but 0 where h' <= 0.
"""

import triton
import triton.language as tl

from fastcells import spec
from fastcells.kernels.triton.activations import relu, tanh
from fastcells.kernels.triton.rule import UpdateRule


@triton.jit
def tanh_forward(x, h, state):
    return (tanh(x[0] + h[0]),), ()


@triton.jit
def tanh_backward(d_state, saved, prev, new):
    d = d_state[0] * (1.0 - new[0] * new[0])
    return (d,), (d,), (tl.zeros_like(d),)


@triton.jit
def relu_forward(x, h, state):
    return (relu(x[0] + h[0]),), ()


@triton.jit
def relu_backward(d_state, saved, prev, new):
    d = tl.where(new[0] <= 0.0, 0.0, d_state[0])
    return (d,), (d,), (tl.zeros_like(d),)


RNN_TANH = UpdateRule(spec.RNN_TANH, tanh_forward, tanh_backward)
RNN_RELU = UpdateRule(spec.RNN_RELU, relu_forward, relu_backward)
