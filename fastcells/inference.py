"""The short way of layers and cells: float32 on a CPU, without gradients, in one call of C each.

What such a call computes takes microseconds, and so does every question that Python asks. This way asks only what has
to be known to go it; any doubt leaves a call to the long way, which reaches the same kernel where it may, and raises
what there is to be raised.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.nn.utils.rnn import PackedSequence

from fastcells import dispatch
from fastcells.backends.base import Call
from fastcells.backends.cpu import native
from fastcells.backends.cpu.layer_call import FLOAT, Plan, place, readable
from fastcells.modes import traced, transformed
from fastcells.spec import CellSpec, State
from fastcells.tuning import verdicts

if TYPE_CHECKING:
    from fastcells.cells import Cell
    from fastcells.stack import Layer

SHORT: set[type] = set()  # classes whose methods are this package's own; what is derived from them goes the long way
MOST_KEPT = 4096

_plans: dict[tuple[object, ...], Plans | None] = {}  # None: another way than C is chosen


class Plans:
    """Of a stack of layers, or a cell: the plan of the first layer and of those above it."""

    __slots__ = ("first", "shape", "states", "upper")

    def __init__(self, spec: CellSpec, T: int, B: int, I: int, H: int, rows: int, D: int) -> None:  # noqa: E741
        self.first, self.upper = Plan(spec.name, T, B, I, H), Plan(spec.name, T, B, D * H, H)
        self.states, self.shape = spec.num_states, (rows, B, H)


def layer(module: Layer, x: Tensor | PackedSequence, hx: Any) -> tuple[Tensor, Any] | None:
    """`forward` without options; None where the long way has to be gone. hx: a tensor, of an LSTM two, or None."""
    if type(module) not in SHORT or not _is_float(x):
        return None
    own, graph = module._parameters, torch.is_grad_enabled()
    try:
        weights = [own[name] for name in module._flat_weights_names]
    except KeyError:  # a parametrization, weight norm or pruning has put something else in a parameter's place
        return None
    if (graph and weights[0] is not None and weights[0].requires_grad) or _watched() or not _is_simple(module):
        return None
    batched, time = x.dim() == 3, 1 if module.batch_first else 0
    sizes = x.shape
    if batched:
        T, B, I = sizes[time], sizes[1 - time], sizes[2]  # noqa: E741
        source = place(x, time, graph)
    elif len(sizes) == 2:
        T, B, I = sizes[0], 1, sizes[1]  # noqa: E741
        source = place(x.unsqueeze(1), 0, graph)
    else:
        return None
    if source is None or module.input_size != I:
        return None
    L, D = module.num_layers, 2 if module.bidirectional else 1
    plans = _plans_of(module.impl, module._spec(), T, B, I, module.hidden_size, L, D, weights)
    if plans is None:
        return None
    shape = plans.shape if batched else (L * D, module.hidden_size)
    start = _addresses(hx, shape, plans.states, graph)
    each = _weights(weights, plans, L, D, graph)
    if start is None or each is None:
        return None
    keeper = module._keeper
    packed = None if keeper is None else keeper.current(weights, each)  # type: ignore[arg-type]
    last = [x.new_empty(shape) for _ in range(plans.states)]
    h0, c0 = start
    h_n, c_n = last[0].data_ptr(), 0 if plans.states == 1 else last[1].data_ptr()
    plan, width, row, out = plans.first, D * plans.first.H, plans.first.row, x
    for i in range(L):
        below = out  # keeps the memory that is read
        if i < L - 1 or not batched or time == 0:
            out = x.new_empty(T, B, width) if batched or i < L - 1 else x.new_empty(T, width)
            steps = B * width, width
        else:
            out = x.new_empty(B, T, width)
            steps = width, T * width
        to = out.data_ptr()
        plan.call(False, source, h0, c0, each[i * D], (to, steps[0], steps[1]), h_n, c_n, packed, i * D)
        if D == 2:
            h0, c0, h_n, c_n = h0 and h0 + row, c0 and c0 + row, h_n + row, c_n and c_n + row
            other = to + width * FLOAT // 2, steps[0], steps[1]
            plan.call(True, source, h0, c0, each[2 * i + 1], other, h_n, c_n, packed, 2 * i + 1)
        if i < L - 1:
            h0, c0, h_n, c_n = h0 and h0 + row, c0 and c0 + row, h_n + row, c_n and c_n + row
            plan, source = plans.upper, (to, steps[0], steps[1])
    del below
    return out, last[0] if len(last) == 1 else tuple(last)


def cell(module: Cell, x: Tensor, hx: State | None) -> State | None:
    """A cell's step; None where the long way has to be gone."""
    if type(module) not in SHORT or not _is_float(x) or module.impl not in ("auto", "cpu"):
        return None
    own, graph = module._parameters, torch.is_grad_enabled()
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh") if module.bias else ("weight_ih", "weight_hh")
    weights = [own.get(name) for name in names]
    if weights[0] is None or (graph and weights[0].requires_grad) or _watched():
        return None
    sizes, H = x.shape, module.hidden_size
    if len(sizes) == 2:
        B, I = sizes  # noqa: E741
        shape: tuple[int, ...] = B, H
    elif len(sizes) == 1:
        B, I = 1, sizes[0]  # noqa: E741
        shape = (H,)
    else:
        return None
    address = readable(x, sizes, graph)
    if not address or module.input_size != I:
        return None
    plans = _plans_of(module.impl, module._spec(), 1, B, I, H, 1, 1, weights)
    if plans is None:
        return None
    start, w = _addresses(hx, shape, plans.states, graph), plans.first.weights(weights, graph)
    if start is None or w is None:
        return None
    h, c = x.new_empty(shape), None if plans.states == 1 else x.new_empty(shape)
    plans.first.call(False, (address, 0, I), *start, w, (h.data_ptr(), 0, H), 0, 0 if c is None else c.data_ptr())
    return (h,) if c is None else (h, c)


def keeps(module: Layer) -> bool:
    """Whether a call that goes the short way has packed weights in hand, or leaves them for the next one."""
    own = module._parameters
    there = all(own.get(name) is not None for name in module._flat_weights_names)
    return module.packed and there and _is_simple(module)


def _is_float(x: object) -> TypeGuard[Tensor]:
    kind = type(x)
    return (kind is Tensor or kind is Parameter) and x.dtype is torch.float32  # type: ignore[attr-defined]


def _is_simple(module: Layer) -> bool:
    """Whether a layer does nothing beside its recurrences."""
    if module.training and (module._regularised or (module.dropout and module.num_layers > 1)):
        return False
    return not (module.learned_state or module.proj_size or module.return_states) and module.impl in ("auto", "cpu")


def _watched() -> bool:
    """Whether something looks through torch's operators, or changes what they compute in."""
    return traced() or transformed() or torch._C._is_any_autocast_enabled() or native._cpu is None


def _plans_of(
    impl: str,
    spec: CellSpec,
    T: int,
    B: int,
    I: int,  # noqa: E741
    H: int,
    L: int,
    D: int,
    weights: Sequence[Tensor | None],
) -> Plans | None:
    """Plans where one call of C for each layer and direction is what `dispatch.choose` has chosen, or chooses now."""
    key = (impl, spec.name, T, B, I, H, L, D, torch.get_num_threads(), native._instructions, verdicts.changes())
    try:
        return _plans[key]
    except KeyError:
        pass
    if not (T and B and I and H):
        return None
    found, count = True, len(weights) // (L * D)
    for i in (0,) if L == 1 else (0, D):
        w_ih, w_hh = weights[i * count : i * count + 2]
        if w_ih is None or w_hh is None or w_ih.dim() != 2 or w_hh.dim() != 2:
            return None
        found &= dispatch.choose(Call(impl, spec, False, T, B, w_ih, w_hh, directions=D)).path == "layer"
    if len(_plans) >= MOST_KEPT:
        _plans.clear()
    known = (*key[:-1], verdicts.changes())  # asked again: a trial may have been made
    _plans[known] = Plans(spec, T, B, I, H, L * D, D) if found else None
    return _plans[known]


def _weights(
    weights: Sequence[Tensor | None], plans: Plans, L: int, D: int, graph: bool
) -> list[tuple[int, ...]] | None:
    """The addresses of each layer's and direction's; None where C cannot read one."""
    if L == D == 1:
        w = plans.first.weights(weights, graph)
        return None if w is None else [w]
    count, found = len(weights) // (L * D), []
    for i in range(L * D):
        w = (plans.first if i < D else plans.upper).weights(weights[i * count : (i + 1) * count], graph)
        if w is None:
            return None
        found.append(w)
    return found


def _addresses(hx: Any, shape: tuple[int, ...], states: int, graph: bool) -> tuple[int, int] | None:
    """Of h and c; 0 where none is given, None where C cannot read one."""
    if hx is None:
        return 0, 0
    given = [readable(s, shape, graph) for s in (hx if isinstance(hx, tuple) else (hx,))]
    if len(given) != states or not all(given):
        return None
    return given[0], given[1] if states == 2 else 0
