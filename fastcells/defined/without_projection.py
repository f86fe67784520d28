"""A defined cell over time whose gates' input is given: no layer, no weights of its own, no product with W_ih."""

from __future__ import annotations

import torch
from torch import Tensor

from fastcells import dispatch, one_direction
from fastcells.backends.base import Call, LayerWeights, Steps
from fastcells.checks import check_options
from fastcells.defined.kinds import Kind
from fastcells.spec import RecurrentWeights, State


def without_projection(
    kind: Kind,
    x: Tensor,
    state: tuple[Tensor | None, ...],
    w_hh: Tensor,
    b_hh: Tensor | None,
    extra: dict[str, Tensor],
    steps: Steps,
    impl: str,
) -> tuple[Tensor, State]:
    """x: [T, B, G*H]. steps: `lengths` as the user gave them. See `DefinedLayer.recurrence`.

    Raises:
        RuntimeError: shapes that do not fit. CannotRun: `impl` names what cannot run this case.
    """
    dispatch.check_impl(impl)
    G = len(kind.rule.gates)
    if x.dim() != 3 or not x.is_floating_point() or len(x) == 0 or x.shape[2] % G:
        raise RuntimeError(f"x must be [T, B, {G}*H], one number for each gate and unit, got {x.dtype} {list(x.shape)}")
    (T, B, rows), H = x.shape, x.shape[2] // G
    spec = kind.spec(len(w_hh) if kind.recurrent == "heads" and w_hh.dim() == 3 else 1)
    spec.recurrent.check(w_hh, G, H)
    if b_hh is not None and b_hh.shape != (rows,):
        raise RuntimeError(f"bias_hh must be [{rows}], got {list(b_hh.shape)}")
    if set(extra) != set(spec.extra):
        raise RuntimeError(f"extra must have {list(spec.extra)}, got {sorted(extra)}")
    for name, p in extra.items():
        if p.shape != (H,):
            raise RuntimeError(f"extra parameter {name} must be [{H}], got {list(p.shape)}")
    check_options(x, steps.lengths, steps.resets)
    if steps.lengths is not None:
        steps = steps._replace(lengths=steps.lengths.long().clamp(0, T).to(x.device, torch.int32))
    w_ih = w_hh.new_empty(rows, 0)  # there is none
    weights = LayerWeights(w_ih, None, RecurrentWeights(w_hh, b_hh, None, tuple(extra[p] for p in spec.extra)))
    choice = dispatch.choose(Call(impl, spec, False, T, B, w_ih, w_hh, steps.options, type(x)))
    return one_direction.run(choice, spec, x, state, weights, steps, projected=True)
