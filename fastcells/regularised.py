"""Regularisation inside the recurrence: variational dropout, zoneout and dropped weights. Off outside of training.

Masks are drawn by torch's own generators, one call for each kind, so that `torch.manual_seed` repeats them on a device.

Variational dropout: Gal and Ghahramani 2016 (arXiv 1512.05287), the same units of h are dropped at every step, ahead of
W_hh. Zoneout: Krueger et al. 2017 (arXiv 1606.01305), units keep the state that they had. Dropped weights: Merity et
al. 2018 (arXiv 1708.02182), the weights of W_hh that are 0 for a whole call (DropConnect, Wan et al. 2013).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from fastcells.call_options import Masks


class Rates(NamedTuple):
    """Probabilities, 0 where nothing is to happen."""

    recurrent_dropout: float = 0.0
    zoneout: float = 0.0
    zoneout_cell: float = 0.0
    weight_dropout: float = 0.0

    @property
    def options(self) -> frozenset[str]:
        """What a backend has to support; dropped weights are ordinary ones."""
        zoneout = self.zoneout or self.zoneout_cell
        return frozenset(["recurrent_dropout"] * bool(self.recurrent_dropout) + ["zoneout"] * bool(zoneout))

    def __str__(self) -> str:
        """As in a layer's repr: ", zoneout=0.1"."""
        return "".join(f", {name}={p}" for name, p in zip(self._fields, self, strict=True) if p)


NO_RATES = Rates()


def rates(**given: float) -> Rates:
    """What a constructor was given. ValueError unless each is a number from 0 to 1."""
    for name, p in given.items():
        if isinstance(p, bool) or not isinstance(p, int | float) or not 0 <= p <= 1:
            raise ValueError(f"{name} should be a number in range [0, 1] representing the probability, got {p!r}")
    return Rates(**given)


def draw(rates: Rates, weights: Sequence[Tensor], T: int, B: int, widths: tuple[int, ...]) -> Masks:
    """New masks for one call.

    weights: W_hh of each layer and direction. widths: of h, and of c where there is one.
    """
    like, rows = weights[0], len(weights)

    def kept(p: float, *shape: int) -> Tensor | None:
        return None if p == 0 else torch.rand(shape, device=like.device, dtype=torch.float32) < p

    dropped = None
    if rates.recurrent_dropout > 0:
        dropped = F.dropout(like.new_ones(rows, B, widths[0]), rates.recurrent_dropout)
    zoneout = kept(rates.zoneout, rows, T, B, widths[0])
    zoneout_cell = kept(rates.zoneout_cell, rows, T, B, widths[-1])
    without = None
    if rates.weight_dropout > 0:
        without = tuple(F.dropout(torch.ones_like(w), rates.weight_dropout) for w in weights)
    return Masks(dropped, zoneout, zoneout_cell, without)
