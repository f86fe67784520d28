"""One step of a stack of layers: what arrives step by step needs no sequence.

On a CPU, a single row in float32 without gradients runs one call of C for each layer: `Stack`, which is also what text
generation keeps from one character to the next. Anything else runs as a sequence of one step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fastcells import initial_state
from fastcells.backends.base import Call
from fastcells.backends.cpu.backend import CPU
from fastcells.backends.cpu.step_in_place import StepInPlace
from fastcells.layer_shapes import each_of
from fastcells.modes import is_plain_tensor, traced, transformed
from fastcells.spec import State
from fastcells.token_ids import ID_DTYPES, check_range

if TYPE_CHECKING:
    from fastcells.stack import Layer


def step(layer: Layer, input: Tensor, hx: Any) -> tuple[Tensor, Any]:
    """`Layer.step`."""
    if layer.bidirectional:
        raise ValueError(f"{layer.label}: a bidirectional layer reads the whole sequence and has no single steps")
    ids = input.dtype in ID_DTYPES
    unbatched = input.dim() + ids == 1
    time = 1 if layer.batch_first and not unbatched else 0
    weights = layer._weights()
    if not in_c(layer, weights, input, ids, 1 if unbatched else len(input), hx):
        out, last = layer(input.unsqueeze(time), hx)[:2]
        return out.squeeze(time), last
    x = input.unsqueeze(0) if unbatched else input
    state = layer._initial_state(x.unsqueeze(time), None, None, ids, hx, unbatched, weights[0])
    layer.check_forward_args(x.unsqueeze(time), state, None)
    if ids:
        check_range(input, layer.input_size)
    stack = Stack(layer, weights, state if isinstance(state, tuple) else (state,))
    out = stack(int(x[0]) if ids else x[0]).clone()
    last = stack.state if isinstance(state, tuple) else stack.state[0]
    return (out, each_of(last, Tensor.squeeze, 1)) if unbatched else (out.unsqueeze_(0), last)


def in_c(layer: Layer, weights: list[Tensor], x: Tensor, ids: bool, rows: int, hx: Any) -> bool:
    """Whether C runs a step of this layer. x: [B, I] or ids [B]; rows: B; hx: as `step` was given it."""
    start = hx if isinstance(hx, tuple | list) else (hx,)
    if hx is None:
        start = initial_state.learned(layer) if layer.learned_state else ()
    w_ih, w_hh = weights[:2]
    if rows != 1 or layer.impl not in ("auto", "cpu") or layer.proj_size or not is_plain_tensor(type(x)):
        return False
    if layer._spec().rule is not None:
        return False  # of a defined cell, C runs sequences
    if not all(is_plain_tensor(type(w)) for w in weights) or torch._C._is_any_autocast_enabled():
        return False
    if layer._regularised or (layer.training and layer.dropout and layer.num_layers > 1):
        return False
    if torch.is_grad_enabled() and any(t.requires_grad for t in (x, *weights, *start)):
        return False
    if traced() or transformed() or (not ids and x.dtype != torch.float32):
        return False
    return CPU.obstacle(Call("cpu", layer._spec(), ids, 1, 1, w_ih, w_hh)) is None


class Stack:
    """One row on its way through a stack of layers, step by step in C. It keeps the state, and reads the parameters.

    state: what it starts from, each [num_layers, 1, H]; the attribute is a copy of it, which each step changes.
    """

    def __init__(self, layer: Layer, weights: list[Tensor], state: State) -> None:
        self.state = tuple(s.detach().clone(memory_format=torch.contiguous_format) for s in state)
        cell = layer._spec().name
        self.layers: list[tuple[StepInPlace, Tensor]] = []  # and the h that it changes
        for row in range(layer.num_layers):
            w_ih, b_ih, (w_hh, b_hh, *_) = layer._weights_of(row, weights)
            own = tuple([s[row, 0] for s in self.state])
            self.layers.append((StepInPlace(cell, own, (w_ih, w_hh, b_ih, b_hh)), own[0]))

    def __call__(self, x: Tensor | int) -> Tensor:
        """The output [H] for x [I] or a token id: the last layer's own state, which the next step changes."""
        for step, h in self.layers:
            step(x)
            x = h
        return h
