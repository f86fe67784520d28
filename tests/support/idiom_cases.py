"""Subjects of the idiom tests: layer x implementation x input, as data."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import fastcells
from fastcells import reference

# Of the kernels in C: "gluon" or "triton" on a GPU, as tests/conftest.py says.
INSTEAD = os.environ.get("FASTCELLS_TEST_IMPL", "")
PATHS = {"gluon": "resident", "triton": "sequence", "triton-step": "step"}


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

    def __post_init__(self) -> None:
        if self.path == "cpu" and INSTEAD:
            object.__setattr__(self, "impl", INSTEAD)
            object.__setattr__(self, "path", PATHS[INSTEAD])

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
# T and B from which on "auto" runs C, in grad mode: policy.CPU_ROWS.
ABOVE = {"GRU": (16, 2), "RNN": (20, 2), "RNN-relu": (20, 2), "LSTM": (130, 2), "GRU-before": (5, 2)}
THREE = ("GRU", "LSTM", "RNN")


def above(kind: str) -> Subject:
    return Subject(kind, "auto", "cpu", T=ABOVE[kind][0], B=ABOVE[kind][1])


def in_c(kind: str, layout: str = DENSE, **options: Any) -> Subject:
    return Subject(kind, "cpu", "cpu", layout, T=5, options=options)


# Each implementation of each layer, at a shape below and one above the switch.
IMPLS = [
    *(Subject(kind, "auto", "aten") for kind in (*THREE, "LSTM-proj")),
    *(above(kind) for kind in ABOVE),
    *(in_c(kind) for kind in (*THREE, "GRU-before")),
    Subject("GRU", "torch", "aten"),
    Subject("GRU-before", "torch", "recurrence"),
]
# Optional inputs and token ids, which an implementation treats in its own way.
OPTIONAL = [
    *(in_c(kind, bias=False) for kind in THREE),
    *(in_c(kind, "ids", bias=False) for kind in ("GRU", "LSTM")),
    *(Subject(kind, "auto", "cpu", "ids", T=6) for kind in THREE),
    *(Subject(kind, "torch", "recurrence", "ids") for kind in ("GRU", "LSTM-proj")),
]
# What the layer does around them.
LAYOUTS = [
    *(in_c(kind, layout) for kind, layout in itertools.product(
        THREE, ("packed", "packed_unsorted", "packed_ids", "unbatched"))),
    *(in_c(kind, layout, **options) for kind, layout, options in itertools.product(
        THREE, (DENSE, "ids"), ({"batch_first": True}, {"num_layers": 2, "bidirectional": True}))),
    *(Subject(kind, "auto", "aten", "packed_unsorted") for kind in THREE),
    *(Subject(kind, "auto", "aten", "unbatched") for kind in THREE),
    *(Subject(kind, "auto", "one-hot", "ids", T=1) for kind in THREE),
    *(Subject(kind, "auto", "recurrence", "ids", dtype=torch.float64) for kind in THREE),
    *(Subject(kind, "auto", "aten", dtype=torch.float64) for kind in THREE),
    Subject("GRU-before", "auto", "recurrence", dtype=torch.float64),
]  # fmt: skip
TRITON = [
    Subject(kind, impl, path, layout, T=2, H=4, I=3)
    for kind, impl, path, layout in (
        ("GRU", "triton", "sequence", DENSE), ("LSTM", "triton", "sequence", "ids"),
        ("GRU", "triton-step", "step", "ids"), ("LSTM", "triton-step", "step", DENSE),
        ("GRU-before", "triton-step", "step", DENSE),
    )
]  # fmt: skip
CELLS = [
    Subject(kind, impl, path, layout)
    for kind in ("GRUCell", "LSTMCell", "RNNCell")
    for impl, path, layout in (
        ("auto", "aten", DENSE), ("auto", "aten", "unbatched"), ("auto", "one-hot", "ids"), ("cpu", "cpu", DENSE),
    )
]  # fmt: skip
CELL_IN_TRITON = Subject("GRUCell", "triton-step", "step")
CORE = [*IMPLS, *OPTIONAL, *CELLS]
ALL = [*CORE, *LAYOUTS]
# What callers do with the module itself hardly depends on the input.
MODULES = [s for s in [*IMPLS, *OPTIONAL] if s.impl != "torch" and s.options.get("bias", True)]
MODULES += [s for s in LAYOUTS if "num_layers" in s.options and s.layout == DENSE] + CELLS[::4]


def has(subject: Subject, name: str) -> bool:
    """Whether there is such an input or parameter; `only-` and `without-` in front mean nothing."""
    part = name.removeprefix("only-").removeprefix("without-")
    if part in ("c0", "weight_hr"):
        return subject.kind.startswith("LSTM") if part == "c0" else subject.kind == "LSTM-proj"
    return not (
        (part == "x" and "ids" in subject.layout) or (part.startswith("bias") and not subject.options.get("bias", True))
    )


def plan_of(idioms: Iterable[str], light: Iterable[str], triton: Iterable[str] = ()) -> pytest.MarkDecorator:
    """Every idiom with what implementations differ in, `light` with the layouts too, `triton` in its interpreter."""
    pairs = [*itertools.product(CORE, idioms), *itertools.product(LAYOUTS, light), *itertools.product(TRITON, triton)]
    pairs += itertools.product([CELL_IN_TRITON], triton)
    return pytest.mark.parametrize(("subject", "idiom"), [pytest.param(s, i, id=f"{s}-{i}") for s, i in pairs])


def each(subjects: Iterable[Subject]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("subject", list(subjects), ids=str)
