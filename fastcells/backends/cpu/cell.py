"""The implementation `impl="cpu"`: the recurrence in C."""

from __future__ import annotations

import torch
from torch import Tensor

from fastcells.backends.cpu import library, native
from fastcells.backends.torch.cell import Before, Gradients, State, TorchCell, Trace
from fastcells.spec import SPECS
from fastcells.transforms import traced


def _lengths(mask: Tensor | None) -> Tensor | None:
    return None if mask is None else mask.sum((0, 2))


class CpuCell(TorchCell):
    """A cell whose recurrence runs in C; what has to be differentiated further runs in torch operators."""

    plain_operators = False
    knows_resets = True

    def __init__(self, plain: TorchCell) -> None:
        self.plain = plain
        self.name, self.gates, self.states = plain.name, plain.gates, plain.states

    def step(self, x: Tensor, state: State, w_hh: Tensor, b_hh: Tensor | None) -> State:
        return self.plain.step(x, state, w_hh, b_hh)

    def forward(
        self,
        x: Tensor,
        state: State,
        w_hh: Tensor,
        b_hh: Tensor | None,
        steps: range,
        mask: Tensor | None,
        save: bool,
        resets: Tensor | None = None,
    ) -> Trace:
        reverse = steps.step < 0
        if not traced():
            f = native.forward(
                self.name, x, state, w_hh, b_hh, _lengths(mask), resets=resets, reverse=reverse, save=save
            )
            return Trace(f.hidden, f.last, tuple(t for t in (f.cells, f.saved) if t is not None), f.out)
        h0, c0 = (*state, None)[:2]
        out, hidden, cells, saved, *last = library.cpu_forward(
            x, h0, c0, w_hh, b_hh, _lengths(mask), resets, self.name, reverse, save
        )
        kept = (cells,) * (c0 is not None) + (saved,) * (bool(SPECS[self.name].saved))
        return Trace(hidden if save else out, tuple(last[: self.states]), kept, out)

    def backward(
        self,
        d_hidden: Tensor,
        d_last: State,
        saved: tuple[Tensor, ...],
        hidden: Tensor,
        before: Before,
        state: State,
        w_hh: Tensor,
        steps: range,
        mask: Tensor | None,
        resets: Tensor | None = None,
    ) -> Gradients:
        cells = saved[0] if self.states == 2 else None
        gates = saved[-1] if SPECS[self.name].saved else None
        reverse = steps.step < 0
        if not traced():
            return native.backward(
                self.name,
                d_hidden,
                d_last,
                state,
                w_hh,
                _lengths(mask),
                hidden,
                cells,
                gates,
                resets=resets,
                reverse=reverse,
            )
        (h0, c0), (d_h_n, d_c_n) = (*state, None)[:2], (*d_last, None)[:2]
        d_x, d_gates, *d_state = library.cpu_backward(
            d_hidden, d_h_n, d_c_n, h0, c0, w_hh, _lengths(mask), resets, hidden, cells, gates, self.name, reverse
        )
        return Gradients(d_x, d_gates if self.name == "gru" else d_x, tuple(d_state[: self.states]))

    def weight_gradients(
        self, d_gates: Tensor, before: Before, saved: tuple[Tensor, ...], needs_w: bool, needs_b: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        if traced() or not needs_w:
            return super().weight_gradients(d_gates, before, saved, needs_w, needs_b)
        d_gates = d_gates.flatten(0, 1)
        pieces = [piece.flatten(0, 1) for piece in before.pieces]
        if self.name != "gru_reset_before":
            d_w, d_b = native.weight_gradients(d_gates, *pieces)
            return d_w, d_b if needs_b else None
        H = pieces[0].shape[1]
        d_w, d_b = native.weight_gradients(d_gates[:, : 2 * H], *pieces)
        reset = (saved[0][:, :, 0] * before.whole).flatten(0, 1)
        d_w_n, d_b_n = native.weight_gradients(d_gates[:, 2 * H :], reset)
        return torch.cat([d_w, d_w_n]), torch.cat([d_b, d_b_n]) if needs_b else None

    def weight_gradient(self, d_gates: Tensor, before: Before, saved: tuple[Tensor, ...]) -> Tensor:
        if self.name != "gru_reset_before":
            return super().weight_gradient(d_gates, before, saved)
        reset = saved[0][:, :, 0] * before.whole
        return self.plain.weight_gradient(d_gates, before, (reset, reset, reset))
