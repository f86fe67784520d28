"""Subjects of the idiom tests (layer x implementation x input), and how what came of an idiom is compared.

An idiom is a function `idiom(module, given)` of everyday code around a layer or cell. It runs twice, with torch.nn's
module and with ours, on the same numbers; what it returns (tensors, texts, None), or what it raises, must be the same.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from accuracy import ROUNDINGS, error
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence
from torch.utils._pytree import tree_flatten, tree_leaves

import fastcells
from fastcells import reference


class ResetBefore(nn.GRU):
    """What torch.nn would have: the reference's equations, its outputs tensors of their own as torch.nn's are."""

    reset_after = False

    def forward(self, input: Any, hx: Tensor | None = None) -> Any:
        out, h_n = reference.layer(self, input, hx)
        return (out._replace(data=out.data.clone()) if isinstance(out, PackedSequence) else out.clone()), h_n.clone()


@dataclass(frozen=True)
class Subject:
    """One module, how it is run and what it is given. `path` is what `fastcells.explain` must say."""

    kind: str
    impl: str
    path: str
    layout: str = "dense"
    T: int = 3
    B: int = 2
    I: int = 5  # noqa: E741 the project's letter for the input size
    H: int = 8
    dtype: torch.dtype = torch.float32
    options: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        dtype = "" if self.dtype == torch.float32 else f"-{self.dtype}".replace("torch.", "")
        extra = "".join(f"-{k}={v}" for k, v in self.options.items())
        return f"{self.kind}-{self.impl}-{self.path}-{self.layout}{dtype}{extra}"

    @property
    def cell(self) -> bool:
        return self.kind.endswith("Cell") or "Cell-" in self.kind

    def module(self, ours: bool, **options: Any) -> Any:
        """Ours or torch.nn's, from the same seed."""
        name, _, variant = self.kind.partition("-")
        own: dict[str, Any] = {"relu": {"nonlinearity": "relu"}, "proj": {"proj_size": 3}}.get(variant, {})
        cls = getattr(fastcells if ours else nn, name)
        if variant == "before":
            cls, own = (cls, {"reset_after": False}) if ours else (ResetBefore, {})
        if ours:
            own = {**own, "impl": self.impl}
        torch.manual_seed(7)
        return cls(self.I, self.H, **{**own, **self.options, **options}, dtype=self.dtype)

    def given(self, ours: bool) -> Given:
        """What an idiom gets: the input, the states, and the leaves among them."""
        torch.manual_seed(8)
        batch = (self.B,) if self.layout not in ("unbatched", "unbatched_ids") else ()
        steps = () if self.cell else (self.T,)
        sizes = (*batch, *steps) if self.options.get("batch_first") else (*steps, *batch)
        ids = torch.randint(self.I, sizes)
        dense = torch.randn(*sizes, self.I, dtype=self.dtype)
        leaves: dict[str, Tensor] = {}
        if "ids" in self.layout:
            x: Any = ids if ours else nn.functional.one_hot(ids, self.I).to(self.dtype)
        else:
            x = leaves["x"] = dense.requires_grad_()
        if self.layout.startswith("packed"):
            lengths = [self.T, max(1, self.T - 1)]
            lengths = lengths[::-1] if "unsorted" in self.layout else lengths
            x = pack_padded_sequence(x, torch.tensor(lengths), enforce_sorted="unsorted" not in self.layout)
        rows = (
            () if self.cell else (self.options.get("num_layers", 1) * (1 + self.options.get("bidirectional", False)),)
        )
        widths = [3 if self.kind == "LSTM-proj" else self.H] + [self.H] * self.kind.startswith("LSTM")
        hx = [torch.randn(*rows, *batch, w, dtype=self.dtype).requires_grad_() for w in widths]
        leaves.update(zip(("h0", "c0"), hx, strict=False))
        return Given(self, x, tuple(hx) if len(hx) > 1 else hx[0], leaves)


@dataclass
class Given:
    subject: Subject
    x: Any
    hx: Any
    leaves: dict[str, Tensor]


DENSE = "dense"
# T and B from which on "auto" runs C, in grad mode: plan.CPU_ROWS.
ABOVE = {"GRU": (16, 2), "RNN": (20, 2), "RNN-relu": (20, 2), "LSTM": (130, 2), "GRU-before": (5, 2)}
THREE = ("GRU", "LSTM", "RNN")


def above(kind: str, layout: str = DENSE, **options: Any) -> Subject:
    T, B = (6, 2) if "ids" in layout else ABOVE[kind]
    if layout == "unbatched":
        T, B = max(T, 20), 1
    return Subject(kind, "auto", "c", layout, T=T, B=B, options=options)


IMPLS = [
    *(Subject(kind, "auto", "aten") for kind in (*THREE, "RNN-relu", "LSTM-proj")),
    *(above(kind) for kind in ABOVE),
    *(Subject(kind, "torch", "aten") for kind in THREE),
    *(Subject(kind, "cpu", "c", T=4) for kind in (*THREE, "RNN-relu", "GRU-before")),
    Subject("GRU-before", "torch", "recurrence"),
]
LAYOUTS = [
    *(above(kind, layout) for kind, layout in itertools.product(THREE, ("ids", "packed", "packed_unsorted"))),
    *(above(kind, "packed_ids") for kind in THREE),
    *(above(kind, "unbatched") for kind in THREE),
    *(above(kind, layout, **options) for kind, layout, options in itertools.product(
        THREE, (DENSE, "ids"), ({"batch_first": True}, {"num_layers": 2, "bidirectional": True}, {"bias": False}))),
    *(Subject(kind, "torch", "recurrence", "ids") for kind in (*THREE, "RNN-relu", "LSTM-proj")),
    *(Subject(kind, "auto", "recurrence", "ids", T=1) for kind in THREE),
    *(Subject(kind, "auto", "recurrence", "ids", dtype=torch.float64) for kind in THREE),
    *(Subject(kind, "auto", "aten", dtype=torch.float64) for kind in THREE),
    Subject("GRU-before", "auto", "recurrence", dtype=torch.float64),
]  # fmt: skip
TRITON = [
    Subject(kind, impl, path, layout, T=2, H=4, I=3)
    for kind, (impl, path), layout in itertools.product(
        (*THREE, "GRU-before"), (("triton", "sequence"), ("triton-step", "step")), (DENSE, "ids")
    )
]
CELLS = [
    Subject(kind, impl, path, layout)
    for kind in ("GRUCell", "LSTMCell", "RNNCell")
    for impl, path, layout in (
        ("auto", "aten", DENSE), ("auto", "aten", "unbatched"), ("auto", "recurrence", "ids"),
        ("cpu", "c", DENSE), ("cpu", "c", "ids"), ("torch", "recurrence", "unbatched_ids"), ("triton-step", "step", DENSE),
    )
]  # fmt: skip
ALL = [*IMPLS, *LAYOUTS]


def each(subjects: Iterable[Subject]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("subject", list(subjects), ids=str)


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
    return sum((t * torch.cos(torch.arange(t.numel(), dtype=t.dtype)).view_as(t)).sum() for t in tensors)  # type: ignore[return-value]


def grads(module: nn.Module, given: Given) -> dict[str, Tensor | None]:
    return {**{k: p.grad for k, p in module.named_parameters()}, **{k: p.grad for k, p in given.leaves.items()}}


# -- what came of it --------------------------------------------------------------------------------------------------


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


def assert_same(ours: Any, theirs: Any) -> None:
    """The same error type; or the same values, and tensors that the caller can use in the same ways."""
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
        limit = (
            ROUNDINGS * torch.finfo(b.dtype).eps * max(1.0, b.abs().max().item() if b.numel() else 0.0)
            if b.is_floating_point()
            else 0
        )
        assert error(m.detach(), b.detach()) <= limit, f"result {i} of shape {list(b.shape)}: {m} instead of {b}"
        for name in ("dtype", "requires_grad", "is_leaf"):
            assert getattr(m, name) == getattr(b, name), f"result {i}: {name} is {getattr(m, name)}"
        assert b._is_view() or not m._is_view(), f"result {i} is a view, torch.nn's is none: detach_() raises"
        assert m.is_contiguous() or not b.is_contiguous(), f"result {i} is not contiguous, torch.nn's is: view() raises"


def check(idiom: Callable[[Any, Given], Any], subject: Subject, **options: Any) -> None:
    assert_same(outcome(idiom, subject, True, **options), outcome(idiom, subject, False, **options))
