"""Which implementation runs, and the reason."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

IMPLEMENTATIONS = ("auto", "torch")


@dataclass(frozen=True)
class Choice:
    """What runs: `impl` as the user names it, `path` within it, and why, as text."""

    impl: str
    path: str  # "aten": ATen's fused recurrence; "recurrence": our own in torch operators
    reason: str

    def __str__(self) -> str:
        return f"{self.impl} ({self.path}): {self.reason}"


ATEN = Choice("torch", "aten", "ATen's fused recurrence expresses this case")
RESET_BEFORE = Choice("torch", "recurrence", "ATen has no reset-before GRU")
TOKEN_IDS = Choice("torch", "recurrence", "token ids gather rows of W_ih^T, ATen would need the one-hot")
LENGTHS = Choice("torch", "recurrence", "ATen takes lengths in packed form only")


def check_impl(impl: str) -> None:
    """Raise ValueError unless `impl` names an implementation of this version."""
    if impl not in IMPLEMENTATIONS:
        raise ValueError(f"impl must be one of {', '.join(map(repr, IMPLEMENTATIONS))}, got {impl!r}")


def choose(*, impl: str, token_ids: bool, reset_after: bool = True, lengths: bool = False) -> Choice:
    """The implementation of one call. `lengths`: whether the batch is ragged and not packed."""
    if impl != "auto":
        check_impl(impl)
    if token_ids:
        return TOKEN_IDS
    if not reset_after:
        return RESET_BEFORE
    return LENGTHS if lengths else ATEN


class _Chooses(Protocol):
    def choose(self, input: Tensor | PackedSequence) -> Choice: ...


def explain(module: _Chooses, input: Tensor | PackedSequence) -> Choice:
    """Which implementation `module(input)` runs, and why: `print(fastcells.explain(gru, x))`.

    module: a layer or cell of this package. input: what would be passed to it; nothing is computed.

    Raises:
        TypeError: any other module.
    """
    if not hasattr(module, "choose"):
        name = f"{type(module).__module__}.{type(module).__name__}"
        hint = "; fastcells.convert(module) gives its twin" if isinstance(module, nn.RNNBase | nn.RNNCellBase) else ""
        raise TypeError(f"explain() needs a fastcells layer or cell, got {name}{hint}")
    return module.choose(input)
