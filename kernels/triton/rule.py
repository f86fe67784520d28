"""A cell's equations as the kernels see them: pure tile functions, without pointers, masks or strides."""

from __future__ import annotations

from dataclasses import dataclass

from triton import JITFunction

from fastcells.spec import CellSpec


@dataclass(frozen=True)
class UpdateRule:
    """One cell's tile functions. The matmuls, loads, loop over time and exchange are the same for all cells.

    Tiles are float32, [rows of the batch, columns of the hidden state]. `x` and `h` are tuples with one tile for each
    gate: the input projection with b_ih, and the recurrent product with b_hh. `state`, `new` and `prev` hold one tile
    for each state, `saved` one for each saved value, in the order of the spec. Further parameters follow the states, in
    `state`, `prev` and, as gradients, `d_prev`.

    forward(x, h, state) -> (new, saved): `saved` is what backward needs besides the states themselves.
    backward(d_state, saved, prev, new) -> (d_x, d_h, d_prev): gradients of x, of h, and of prev as far as it does
    not go through the matmuls.

    A cell with a second product (the reset-before GRU) multiplies its last gate's weights with `r * h` instead of h:
    reset_hidden(x, h, state) gives that tile, from the other gates' h. Then backward is two functions:
    backward_last_gate(d_state, saved, prev, new) -> the gradient of the last gate's product, and, with that gradient
    taken back through the last gate's weights, backward(d_state, saved, prev, new, d_reset_hidden).
    """

    spec: CellSpec
    forward: JITFunction
    backward: JITFunction
    reset_hidden: JITFunction | None = None
    backward_last_gate: JITFunction | None = None
