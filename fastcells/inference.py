"""The short way of layers and cells: a few rows of float32 on a CPU, without gradients, in one call of C each.

What such a call computes takes microseconds, and so does every question that Python asks. This way asks only what has
to be known to go it; any doubt leaves a call to the long way, which reaches the same kernel where it may, and raises
what there is to be raised.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import Parameter

from fastcells import dispatch
from fastcells.backends.base import Call
from fastcells.backends.cpu import layer_call, native
from fastcells.backends.cpu.policy import FEW_ROWS
from fastcells.modes import traced, transformed
from fastcells.spec import CellSpec, State
from fastcells.tuning import verdicts

if TYPE_CHECKING:
    from fastcells.cells import Cell
    from fastcells.stack import Layer

SHORT: set[type] = set()  # classes whose methods are this package's own; what is derived from them goes the long way
MOST_KEPT = 4096
FLOAT = 4  # bytes

_chosen: dict[tuple[object, ...], bool] = {}  # whether C is what runs calls of a kind


def layer(module: Layer, x: Tensor, hx: Any) -> tuple[Tensor, Any] | None:
    """`forward` without options; None where the long way has to be gone. hx: a tensor, of an LSTM two, or None."""
    graph = torch.is_grad_enabled()
    kind = type(x)
    if (kind is not Tensor and kind is not Parameter) or type(module) not in SHORT or x.dtype is not torch.float32:
        return None
    own = module._parameters
    try:
        weights = [own[name] for name in module._flat_weights_names]
    except KeyError:  # a parametrization, weight norm or pruning has put something else in a parameter's place
        return None
    if (graph and weights[0] is not None and weights[0].requires_grad) or _watched():
        return None
    if module.training and (module._regularised or (module.dropout and module.num_layers > 1)):
        return None
    if module.learned_state or module.proj_size or module.return_states or module.impl not in ("auto", "cpu"):
        return None
    sizes, batch_first = x.shape, module.batch_first
    if len(sizes) == 3:
        T, B, I = (sizes[1], sizes[0], sizes[2]) if batch_first else sizes  # noqa: E741
        place = layer_call.place(x, 1 if batch_first else 0, graph)
    elif len(sizes) == 2:
        (T, I), B = sizes, 1  # noqa: E741
        place = layer_call.place(x.unsqueeze(1), 0, graph)
    else:
        return None
    H, spec, L, D = module.hidden_size, module._spec(), module.num_layers, 2 if module.bidirectional else 1
    if place is None or module.input_size != I or not 0 < B <= FEW_ROWS or not (T and I and H):
        return None
    if not _is_chosen(module.impl, spec, T, B, I, H, L, D, weights):
        return None
    shape = (L * D, H) if len(sizes) == 2 else (L * D, B, H)
    start = _addresses(hx, shape, spec.num_states, graph)
    count = 4 if module.bias else 2
    each = [
        layer_call.weights(weights[i * count : (i + 1) * count], spec.num_gates * H, I if i < D else D * H, H, graph)
        for i in range(L * D)
    ]
    if start is None or None in each:
        return None
    last = [x.new_empty(shape) for _ in spec.states]
    ends = _pair([s.data_ptr() for s in last])
    out = x
    for i in range(L * D):
        if i % D == 0:  # a layer's first direction
            place, source = (place, I) if i == 0 else ((out.data_ptr(), B * D * H, D * H), D * H)
            if i < (L - 1) * D:
                out, steps = x.new_empty(T, B, D * H), (B * D * H, D * H)
            elif len(sizes) == 2:
                out, steps = x.new_empty(T, D * H), (D * H, 0)
            else:
                out = x.new_empty(B, T, D * H) if batch_first else x.new_empty(T, B, D * H)
                steps = (D * H, T * D * H) if batch_first else (B * D * H, D * H)
            held = x if i == 0 else held_next
            held_next = out
            address = out.data_ptr()
        row, w, reverse = i * B * H * FLOAT, each[i], i % D == 1
        assert w is not None and held is not None
        layer_call.call(
            spec.name,
            (T, B, source, H),
            reverse,
            place,
            _moved(start, row),
            w,
            (address + reverse * H * FLOAT, *steps),
            _moved(ends, row),
        )
    return out, tuple(last) if len(last) > 1 else last[0]


def cell(module: Cell, x: Tensor, hx: State | None) -> State | None:
    """A cell's step; None where the long way has to be gone."""
    graph, kind = torch.is_grad_enabled(), type(x)
    if (kind is not Tensor and kind is not Parameter) or type(module) not in SHORT or x.dtype is not torch.float32:
        return None
    own = module._parameters
    weights = [own.get("weight_ih"), own.get("weight_hh")]
    if module.bias:
        weights += [own.get("bias_ih"), own.get("bias_hh")]
    if weights[0] is None or (graph and weights[0].requires_grad) or module.impl not in ("auto", "cpu") or _watched():
        return None
    sizes, H, spec = x.shape, module.hidden_size, module._spec()
    if len(sizes) not in (1, 2):
        return None
    B, I = sizes if len(sizes) == 2 else (1, sizes[0])  # noqa: E741
    if module.input_size != I or not 0 < B <= FEW_ROWS or not (I and H):
        return None
    if not _is_chosen(module.impl, spec, 1, B, I, H, 1, 1, weights):
        return None
    shape = (H,) if len(sizes) == 1 else (B, H)
    start, own_x = _addresses(hx, shape, spec.num_states, graph), layer_call.readable(x, sizes, graph)
    w = layer_call.weights(weights, spec.num_gates * H, I, H, graph)  # type: ignore[arg-type]
    if start is None or w is None or not own_x:
        return None
    new = tuple([x.new_empty(shape) for _ in spec.states])
    h, c = _pair([s.data_ptr() for s in new])
    layer_call.call(spec.name, (1, B, I, H), False, (own_x, 0, I), start, w, (h, 0, H), (0, c))
    return new


def _watched() -> bool:
    """Whether something looks through torch's operators, or changes what they compute in."""
    return traced() or transformed() or torch._C._is_any_autocast_enabled() or native.obstacle() is not None


def _is_chosen(
    impl: str, spec: CellSpec, T: int, B: int, I: int, H: int, L: int, D: int, weights: Sequence[Tensor | None]  # noqa: E741
) -> bool:
    """Whether the way of these layers is one call of C each: as `dispatch.choose` has said before, or says now."""
    key = (impl, spec.name, T, B, I, H, L, D, torch.get_num_threads(), native._instructions, verdicts.changes())
    known = _chosen.get(key)
    if known is None:
        count = len(weights) // (L * D)
        firsts = [weights[i * count : i * count + 2] for i in ([0] if L == 1 else [0, D])]
        if any(w is None for pair in firsts for w in pair):
            return False
        calls = [Call(impl, spec, False, T, B, w_ih, w_hh, directions=D) for w_ih, w_hh in firsts]  # type: ignore[arg-type]
        known = all(dispatch.choose(call).path == "layer" for call in calls)
        if len(_chosen) >= MOST_KEPT:
            _chosen.clear()
        _chosen[(*key[:-1], verdicts.changes())] = known  # a trial may have been one
    return known


def _addresses(hx: Any, shape: tuple[int, ...], states: int, graph: bool) -> tuple[int, int] | None:
    """Of h and c; 0 where none is given, None where C cannot read one."""
    if hx is None:
        return 0, 0
    given = [layer_call.readable(s, shape, graph) for s in (hx if isinstance(hx, tuple) else (hx,))]
    return _pair(given) if all(given) and len(given) == states else None


def _pair(addresses: list[int]) -> tuple[int, int]:
    return (addresses[0], addresses[1]) if len(addresses) == 2 else (addresses[0], 0)


def _moved(pair: tuple[int, int], by: int) -> tuple[int, int]:
    return pair[0] and pair[0] + by, pair[1] and pair[1] + by
