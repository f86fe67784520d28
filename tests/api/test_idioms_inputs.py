"""What callers pass to a recurrent module: strides, sizes and autocast."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from tests.support.idiom_cases import CORE, TRITON, Given, each, plan_of
from tests.support.idiom_outcomes import Raised, assert_same, call, check, grads, outcome, trained, weigh


def _strided(how: Callable[[Tensor], Tensor]) -> Callable[..., Any]:
    def idiom(module: Any, given: Given) -> Any:
        x = how(given.x.detach())
        x = x.requires_grad_() if x.is_floating_point() and given.x.requires_grad else x
        hx = tree_map(lambda h: how(h.detach()).requires_grad_(), given.hx)
        outs = call(module, given, x, hx)
        weigh(outs).backward()
        states = hx if isinstance(hx, tuple) else (hx,)
        return outs, {k: p.grad for k, p in module.named_parameters()}, [h.grad for h in states]

    return idiom


def _every_second(t: Tensor) -> Tensor:
    return torch.stack([t, t + 1], -1)[..., 0]


def _negative(t: Tensor) -> Tensor:
    """A tensor whose minus sign is only noted: the imaginary part of a conjugate."""
    return torch.complex(torch.zeros_like(t), -t).conj().imag if t.is_floating_point() else t


STRIDES: dict[str, Callable[[Tensor], Tensor]] = {
    "transposed": lambda t: t.transpose(0, -1).contiguous().transpose(0, -1),
    "every_second": _every_second,
    "expanded": lambda t: t[:1].expand(t.shape),
    "expanded_features": lambda t: t[..., :1].expand(t.shape),
    "offset": lambda t: torch.cat([t.flatten(), t.flatten()])[t.numel() :].view(t.shape),
    "narrowed": lambda t: torch.cat([t, t], 0)[: t.shape[0]] if t.dim() else t,
    "negative": _negative,
    "flipped": lambda t: t.flip(0) if t.dim() else t,
}


@pytest.mark.parametrize(("subject", "how"), [
    pytest.param(s, h, id=f"{s}-{h}") for s in [*CORE, *TRITON] for h in STRIDES
    # An expanded one-hot is not the one-hot of expanded ids.
    if not ("expanded" in h and "ids" in s.layout) and (s in CORE or h == "transposed")
])  # fmt: skip
def test_strides(subject: Any, how: str) -> None:
    check(_strided(STRIDES[how]), subject)


SIZES = {"B0": {"B": 0}, "T1": {"T": 1}, "H1": {"H": 1}, "I1": {"I": 1}, "B1": {"B": 1}, "T0": {"T": 0}, "all1": {
    "T": 1, "B": 1, "H": 1, "I": 1}}  # fmt: skip


@plan_of(SIZES, (), ("all1",))
def test_sizes(subject: Any, idiom: str) -> None:
    if subject.kind == "LSTM-proj" and "H" in SIZES[idiom]:
        pytest.skip("a projection is narrower than H")
    check(trained, replace(subject, **SIZES[idiom]))


@each(s for s in CORE if s.impl in ("auto", "torch"))
def test_autocast(subject: Any) -> None:
    """In bfloat16 only dtypes and shapes are the same to the letter; the numbers are test_low_precision's."""

    def idiom(module: Any, given: Given) -> Any:
        with torch.autocast("cpu", torch.bfloat16):
            outs = call(module, given)
            loss = weigh(t.float() for t in outs)
        loss.backward()
        return [(t.dtype, t.shape, t.requires_grad) for t in outs], {
            k: g.dtype for k, g in grads(module, given).items()
        }

    theirs, ours = (outcome(idiom, subject, who) for who in (False, True))
    if isinstance(theirs, Raised) and "primitive descriptor" in str(theirs.error):
        pytest.skip("this processor's oneDNN has no LSTM in bfloat16")
    assert_same(ours, theirs)
