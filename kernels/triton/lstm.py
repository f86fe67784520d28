"""The long short-term memory. x and h hold the gates i, f, g, o; h stands for `W_hh h + b_hh`.

    i = sigmoid(x_i + h_i)      f and o alike
    g = tanh(x_g + h_g)
    c' = f * c + i * g
    h' = o * tanh(c')

Equations: documentation of torch.nn.LSTM. Backward: `dc' += dh' o (1 - tanh(c')^2)`, then `d_i = dc' g i (1 - i)`,
`d_f = dc' c f (1 - f)`, `d_g = dc' i (1 - g^2)`, `d_o = dh' tanh(c') o (1 - o)`, `dc = dc' f`.
"""

import triton
import triton.language as tl

from fastcells import spec
from fastcells.kernels.triton.activations import sigmoid, tanh
from fastcells.kernels.triton.rule import UpdateRule


@triton.jit
def lstm_forward(x, h, state):
    i = sigmoid(x[0] + h[0])
    f = sigmoid(x[1] + h[1])
    g = tanh(x[2] + h[2])
    o = sigmoid(x[3] + h[3])
    c = f * state[1] + i * g
    return (o * tanh(c), c), (i, f, g, o)


@triton.jit
def lstm_backward(d_state, saved, prev, new):
    i, f, g, o = saved
    tanh_c = tanh(new[1])
    d_c = d_state[1] + d_state[0] * o * (1.0 - tanh_c * tanh_c)
    d_i = d_c * g * i * (1.0 - i)
    d_f = d_c * prev[1] * f * (1.0 - f)
    d_g = d_c * i * (1.0 - g * g)
    d_o = d_state[0] * tanh_c * o * (1.0 - o)
    d = (d_i, d_f, d_g, d_o)
    return d, d, (tl.zeros_like(d_c), d_c * f)


LSTM = UpdateRule(spec.LSTM, lstm_forward, lstm_backward)
