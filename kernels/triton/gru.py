"""The gated recurrent unit. x and h hold the gates r, z, n; h stands for `W_hh h + b_hh`.

    r  = sigmoid(x_r + h_r)
    z  = sigmoid(x_z + h_z)
    n  = tanh(x_n + r * h_n)                       reset-after: torch.nn.GRU, cuDNN
    n  = tanh(x_n + W_hn (r * h) + b_hn)           reset-before: Cho et al. 2014 (arXiv 1406.1078v3), equation 8
    h' = (1 - z) * n + z * h

Backward: `d_n = dh' (1 - z) (1 - n^2)`, `d_z = dh' (h - n) z (1 - z)`; reset-after `d_r = d_n h_n r (1 - r)`, with
`d_n r` for h_n; reset-before `d_r = d_reset_hidden h r (1 - r)`, with the gradient
d_reset_hidden of `r * h`.
"""

import triton
import triton.language as tl  # noqa: F401  the interpreter looks for it in each module

from fastcells import spec
from fastcells.kernels.triton.activations import sigmoid, tanh
from fastcells.kernels.triton.rule import UpdateRule


@triton.jit
def reset_after_forward(x, h, state):
    r = sigmoid(x[0] + h[0])
    z = sigmoid(x[1] + h[1])
    n = tanh(x[2] + r * h[2])
    return (n + z * (state[0] - n),), (r, z, n, h[2])


@triton.jit
def reset_after_backward(d_state, saved, prev, new):
    r, z, n, h_n = saved
    d_n = d_state[0] * (1.0 - z) * (1.0 - n * n)
    d_z = d_state[0] * (prev[0] - n) * z * (1.0 - z)
    d_r = d_n * h_n * r * (1.0 - r)
    return (d_r, d_z, d_n), (d_r, d_z, d_n * r), (d_state[0] * z,)


@triton.jit
def reset_before_reset_hidden(x, h, state):
    return sigmoid(x[0] + h[0]) * state[0]


@triton.jit
def reset_before_forward(x, h, state):
    r = sigmoid(x[0] + h[0])
    z = sigmoid(x[1] + h[1])
    n = tanh(x[2] + h[2])
    return (n + z * (state[0] - n),), (r, z, n)


@triton.jit
def reset_before_backward_last_gate(d_state, saved, prev, new):
    _, z, n = saved
    return d_state[0] * (1.0 - z) * (1.0 - n * n)


@triton.jit
def reset_before_backward(d_state, saved, prev, new, d_reset_hidden):
    r, z, n = saved
    d_n = d_state[0] * (1.0 - z) * (1.0 - n * n)
    d_z = d_state[0] * (prev[0] - n) * z * (1.0 - z)
    d_r = d_reset_hidden * prev[0] * r * (1.0 - r)
    d = (d_r, d_z, d_n)
    return d, d, (d_state[0] * z + d_reset_hidden * r,)


GRU_RESET_AFTER = UpdateRule(spec.GRU_RESET_AFTER, reset_after_forward, reset_after_backward)
GRU_RESET_BEFORE = UpdateRule(
    spec.GRU_RESET_BEFORE,
    reset_before_forward,
    reset_before_backward,
    reset_hidden=reset_before_reset_hidden,
    backward_last_gate=reset_before_backward_last_gate,
)
