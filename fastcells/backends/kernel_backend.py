"""What the backends of our own kernels share: their operands, and on a GPU the input projection."""

from __future__ import annotations

import torch
from torch import Tensor

from fastcells.backends.base import Backend, Choice, PreviousStates, Trace
from fastcells.defined.evaluate import evaluate
from fastcells.defined.rule import OPERAND
from fastcells.modes import traced
from fastcells.spec import CellSpec, State

FEW_ELEMENTS = 1 << 22  # of an input projection whose bias may take another pass over it on a GPU


class KernelBackend(Backend):
    """Kernels of our own. `Trace.saved`: the states c, and what `CellSpec.saved` names; None where a cell has none."""

    def project(self, choice: Choice, x: Tensor, w_ih: Tensor, b_ih: Tensor | None) -> Tensor:
        small = x.is_cuda and b_ih is not None and x.dim() == 3 and x.shape[0] * x.shape[1] * len(w_ih) <= FEW_ELEMENTS
        if not small or not x.is_floating_point() or traced():
            return super().project(choice, x, w_ih, b_ih)
        # With the bias in one call, cuBLASLt looks for the best of its kernels each time, for longer than they run.
        assert b_ih is not None
        return torch.mm(x.flatten(0, 1), w_ih.t()).add_(b_ih).view(*x.shape[:2], len(w_ih))

    def operands(self, spec: CellSpec, trace: Trace, previous: PreviousStates) -> list[tuple[int, Tensor]]:
        if not spec.two_products:
            return super().operands(spec, trace, previous)
        saved, h = dict(zip(spec.saved, trace.saved[1].unbind(2), strict=True)), previous.cat
        if spec.rule is None:
            operand = saved["r"] * h
        else:
            assert spec.rule.operand_again is not None
            operand = evaluate(spec.rule.operand_again, saved | {spec.states[0]: h})[OPERAND]
        H = h.shape[-1]
        return [((spec.num_gates - 1) * H, h), (H, operand)]


def one_by_one(spec: CellSpec, h: Tensor, c: Tensor | None = None) -> State:
    """The inverse of `h_and_c`: views, where there are more than two states."""
    if spec.num_states == 1:
        return (h,)
    assert c is not None
    return (h, c) if spec.num_states == 2 else (h, *c.unbind(0))


def h_and_c(state: State) -> tuple[Tensor, Tensor | None]:
    """A cell's two states, c being None for one that has h alone; of more the others, stacked."""
    if len(state) > 2:
        return state[0], torch.stack(state[1:])
    return state[0], state[1] if len(state) == 2 else None
