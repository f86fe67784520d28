"""The next character out of its scores: the likeliest, or a draw."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fastcells.charlm.errors import InputError


@dataclass(frozen=True)
class Choosing:
    """How characters are chosen.

    temperature: 0 takes the likeliest (greedy); above 0 draws from softmax(scores / temperature), among
    top_k: the k likeliest only; top_p: the fewest likeliest that have a share of p together (Holtzman et al. 2020);
    min_p: those at least min_p times as likely as the likeliest (Nguyen et al. 2024). All that are given hold.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None

    def __post_init__(self) -> None:
        if not self.temperature >= 0:
            raise InputError(f"temperature must be 0 or above, got {self.temperature}")
        if self.top_k is not None and self.top_k < 1:
            raise InputError(f"top_k must be at least 1, got {self.top_k}")
        for name in ("top_p", "min_p"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= 1:
                raise InputError(f"{name} must be above 0 and at most 1, got {value}")

    def pick(self, scores: Tensor, generator: torch.Generator | None) -> Tensor:
        """Ids [B] from scores [B, V] on the CPU."""
        if self.temperature == 0:
            return scores.argmax(1)
        count = scores.shape[1]
        values, ids = scores.topk(min(self.top_k or count, count))  # from the likeliest on
        # A tiny temperature: no inf / inf.
        shares = torch.softmax((values.double() - values[:, :1]) / self.temperature, 1)
        if self.top_p is not None:
            shares = shares * (shares.cumsum(1) - shares < self.top_p)
        if self.min_p is not None:
            shares = shares * (shares >= self.min_p * shares[:, :1])
        return ids.gather(1, torch.multinomial(shares, 1, generator=generator)).squeeze(1)
