"""What people do around the C kernels in training: change outputs in place, leave inputs out, freeze some of them."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import fastcells
from fastcells.backends.cpu import native
from tests.support.accuracy import EPS, rms_error
from tests.support.shapes import EACH_CELL, Case, Shape

if native.obstacle() is not None and os.environ.get("CI") != "true":
    pytest.skip(native.obstacle() or "", allow_module_level=True)

SHAPE = Shape(6, 5, 17, 4)
DENSE_OR_IDS = pytest.mark.parametrize("ids", [False, True], ids=["dense", "ids"])


def arguments(case: Case, ids: bool) -> list[Tensor]:
    values = case.arguments(SHAPE, torch.float32, grad=False)
    return [torch.randint(SHAPE.I, (SHAPE.T, SHAPE.B)) if ids else values[0], *values[1:]]


def assert_as_in_torch(ours: Tensor | None, theirs: Tensor | None, exact: Tensor | None) -> None:
    assert (ours is None) == (theirs is None) == (exact is None)
    if ours is not None and theirs is not None and exact is not None:
        assert ours.dtype == theirs.dtype == torch.float32
        assert rms_error(ours, exact) <= 2 * rms_error(theirs, exact) + EPS


# ---- what is returned belongs to the caller ----


def set_end(out: Tensor) -> None:
    out[2:] = 0


IN_PLACE: dict[str, Callable[[Tensor], object]] = {
    "relu_": F.relu_,
    "masked_fill_": lambda out: out.masked_fill_(torch.arange(SHAPE.H) % 2 == 0, -1.0),
    "part": set_end,
    "dropout": lambda out: F.dropout(out, 0.5, inplace=True),
}


@pytest.mark.parametrize("idiom", IN_PLACE)
@pytest.mark.parametrize("masks", ["", "lengths", "resets"])
@DENSE_OR_IDS
@EACH_CELL
def test_outputs_changed_in_place_before_backward(case: Case, ids: bool, masks: str, idiom: str) -> None:
    args = arguments(case, ids)
    options: dict[str, Any] = {}
    if masks == "lengths":
        options["lengths"] = torch.tensor([6, 0, 3, 5, 1])
    elif masks == "resets":
        options["resets"] = torch.rand(SHAPE.T, SHAPE.B) < 0.3

    def run(impl: str, dtype: torch.dtype) -> list[Tensor]:
        torch.manual_seed(7)  # dropout's
        leaves = [a.to(dtype, copy=True).requires_grad_() if a.is_floating_point() else a for a in args]
        given = options
        if impl == "torch" and not options:  # torch's own LSTM saves its output, and would raise
            given = {"lengths": torch.full((SHAPE.B,), SHAPE.T)}
        out, *last = case.ours(*leaves, impl=impl, **given)
        IN_PLACE[idiom](out)
        kept = [s.sin() for s in last]
        d = [torch.linspace(-1, 1, t.numel(), dtype=dtype).view_as(t) for t in (out, *last)]
        torch.autograd.backward([out, *kept], d)
        for s in last if impl == "cpu" else ():
            s.detach_()  # truncated BPTT
        return [out, *last, *(a.grad for a in leaves if a.grad is not None)]

    results = (run("cpu", torch.float32), run("torch", torch.float32), run("torch", torch.float64))
    for a, b, c in zip(*results, strict=True):
        assert_as_in_torch(a, b, c)


@EACH_CELL
@pytest.mark.slow
def test_outputs_changed_in_place_after_compiling(case: Case) -> None:
    args = arguments(case, False)
    lengths = torch.tensor([6, 0, 3, 5, 1])
    found, d = [], torch.randn(SHAPE.T, SHAPE.B, SHAPE.H)
    for wrap in (lambda f: f, lambda f: torch.compile(f, fullgraph=True, backend="aot_eager")):
        leaves = [a.clone().requires_grad_() for a in args]
        out, *last = wrap(lambda *a: case.ours(*a, impl="cpu", lengths=lengths))(*leaves)
        out.relu_()
        for s in last:
            s.detach_()
        out.backward(d)
        found.append([out, *last, *(a.grad for a in leaves)])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)
    with torch.no_grad():
        compiled = torch.compile(lambda *a: case.ours(*a, impl="cpu", lengths=lengths), backend="aot_eager")(*args)
        assert all(map(torch.equal, compiled, case.ours(*args, impl="cpu", lengths=lengths)))


# ---- inputs that are absent, and inputs that need no gradient ----


@pytest.mark.parametrize("masks", ["", "lengths", "resets"])
@pytest.mark.parametrize("absent", ["", "b_ih", "b_hh", "both"])
@DENSE_OR_IDS
@EACH_CELL
@pytest.mark.slow
def test_absent_inputs_crossed_with_what_needs_a_gradient(case: Case, ids: bool, absent: str, masks: str) -> None:
    """Each input alone, all but one, and all: the same gradients as torch's operators, None where these have None."""
    args: list[Tensor | None] = [*arguments(case, ids)]
    if absent:
        for i in {"b_ih": [-2], "b_hh": [-1], "both": [-2, -1]}[absent]:
            args[i] = None
    options: dict[str, Any] = {}
    if masks == "lengths":
        options["lengths"] = torch.tensor([6, 0, 3, 5, 1])
    elif masks == "resets":
        options["resets"] = torch.rand(SHAPE.T, SHAPE.B) < 0.3
    d = [torch.randn(SHAPE.T, SHAPE.B, SHAPE.H), *(torch.randn(SHAPE.B, SHAPE.H) for _ in range(case.states))]

    def run(impl: str, dtype: torch.dtype, chosen: tuple[int, ...]) -> list[Tensor | None]:
        leaves = [a if a is None or not a.is_floating_point() else a.to(dtype, copy=True) for a in args]
        for i in chosen:
            leaves[i].requires_grad_()  # type: ignore[union-attr]
        outs = case.ours(*leaves, impl=impl, **options)
        torch.autograd.backward(outs, [t.to(dtype) for t in d])
        return [None if a is None else a.grad for a in leaves]

    free = [i for i, a in enumerate(args) if a is not None and a.is_floating_point()]
    for count in (1, len(free) - 1, len(free)):
        for chosen in itertools.combinations(free, count):
            results = (run("cpu", torch.float32, chosen), run("torch", torch.float32, chosen))
            for ours, theirs, exact in zip(*results, run("torch", torch.float64, chosen), strict=True):
                assert_as_in_torch(ours, theirs, exact)


# ---- what training keeps ----


def test_a_gru_writes_the_gradients_of_its_last_gate_alone() -> None:
    """Of h W^T + b; those of the other gates are the input projection's."""
    T, B, H = 3, 2, 5
    x, h, w = torch.randn(T, B, 3 * H), torch.randn(B, H), torch.randn(3 * H, H)
    out = native.forward("gru", x, (h,), w, None, None, save=True)
    d = native.backward("gru", torch.randn(T, B, H), (h,), (h,), w, None, out.hidden, out.cells, out.saved)
    assert d.d_gates.shape == (T, B, H) and [piece.shape[1] for piece in d.columns()] == [2 * H, H]
    whole = torch.cat([d.d_x.flatten(0, 1)[:, : 2 * H], d.d_gates.flatten(0, 1)], 1)
    for first, end in itertools.combinations(range(3 * H + 1), 2):
        assert torch.equal(torch.cat(d.columns(first, end), 1), whole[:, first:end])


def test_an_inner_layer_keeps_its_outputs_once() -> None:
    kept: set[int] = set()

    def pack(t: Tensor) -> Tensor:
        if t.shape[-1] == 32 and t.numel() == 6 * 5 * 32:  # not a slice of them, nor weights
            kept.add(t.data_ptr())
        return t

    layer, x = fastcells.GRU(7, 32, 3, impl="cpu"), torch.randn(6, 5, 7)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        layer(x)
    assert len(kept) == 3, "one for each layer: what the next one reads is what the backward reads"
