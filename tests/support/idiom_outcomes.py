"""How an idiom is written, and how what came of it is compared.

An idiom is a function `idiom(module, given)` of everyday code around a layer or cell. It runs twice, with torch.nn's
module and with ours, on the same numbers; what it returns (tensors, texts, None), or what it raises, must be the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils._pytree import tree_flatten, tree_leaves

from tests.support.accuracy import ROUNDINGS, error
from tests.support.idiom_cases import Given, Subject

# -- inside an idiom --------------------------------------------------------------------------------------------------


def call(module: Any, given: Given, x: Any = None, hx: Any = None) -> list[Tensor]:
    """[out, h_n] or [out, h_n, c_n] of a layer, [h] or [h, c] of a cell; a packed output's data."""
    results = module(given.x if x is None else x, given.hx if hx is None else hx)
    if isinstance(results, Tensor):
        return [results]
    return [r.data if isinstance(r, PackedSequence) else r for r in tree_leaves(
        results, is_leaf=lambda r: isinstance(r, PackedSequence))]  # fmt: skip


def weigh(tensors: Iterable[Tensor]) -> Tensor:
    """A loss with another weight for every element."""
    tensors = list(tensors)
    weights = [torch.cos(torch.arange(t.numel(), dtype=t.dtype)).view_as(t) for t in tensors]
    return sum((t * w).sum() for t, w in zip(tensors, weights, strict=True))  # type: ignore[return-value]


def grads(module: nn.Module, given: Given) -> dict[str, Tensor | None]:
    return {**{k: p.grad for k, p in module.named_parameters()}, **{k: p.grad for k, p in given.leaves.items()}}


def trained(module: nn.Module, given: Given) -> Any:
    outs = call(module, given)
    weigh(outs).backward()
    return outs, grads(module, given)


# -- what came of it --------------------------------------------------------------------------------------------------


# What torch.nn cannot do for reasons of its kernels, while ours can; on a CPU the first alone.
THEIR_LIMITS = (
    "Can't detach views in-place",
    "cudnn RNN backward can only be called in training mode",
    "the derivative for '_cudnn_rnn_backward' is not implemented",
    "hx is not contiguous",
    "Cannot access data pointer of Tensor that doesn't have storage",  # cuDNN's weights under torch.func
)


@dataclass
class Raised:
    error: Exception

    def __repr__(self) -> str:
        return f"{type(self.error).__name__}: {self.error}"


def outcome(idiom: Callable[[Any, Given], Any], subject: Subject, ours: bool, **options: Any) -> Any:
    given, module = subject.given(ours), subject.module(ours, **options)
    torch.manual_seed(9)
    try:
        return idiom(module, given)
    except Exception as caught:
        return Raised(caught)


def assert_same(ours: Any, theirs: Any, views: bool = True) -> None:
    """The same error type; or the same values, and tensors that the caller can use in the same ways."""
    if (
        isinstance(theirs, Raised)
        and not isinstance(ours, Raised)
        and any(x in str(theirs.error) for x in THEIR_LIMITS)
    ):
        return
    if isinstance(theirs, Raised) or isinstance(ours, Raised):
        assert isinstance(ours, Raised), f"torch.nn raises {theirs!r}, ours does not"
        assert isinstance(theirs, Raised), f"ours raises {ours!r}, torch.nn does not"
        assert isinstance(ours.error, type(theirs.error)), f"{ours!r} instead of {theirs!r}"
        return
    (mine, my_tree), (base, base_tree) = tree_flatten(ours), tree_flatten(theirs)
    assert my_tree == base_tree, f"{my_tree} instead of {base_tree}"
    for i, (m, b) in enumerate(zip(mine, base, strict=True)):
        if not isinstance(b, Tensor):
            assert type(m) is type(b) and m == b, f"result {i}: {m!r} instead of {b!r}"
            continue
        scale = max(1.0, b.abs().max().item()) if b.numel() else 1.0
        limit = ROUNDINGS * torch.finfo(b.dtype).eps * scale if b.is_floating_point() else 0.0
        assert error(m.detach(), b.detach()) <= limit, f"result {i} of shape {list(b.shape)}: {m} instead of {b}"
        for name in ("dtype", "requires_grad", "is_leaf"):
            assert getattr(m, name) == getattr(b, name), f"result {i}: {name} is {getattr(m, name)}"
        assert not views or b._is_view() or not m._is_view(), (
            f"result {i} is a view, torch.nn's is none: detach_() raises"
        )
        assert m.is_contiguous() or not b.is_contiguous(), f"result {i} is not contiguous, torch.nn's is: view() raises"


def check(idiom: Callable[[Any, Given], Any], subject: Subject, **options: Any) -> None:
    assert_same(outcome(idiom, subject, True, **options), outcome(idiom, subject, False, **options))
