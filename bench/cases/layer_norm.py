"""Layer normalisation in the recurrence as it is written by hand, a cell of torch.nn.LayerNorm in a loop over time."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastcells import LayerNormGRU, LayerNormLSTM
from fastcells.spec import State


class NormedLSTMCell(nn.Module):
    """Ba et al. 2016, supplement, 20 to 22."""

    def __init__(self, I: int, H: int) -> None:  # noqa: E741
        super().__init__()
        self.ih, self.hh = nn.Linear(I, 4 * H, bias=False), nn.Linear(H, 4 * H, bias=False)
        self.norm_ih, self.norm_hh, self.norm_c = nn.LayerNorm(4 * H), nn.LayerNorm(4 * H), nn.LayerNorm(H)

    def forward(self, x: Tensor, state: State) -> State:
        h, c = state
        i, f, g, o = (self.norm_ih(self.ih(x)) + self.norm_hh(self.hh(h))).chunk(4, 1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        return o.sigmoid() * self.norm_c(c).tanh(), c


class NormedGRUCell(nn.Module):
    """Ba et al. 2016, supplement, 29 to 31."""

    def __init__(self, I: int, H: int) -> None:  # noqa: E741
        super().__init__()
        self.ih, self.hh = nn.Linear(I, 3 * H, bias=False), nn.Linear(H, 3 * H, bias=False)
        self.norm_ih, self.norm_hh = (nn.ModuleList([nn.LayerNorm(2 * H), nn.LayerNorm(H)]) for _ in range(2))

    def forward(self, x: Tensor, state: State) -> State:
        (h,) = state
        sizes = [2 * h.shape[1], h.shape[1]]
        x_rz, x_n = (norm(a) for norm, a in zip(self.norm_ih, self.ih(x).split(sizes, 1), strict=True))
        h_rz, h_n = (norm(a) for norm, a in zip(self.norm_hh, self.hh(h).split(sizes, 1), strict=True))
        r, z = (x_rz + h_rz).sigmoid().chunk(2, 1)
        n = (x_n + r * h_n).tanh()
        return ((1 - z) * n + z * h,)


class Looped(nn.Module):
    """A cell step by step, from zeros: all outputs [T, B, H]."""

    def __init__(self, cell: NormedGRUCell | NormedLSTMCell, states: int) -> None:
        super().__init__()
        self.cell, self.states = cell, states

    def forward(self, x: Tensor) -> Tensor:
        state: State = (x.new_zeros(x.shape[1], self.cell.hh.in_features),) * self.states
        out = []
        for x_t in x:
            state = self.cell(x_t, state)
            out.append(state[0])
        return torch.stack(out)


def twin(layer: LayerNormGRU | LayerNormLSTM) -> Looped:
    """The same function by a hand-written cell, with a copy of the parameters of `layer`, one layer and direction."""
    I, H = layer.input_size, layer.hidden_size  # noqa: E741
    lstm = isinstance(layer, LayerNormLSTM)
    cell = NormedLSTMCell(I, H) if lstm else NormedGRUCell(I, H)
    with torch.no_grad():
        for which in ("ih", "hh"):
            getattr(cell, which).weight.copy_(getattr(layer, f"weight_{which}_l0"))
            norms = getattr(cell, f"norm_{which}")
            _copy_norms(layer, which, [norms] if lstm else list(norms))
        if isinstance(cell, NormedLSTMCell):
            _copy_norms(layer, "c", [cell.norm_c])
    return Looped(cell, layer._spec().num_states)


def _copy_norms(layer: nn.Module, which: str, norms: list[nn.LayerNorm]) -> None:
    sizes = [norm.weight.numel() for norm in norms]
    for kind in ("weight", "bias"):
        parts = getattr(layer, f"norm_{which}_{kind}_l0").split(sizes)
        for norm, part in zip(norms, parts, strict=True):
            getattr(norm, kind).copy_(part)
