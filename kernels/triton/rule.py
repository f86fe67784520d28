"""A cell's maths as the kernels see it: pure tile functions, without pointers, masks or strides."""

from __future__ import annotations

from dataclasses import dataclass

from triton import JITFunction


@dataclass(frozen=True)
class UpdateRule:
    """One cell. Everything else (matmuls, loads, the loop over time, the exchange) is the same for all cells.

    Tiles are float32, [rows of the batch, columns of the hidden state]. `x` and `h` are tuples with one tile a gate,
    in torch's order: the input projection with b_ih, and the recurrent product with b_hh. `state`, `new` and `prev`
    are (h,) or (h, c).

    forward(x, h, state) -> (new, saved): `saved` is what backward needs besides the states themselves.
    backward(d_state, saved, prev, new) -> (d_x, d_h, d_prev): gradients of x, of h, and of prev as far as it does
    not go through the matmuls.

    A cell with a second product (the reset-before GRU) multiplies its last gate's weights with a tile of its own
    instead of h: reset(x, h, state) gives that tile, from the other gates' h. Then backward is two functions:
    backward_reset(d_state, saved, prev, new) -> the gradient of the last gate's product, and, with that gradient
    taken back through the last gate's weights, backward(d_state, saved, prev, new, d_reset).
    """

    name: str
    gates: int
    states: int
    saved: int
    forward: JITFunction
    backward: JITFunction
    same_gradient: bool  # whether d_x and d_h are the same
    reset: JITFunction | None = None
    backward_reset: JITFunction | None = None
