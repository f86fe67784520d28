"""Stacks of layers with every option, once more: row by row and step by step, in the words of the papers.

Shares nothing with the package. All in the dtype of its arguments, differentiable.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass
class Stack:
    """What is computed. Masks as `fastcells.call_options.Masks` has them."""

    cell: str  # "rnn_tanh", "rnn_relu", "gru", "gru_reset_before" or "lstm"
    layers: int
    directions: int
    weights: dict[str, Tensor]  # by torch's names
    drop_all: bool = False  # dropout=1 between layers, in training
    lengths: list[int] | None = None
    resets: Tensor | None = None  # [T, B]
    reset_state: list[Tensor] = field(default_factory=list)  # each [rows, H]
    recurrent: Tensor | None = None
    keep: Tensor | None = None
    keep_cell: Tensor | None = None
    without: list[Tensor] | None = None

    def run(self, x: Tensor, state: list[Tensor]) -> list[Tensor]:
        """x: [T, B, I]. state: each [rows, B, H]. Returns the outputs, final states and, of an LSTM, all c."""
        _T, B = x.shape[:2]
        last = [[[s[row, b] for s in state] for b in range(B)] for row in range(len(state[0]))]
        cells = x
        for layer in range(self.layers):
            if layer and self.drop_all:
                x = x * 0
            outs, all_c = [], []
            for direction in range(self.directions):
                row = layer * self.directions + direction
                rows = [self._row(x[:, b], last[row][b], row, b, direction) for b in range(B)]
                outs.append(torch.stack([h for h, _, _ in rows], 1))
                all_c.append(torch.stack([c for _, c, _ in rows], 1))
                last[row] = [end for _, _, end in rows]
            x, cells = torch.cat(outs, -1), torch.cat(all_c, -1)
        ends = [torch.stack([torch.stack([end[i] for end in row]) for row in last]) for i in range(len(state))]
        return [x, *ends, *([cells] if self.cell == "lstm" else [])]

    def _row(
        self, x: Tensor, state: list[Tensor], row: int, b: int, direction: int
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """One sequence of one layer and direction. x: [T, I]. All h and c, and the final state."""
        T = len(x)
        n = T if self.lengths is None else self.lengths[b]
        suffix = f"l{row // self.directions}" + ("_reverse" if direction else "")
        w = {name.removesuffix(f"_{suffix}"): t for name, t in self.weights.items() if name.endswith(f"_{suffix}")}
        w_hh = w["weight_hh"] if self.without is None else w["weight_hh"] * self.without[row]
        h_all: list[Tensor] = [torch.zeros_like(state[0])] * T
        c_all: list[Tensor] = [torch.zeros_like(state[-1])] * T
        for t in range(n - 1, -1, -1) if direction else range(n):
            if self._starts(t, n, b, direction):
                state = [s[row] for s in self.reset_state] or [torch.zeros_like(s) for s in state]
            a = w["weight_ih"] @ x[t] + w.get("bias_ih", 0)
            seen = state[0] if self.recurrent is None else state[0] * self.recurrent[row, b]
            new = self._step(a, state, seen, w_hh, w)
            for i, keep in enumerate((self.keep, self.keep_cell)[: len(state)]):
                if keep is not None:
                    k = keep[row, t, b].to(x.dtype)
                    new[i] = k * state[i] + (1 - k) * new[i]
            state = new
            h_all[t], c_all[t] = state[0], state[-1]
        return torch.stack(h_all), torch.stack(c_all), state

    def _starts(self, t: int, n: int, b: int, direction: int) -> bool:
        """Whether step t does not go on from the step before it, in the order of the walk."""
        if self.resets is None:
            return False
        return bool(self.resets[t, b]) if not direction else t + 1 < len(self.resets) and bool(self.resets[t + 1, b])

    def _step(self, a: Tensor, state: list[Tensor], seen: Tensor, w_hh: Tensor, w: dict[str, Tensor]) -> list[Tensor]:
        bias = w.get("bias_hh", torch.zeros(len(w_hh), dtype=a.dtype))
        r = w_hh @ seen + bias
        if self.cell.startswith("rnn"):
            return [torch.tanh(a + r) if self.cell == "rnn_tanh" else F.relu(a + r)]
        if self.cell == "lstm":
            i, f, g, o = (a + r).chunk(4)
            c = f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            return [w["weight_hr"] @ h if "weight_hr" in w else h, c]
        (a_r, a_z, a_n), (r_r, r_z, r_n) = a.chunk(3), r.chunk(3)
        reset, z, H = (a_r + r_r).sigmoid(), (a_z + r_z).sigmoid(), len(seen)
        if self.cell == "gru_reset_before":
            r_n = w_hh[2 * H :] @ (reset * seen) + bias[2 * H :]
        n = (a_n + (reset * r_n if self.cell == "gru" else r_n)).tanh()
        return [(1 - z) * n + z * state[0]]
