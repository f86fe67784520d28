"""What every loader makes: the numbers of one layer in torch's shapes and order of gates, and stacks of such layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastcells.layers import GRU, LSTM, RNN

LAYERS: dict[str, type[RNN] | type[GRU] | type[LSTM]] = {"RNN": RNN, "GRU": GRU, "LSTM": LSTM}
GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}


class Direction(NamedTuple):
    """One direction of a layer: w_ih [G*H, I], w_hh [G*H, H], biases [G*H] or, where the library has none, None."""

    w_ih: Tensor
    w_hh: Tensor
    b_ih: Tensor | None
    b_hh: Tensor | None


class Loaded(NamedTuple):
    """One layer as it was found. where: its name in messages. options: what tells its equations from others'."""

    where: str
    cell: str
    options: Mapping[str, Any]
    directions: Sequence[Direction]


def tensor(array: object, where: str) -> Tensor:
    """An array of numpy, jax or torch as a floating-point tensor on the CPU. TypeError for another thing."""
    if isinstance(array, Tensor):
        found = array.detach().cpu()
    else:
        numbers = np.asarray(array)
        if numbers.dtype.name == "bfloat16":  # which numpy knows from ml_dtypes, and torch.from_numpy does not
            found = torch.from_numpy(numbers.astype(np.float32)).bfloat16()
        elif numbers.dtype.kind == "f":
            found = torch.from_numpy(np.array(numbers))
        else:
            raise TypeError(f"{where}: expected an array of floating point, got {type(array).__name__}")
    if not found.is_floating_point():
        raise TypeError(f"{where}: expected floating point, got {found.dtype}")
    return found


def check_shape(found: Tensor, where: str, *expected: int) -> None:
    """ValueError unless a tensor has the shape."""
    if found.shape != expected:
        raise ValueError(f"{where}: expected shape {list(expected)}, got {list(found.shape)}")


def reorder(rows: Tensor, order: Sequence[int]) -> Tensor:
    """A tensor [G*H, ...] with its gates in another order: the new first one is the old `order[0]`."""
    gates = rows.chunk(len(order))
    return torch.cat([gates[i] for i in order])


def stack(layers: Sequence[Loaded], *, batch_first: bool) -> RNN | GRU | LSTM:
    """One layer of fastcells, of as many layers as are given. No random number is drawn.

    Raises:
        ValueError: the layers do not fit on one another; it names the two and what differs.
    """
    bias = any(b is not None for loaded in layers for d in loaded.directions for b in (d.b_ih, d.b_hh))
    first = layers[0]
    inputs, hidden = first.directions[0].w_ih.shape[1], first.directions[0].w_hh.shape[1]
    state: dict[str, Tensor] = {}
    for number, loaded in enumerate(layers):
        for what, a, b in (
            ("cell", first.cell, loaded.cell),
            ("options", dict(first.options), dict(loaded.options)),
            ("directions", len(first.directions), len(loaded.directions)),
        ):
            if a != b:
                raise ValueError(f"{first.where} and {loaded.where} are no stack: their {what} are {a} and {b}")
        for suffix, d in zip(("", "_reverse"), loaded.directions, strict=False):
            expected = len(first.directions) * hidden if number else inputs
            if d.w_hh.shape[1] != hidden or d.w_ih.shape[1] != expected:
                raise ValueError(
                    f"{loaded.where} has input size {d.w_ih.shape[1]} and hidden size {d.w_hh.shape[1]}, where the "
                    f"stack on {first.where} needs {expected} and {hidden}"
                )
            state |= {f"weight_ih_l{number}{suffix}": d.w_ih, f"weight_hh_l{number}{suffix}": d.w_hh}
            if bias:  # torch's layers have both or none
                none = d.w_hh.new_zeros(len(d.w_hh))
                state[f"bias_ih_l{number}{suffix}"] = none if d.b_ih is None else d.b_ih
                state[f"bias_hh_l{number}{suffix}"] = none if d.b_hh is None else d.b_hh
    dtypes = {t.dtype for t in state.values()}
    if len(dtypes) > 1:
        raise ValueError(f"{first.where}: the arrays are of several dtypes, {sorted(map(str, dtypes))}")
    layer = LAYERS[first.cell](
        inputs,
        hidden,
        len(layers),
        bias=bias,
        batch_first=batch_first,
        bidirectional=len(first.directions) == 2,
        device="meta",
        dtype=dtypes.pop(),
        **first.options,
    )
    # Its own memory, in the layout that the kernels read.
    layer.load_state_dict({k: t.clone(memory_format=torch.contiguous_format) for k, t in state.items()}, assign=True)
    return layer
