"""What the functional forms and each layer and direction are given: shapes and dtypes that fit together."""

from __future__ import annotations

import torch
from torch import Tensor

from fastcells.backends.base import LayerWeights
from fastcells.modes import autocast_dtype
from fastcells.spec import CellSpec, State
from fastcells.spec.recurrent import DENSE
from fastcells.token_ids import is_token_ids


def check_input(spec: CellSpec, x: Tensor, weights: LayerWeights) -> None:
    """Raise RuntimeError unless x, [T, B, I] or ids [T, B], and the weights have shapes that fit."""
    dim = 2 if is_token_ids(x) else 3
    if x.dim() != dim:
        raise RuntimeError(f"input must have {dim} dimensions, got {x.dim()}")
    if x.shape[0] == 0:
        raise RuntimeError(f"Expected sequence length to be larger than 0 in RNN, got input of shape {list(x.shape)}")
    w_ih, b_ih, (w_hh, b_hh, w_hr, *_) = weights
    if w_ih.dim() != 2 or (dim == 3 and x.shape[2] != w_ih.shape[1]):
        raise RuntimeError(f"input of shape {list(x.shape)} does not fit w_ih of shape {list(w_ih.shape)}")
    gates = spec.num_gates
    if spec.recurrent is not DENSE:
        spec.recurrent.check(w_hh, gates, len(w_ih) // gates)
    elif w_hh.dim() != 2 or len(w_hh) != len(w_ih) or len(w_hh) % gates:
        raise RuntimeError(
            f"w_ih and w_hh must have {gates}*H rows, got shapes {list(w_ih.shape)} and {list(w_hh.shape)}"
        )
    hidden = len(w_ih) // gates
    columns = hidden if w_hr is None else w_hr.shape[0]
    if spec.recurrent is DENSE and w_hh.shape[1] != columns:
        width = "" if w_hr is None else f" with w_hr of shape {list(w_hr.shape)}"
        raise RuntimeError(f"w_hh must be {[len(w_hh), columns]}{width}, got {list(w_hh.shape)}")
    if w_hr is not None and (w_hr.dim() != 2 or w_hr.shape[1] != hidden):
        raise RuntimeError(f"w_hr must be [P, H] with H = {hidden}, got {list(w_hr.shape)}")
    for name, b in (("b_ih", b_ih), ("b_hh", b_hh)):
        if b is not None and b.shape != (len(w_ih),):
            raise RuntimeError(f"{name} must be [{len(w_ih)}], got {list(b.shape)}")


def initial_state(spec: CellSpec, x: Tensor, state: tuple[Tensor | None, ...], weights: LayerWeights) -> State:
    """The initial state, zeros where None is given. RuntimeError where one has another shape or dtype than it must."""
    w_hh, w_hr = weights.recurrent.w_hh, weights.recurrent.w_hr
    B, hidden = x.shape[1], len(weights.w_ih) // spec.num_gates
    filled = []
    for name, s in zip(spec.states, state, strict=True):
        size = hidden if name != "h" or w_hr is None else w_hr.shape[0]
        if s is None:
            # new_zeros: where x is a batch that torch.func maps over, the zeros must be one too
            s = x.new_zeros(B, size, dtype=w_hh.dtype if is_token_ids(x) else x.dtype)
        elif s.shape != (B, size):
            raise RuntimeError(f"{name}0 must be [B, H] = {[B, size]}, got {list(s.shape)}")
        elif s.dtype != w_hh.dtype and autocast_dtype(w_hh) is None:
            raise RuntimeError(f"{name}0 has dtype {s.dtype} and the weights have {w_hh.dtype}")
        filled.append(s)
    return tuple(filled)


def check_options(x: Tensor, lengths: Tensor | None, resets: Tensor | None) -> None:
    """Raise RuntimeError unless `lengths` is an integer [B] and `resets` a bool [T, B], or None."""
    if lengths is not None and (lengths.shape != x.shape[1:2] or not is_token_ids(lengths)):
        raise RuntimeError(
            f"lengths must be an integer tensor of shape {[x.shape[1]]}, got {lengths.dtype} {list(lengths.shape)}"
        )
    if resets is not None and (resets.dtype != torch.bool or resets.shape != x.shape[:2]):
        raise RuntimeError(
            f"resets must be a bool tensor of shape {list(x.shape[:2])}, got {resets.dtype} {list(resets.shape)}"
        )
