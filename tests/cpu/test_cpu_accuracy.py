"""The C kernels, with every set of vector instructions that this machine has.

Three-way: err(ours) <= 2 * err(torch's operators in float32) + eps, both against the reference in float64.
"""

from __future__ import annotations

import itertools
import os
from typing import Any

import pytest
import torch
from torch import Tensor

from fastcells import functional
from fastcells.backends.cpu import native
from tests.support.accuracy import EPS, error, rms_error
from tests.support.runs import INPUT, arguments, cotangents_of, one_thread, run
from tests.support.shapes import CELLS, EACH_CELL, Case

if native.obstacle() is not None and os.environ.get("CI") != "true":
    pytest.skip(native.obstacle() or "", allow_module_level=True)

pytestmark = pytest.mark.usefixtures("poisoned_memory")

# T, B, H: smaller and larger than a vector of each width, tiles cut off at both ends, size 1 in every place.
SHAPES = [(1, 1, 1), (2, 5, 24), (9, 16, 7), (2, 33, 64), (9, 5, 65), (1, 16, 24), (5, 1, 130), (3, 40, 17)]
EACH_SHAPE = pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "T{}-B{}-H{}".format(*s))


@EACH_SHAPE
@EACH_CELL
def test_accuracy(case: Case, shape: tuple[int, int, int], instructions: str, threads: int) -> None:
    """Dense and ids, even and ragged, both directions, in turn."""
    index = SHAPES.index(shape) + CELLS.index(case)
    options: dict[str, Any] = {"reverse": index % 2 == 1}
    if index % 3 == 0:
        options["lengths"] = torch.randint(shape[0] + 1, (shape[1],))
    args, d = arguments(case, shape, ids=index % 4 == 1), cotangents_of(case, shape)
    with one_thread():
        truth = run(case, args, torch.float64, d, impl="torch", **options)
        theirs = run(case, args, torch.float32, d, impl="torch", **options)
    ours = run(case, args, torch.float32, d, impl="cpu", **options)
    for i, (exact, base, mine) in enumerate(zip(truth, theirs, ours, strict=True)):
        assert mine.dtype == torch.float32
        assert rms_error(mine, exact) <= 2 * rms_error(base, exact) + EPS, f"tensor {i}"
    with torch.no_grad():
        inferred = case.ours(*args, impl="cpu", **options)
    if index % 4 != 1 and "lengths" not in options:
        for exact, base, mine in zip(truth, theirs, inferred, strict=False):  # one call, with sums in another order
            assert rms_error(mine, exact) <= 2 * rms_error(base, exact) + EPS
    else:
        assert all(torch.equal(a, b) for a, b in zip(inferred, ours, strict=False))


@pytest.mark.parametrize("which", ["forward", "backward", "weight_gradients", "scatter"])
def test_a_fault_of_a_thousandth_is_seen(which: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison above is sharp, and it is C that it compares."""
    compute = getattr(native, which)

    def wrong(*args: Any, **kwargs: Any) -> Any:
        out = compute(*args, **kwargs)
        out[0].mul_(1.001)
        return out

    monkeypatch.setattr(native, which, wrong)
    case = CELLS[2]
    args, d = arguments(case, (9, 5, 65), ids=which == "scatter"), cotangents_of(case, (9, 5, 65))
    truth, ours = run(case, args, torch.float64, d, impl="torch"), run(case, args, torch.float32, d, impl="cpu")
    assert any(rms_error(o, t) > 1e-5 for o, t in zip(ours, truth, strict=True))


@EACH_CELL
def test_any_number_of_threads_gives_the_same_bits(case: Case, instructions: str) -> None:
    args, d = arguments(case, (6, 13, 130)), cotangents_of(case, (6, 13, 130))
    before = torch.get_num_threads()
    runs = []
    try:
        for count in (1, 2, 3, 4, 1, 4):
            torch.set_num_threads(count)
            # The input projection is torch's and has an order of its own for each number of threads.
            G, T, B, H = case.spec.num_gates, 6, 13, 130
            x, state, w, b = torch.linspace(-2, 2, T * B * G * H).view(T, B, -1), args[1:-4], args[-3], args[-1]
            out = native.forward(case.spec.name, x, tuple(state), w, b, None, save=True)
            kept = (out.hidden, out.cells, out.saved)
            back = native.backward(case.spec.name, d[0], tuple(d[1:]), tuple(state), w, None, *kept)
            d_w = native.weight_gradients(back.columns()[-1], out.hidden.flatten(0, 1))
            runs.append([out.hidden, *out.last, back.d_x, back.d_gates, *back.d_state, *d_w])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in runs[1:] for a, b in zip(runs[0], other, strict=True))


def test_activations(instructions: str) -> None:
    """At most 2 units in the last place further off than torch's, normal results; NaN and infinity go through."""
    small = torch.logspace(-38, 0, 20001)
    x = torch.cat([torch.linspace(-87, 87, 400001), torch.linspace(-4, 4, 400001), small, -small])
    s, t = torch.empty_like(x), torch.empty_like(x)
    native._cpu.activations(native._instructions, x.data_ptr(), s.data_ptr(), t.data_ptr(), x.numel())
    for ours, function in ((s, torch.sigmoid), (t, torch.tanh)):
        exact = function(x.double())
        unit = torch.nextafter(exact.float().abs(), torch.tensor(torch.inf)).double() - exact.float().abs().double()
        mine, theirs = ((y.double() - exact).abs() / unit for y in (ours, function(x)))
        assert mine.max() <= theirs.max() + 2
        assert mine.mean() <= theirs.mean() + 0.5
    odd = torch.tensor([torch.nan, torch.inf, -torch.inf, 0.0, -0.0, 1e-45, -1e-45, 3e38, -3e38, -95.0])
    s, t = torch.empty_like(odd), torch.empty_like(odd)
    native._cpu.activations(native._instructions, odd.data_ptr(), s.data_ptr(), t.data_ptr(), odd.numel())
    assert torch.equal(t.nan_to_num(9), odd.tanh().nan_to_num(9)) and torch.equal(t.signbit(), odd.tanh().signbit())
    assert (s.nan_to_num(9) - odd.double().sigmoid().nan_to_num(9)).abs().max() < 1e-37
    assert 0 < s[-1] < 1e-41  # exp(-95): gradual underflow is kept


@EACH_CELL
def test_nan_stays_in_its_row(case: Case, instructions: str) -> None:
    """As in torch's operators, forward and backward: another row of the batch must not see it."""
    args, d = arguments(case, (3, 9, 33)), cotangents_of(case, (3, 9, 33))
    args[0][1, 4, 2] = torch.nan
    args[0][0, 7, 0] = torch.inf
    ours, theirs = (run(case, args, torch.float32, d, impl=impl) for impl in ("cpu", "torch"))
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a.isnan(), b.isnan())


@EACH_CELL
def test_large_inputs_give_no_nan(case: Case, instructions: str) -> None:
    args, d = arguments(case, (3, 5, 24)), cotangents_of(case, (3, 5, 24))
    for a in args[: 1 + case.states]:
        a.mul_(100)
    assert all(t.isfinite().all() for t in run(case, args, torch.float32, d, impl="cpu"))


@pytest.mark.parametrize("ragged", [False, True], ids=["even", "ragged"])
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@EACH_CELL
def test_resets(case: Case, reverse: bool, ragged: bool, instructions: str) -> None:
    """Against float64, forward and all gradients; and a reset sequence is two sequences."""
    T, B, H = shape = (7, 9, 33)
    args, d = arguments(case, shape), cotangents_of(case, shape)
    options: dict[str, Any] = {"reverse": reverse, "resets": torch.rand(T, B) < 0.3}
    if ragged:
        options["lengths"] = torch.randint(T + 1, (B,))
    with one_thread():
        truth = run(case, args, torch.float64, d, impl="torch", **options)
        theirs = run(case, args, torch.float32, d, impl="torch", **options)
    ours = run(case, args, torch.float32, d, impl="cpu", **options)
    for exact, base, mine in zip(truth, theirs, ours, strict=True):
        assert rms_error(mine, exact) <= 2 * rms_error(base, exact) + EPS
    if not ragged and not reverse:
        resets = torch.zeros(T, B, dtype=torch.bool)
        resets[3] = True
        args[1][:, :] = torch.nan if case.states == 1 else args[1]
        whole = case.ours(*args, resets=resets, impl="cpu")[0][3:]
        zeros = [torch.zeros(B, H) for _ in range(case.states)]
        rest = {"lengths": torch.full((B,), T - 3), "impl": "cpu"}  # by the same way as resets
        assert torch.equal(whole, case.ours(args[0][3:], *zeros, *args[1 + case.states :], **rest)[0])


def test_resets_are_checked() -> None:
    x, w_ih, w_hh = torch.zeros(4, 2, INPUT), torch.zeros(9, INPUT), torch.zeros(9, 3)
    for resets in (torch.zeros(4, 3, dtype=torch.bool), torch.zeros(4, 2)):
        with pytest.raises(RuntimeError, match=r"resets must be a bool tensor of shape \[4, 2\], got torch"):
            functional.gru(x, None, w_ih, w_hh, resets=resets)


@EACH_CELL
def test_padding_may_hold_nan(case: Case) -> None:
    args, d = arguments(case, (4, 3, 24)), cotangents_of(case, (4, 3, 24))
    lengths = torch.tensor([4, 0, 2])
    clean = run(case, args, torch.float32, d, impl="cpu", lengths=lengths)
    args[0] = args[0].clone()
    args[0][2:, 2] = args[0][:, 1] = d[0][2:, 2] = d[0][:, 1] = torch.nan
    for a, b in zip(clean, run(case, args, torch.float32, d, impl="cpu", lengths=lengths), strict=True):
        assert a.isfinite().all() and torch.equal(a, b)


@pytest.mark.parametrize("ids", [False, True], ids=["dense", "ids"])
@EACH_CELL
def test_second_derivatives(case: Case, ids: bool) -> None:
    """The gradient of a gradient's norm; it runs through torch's operators."""
    args, d = arguments(case, (3, 2, 7), ids=ids), torch.randn(3, 2, 7)

    def second(impl: str) -> tuple[Tensor, ...]:
        leaves = [a.clone().requires_grad_(a.is_floating_point()) for a in args]
        wanted = [a for a in leaves if a.requires_grad]
        first = torch.autograd.grad(case.ours(*leaves, impl=impl)[0], wanted, d, create_graph=True)
        return torch.autograd.grad(sum((g**2).sum() for g in first), wanted, materialize_grads=True)

    for a, b in zip(second("cpu"), second("torch"), strict=True):
        # The first pass differs by float32 rounding only; a missing second order is off by tens of percent.
        assert error(a, b) <= 1e-4 * max(1.0, b.abs().max().item())


@EACH_CELL
def test_any_subset_of_gradients(case: Case) -> None:
    """What is not asked for may be left out, and what is asked for stays the same."""
    args, d = arguments(case, (4, 3, 17)), cotangents_of(case, (4, 3, 17))
    full = run(case, args, torch.float32, d, impl="cpu")[1 + case.states :]
    for chosen in itertools.combinations(range(len(args)), 2):
        leaves = [a.clone().requires_grad_(i in chosen) for i, a in enumerate(args)]
        outs = case.ours(*leaves, impl="cpu")
        some = torch.autograd.grad(outs, [leaves[i] for i in chosen], d, retain_graph=True)
        again = torch.autograd.grad(outs, [leaves[i] for i in chosen], d)
        for i, a, b in zip(chosen, some, again, strict=True):
            assert torch.equal(a, b) and error(a, full[i]) <= 64 * EPS * max(1.0, full[i].abs().max().item())
