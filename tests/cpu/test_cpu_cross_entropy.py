"""Cross-entropy of rows in C, and the products around it that add to what is there: numbers, and the same bits."""

from __future__ import annotations

import os

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fastcells.backends.cpu import cross_entropy, native
from tests.support.accuracy import EPS, rms_error

if native.obstacle() is not None and os.environ.get("CI") != "true":
    pytest.skip(native.obstacle() or "", allow_module_level=True)

pytestmark = pytest.mark.usefixtures("poisoned_memory")
COLUMNS = [1, 2, 15, 16, 17, 65, 256, 257, 1027, 50000]  # vectors cut off; sums in one part and in several


def of_scores(x: Tensor, targets: Tensor, smoothing: float, d: Tensor | None) -> tuple[Tensor, Tensor]:
    """Losses, and what is left in the scores' place."""
    left = x.clone()
    return cross_entropy.of_scores(left, targets.clamp(min=0), targets >= 0, smoothing, True, d), left


def exactly(x: Tensor, targets: Tensor, smoothing: float, d: Tensor | None) -> tuple[Tensor, Tensor]:
    """The same by torch."""
    x = x.detach().requires_grad_()
    loss = F.cross_entropy(x, targets, ignore_index=-1, label_smoothing=smoothing, reduction="none")
    (gradient,) = torch.autograd.grad(loss, x, torch.ones_like(loss) if d is None else d.to(loss.dtype))
    return loss.detach(), gradient


@pytest.mark.parametrize("columns", COLUMNS)
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_accuracy(columns: int, smoothing: float, instructions: str, threads: int) -> None:
    """Scores as they come, large ones, and far apart."""
    for scale, shift in ((1.0, 0.0), (1.0, 1e4), (30.0, -50.0)):
        x = torch.randn(5, columns) * scale + shift
        targets = torch.randint(columns, (5,))
        targets[3] = -1
        for d in (None, torch.randn(5)):
            exact = exactly(x.double(), targets, smoothing, d)
            for ours, plain, e in zip(
                of_scores(x, targets, smoothing, d), exactly(x, targets, smoothing, d), exact, strict=True
            ):
                assert rms_error(ours, e) <= 2 * rms_error(plain, e) + EPS


def test_values_that_are_no_numbers_stay_in_their_rows(instructions: str) -> None:
    """As torch has them, but where a row does not count: there its gradient is 0."""
    x, targets = torch.randn(7, 40), torch.full((7,), 3)
    x[0, 39], x[1, 39], x[2, 5], x[3, 3], x[4] = torch.nan, torch.inf, -torch.inf, -torch.inf, -torch.inf
    for ours, plain in zip(of_scores(x, targets, 0.0, None), exactly(x, targets, 0.0, None), strict=True):
        torch.testing.assert_close(ours, plain, equal_nan=True)
    targets[:5] = -1
    loss, gradient = of_scores(x, targets, 0.0, None)
    assert not loss[:5].any() and not gradient[:5].any() and gradient[5:].any()


def test_the_same_bits_with_any_number_of_threads(instructions: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "WORK_OF_A_THREAD", 1)
    monkeypatch.setattr(cross_entropy, "WEIGHTS", 40 * 33)
    before = torch.get_num_threads()
    hidden, weight, bias = torch.randn(600, 33), torch.randn(300, 33), torch.randn(300)
    targets, counts = torch.randint(300, (600,)), torch.rand(600) > 0.1
    first = None
    try:
        for threads in (1, 2, 3, 5):
            torch.set_num_threads(threads)
            found = cross_entropy.losses(hidden, weight, bias, targets, counts, 0.1, (True, True, True))
            assert first is None or all(map(torch.equal, found, first)), f"{threads} threads"
            first = found
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("shape", [(1, 1, 2), (130, 33, 300), (300, 7, 17), (290, 20, 1027)], ids=str)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_a_linear_layer_and_its_loss_in_one_call(
    shape: tuple[int, int, int], reduction: str, instructions: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside float64, several parts of rows, the same bits with any number of threads."""
    N, H, V = shape
    leaves, targets = [torch.randn(N, H), torch.randn(V, H), torch.randn(V)], torch.randint(V, (N,))
    targets[0], targets[1::7] = 0, (ignored := V // 2)
    d = torch.randn(N) if reduction == "none" else None
    results = []
    for dtype in (torch.float64, torch.float32):
        own = [leaf.to(dtype).requires_grad_() for leaf in leaves]
        options = {"label_smoothing": 0.1, "ignore_index": ignored, "reduction": reduction}
        loss = F.cross_entropy(F.linear(*own), targets, **options)
        results.append([loss.detach(), *torch.autograd.grad(loss, own, None if d is None else d.to(dtype))])
    first = None
    for threads in (1, 2, 3, 5):
        monkeypatch.setattr(native, "_threads", lambda multiplications, threads=threads: threads)
        found = cross_entropy.reduced(*leaves, targets, ignored, 0.1, reduction, (True, True, True), d)
        assert first is None or all(map(torch.equal, found, first)), f"{threads} threads"
        first = found
        if not loss.isnan().any():
            for name, ours, exact, plain in zip(
                ("loss", "d_hidden", "d_weight", "d_bias"), found, *results, strict=True
            ):
                assert rms_error(ours, exact) <= 2 * rms_error(plain, exact) + EPS, name


def test_a_target_outside_is_refused_by_the_one_call() -> None:
    given = torch.randn(150, 5), torch.randn(9, 5), None, torch.randint(9, (150,))
    for outside in (-1, 9, 2**62):
        given[3][77] = outside
        with pytest.raises(IndexError, match=f"target {outside} at 77 is outside"):
            cross_entropy.reduced(*given, -100, 0.0, "mean", (True, True, True), None)
        cross_entropy.reduced(*given, outside, 0.0, "mean", (True, True, True), None)


def test_products_that_add(instructions: str, threads: int) -> None:
    """Into rows that lie apart, and on top of what is there."""
    x, w, b = torch.randn(23, 70), torch.randn(40, 70), torch.randn(40)
    wide = torch.zeros(23, 50)
    native.linear(x, w, b, out=wide[:, 5:45])
    assert torch.equal(wide[:, 5:45], native.linear(x, w, b)) and not wide[:, :5].any() and not wide[:, 45:].any()
    native.linear(x, w, out=wide[:, 5:45], accumulate=True)
    assert rms_error(wide[:, 5:45], 2 * (x.double() @ w.double().t()) + b) <= 4 * EPS
    d = torch.randn(23, 40)
    d_w, d_b = native.weight_gradients(d, x)
    native.weight_gradients(d, x, out=(d_w, d_b), accumulate=True)
    assert rms_error(d_w, 2 * (d.double().t() @ x.double())) <= 4 * EPS
    assert rms_error(d_b, 2 * d.double().sum(0)) <= 4 * EPS
    nothing = torch.randn(23, 0)
    assert torch.equal(native.linear(nothing, w[:, :0], out=d.clone(), accumulate=True), d)
    native.weight_gradients(d[:0], x[:0], out=(d_w, d_b), accumulate=True)
    assert rms_error(d_b, 2 * d.double().sum(0)) <= 4 * EPS


def test_what_c_would_read_or_write_outside_is_refused() -> None:
    x, share, losses = torch.randn(5, 7), torch.tensor([1.0, 0.0]), torch.empty(5)
    good = torch.tensor([0, 1, -1, 6, 3])
    cross_entropy.in_place(x, good, share, losses, gradient=True)
    for error, name, bad in (
        (IndexError, "targets", torch.tensor([0, 1, 2, 7, 3])),
        (IndexError, "targets", good[:4]),
        (RuntimeError, "targets", good.float()),
        (RuntimeError, "x", x.double()),
        (RuntimeError, "x", x.t().contiguous().t()),
        (RuntimeError, "losses", losses[:4]),
        (RuntimeError, "smoothing", share[:1]),
        (RuntimeError, "d_losses", losses[:4]),
    ):
        arguments = {"x": x, "targets": good, "smoothing": share, "losses": losses, name: bad}
        with pytest.raises(error):
            cross_entropy.in_place(**arguments, gradient=True)
    for out in (torch.empty(5, 6), torch.empty(7, 5).t(), torch.empty(5, 7).double()):
        with pytest.raises(RuntimeError, match="out"):
            native.linear(torch.randn(5, 3), torch.randn(7, 3), out=out)
