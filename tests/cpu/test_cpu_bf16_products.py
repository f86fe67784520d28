"""Linear layers and weight gradients in C in bfloat16: at most twice the error of torch's, both against float64."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fastcells
from fastcells.accuracy import TWICE, relative_error
from fastcells.backends.cpu import native, products
from tests.support.devices import OF_BF16

pytestmark = [*OF_BF16, pytest.mark.usefixtures("each_bf16")]

BF16 = torch.bfloat16
EPS = torch.finfo(BF16).eps
# rows, terms, columns: whole pairs and odd ones, vectors and tiles cut off, sums in several parts, tokens in several
SHAPES = [
    (1, 1, 1),
    (1, 7, 33),
    (130, 1, 5),
    (33, 256, 96),
    (7, 515, 17),
    (641, 24, 65),
    (1301, 33, 130),
    (3, 4101, 31),
]
EACH_SHAPE = pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "N{}-K{}-M{}".format(*s))
THREADS = (1, 2, 3, 5)


@pytest.fixture(autouse=True)
def any_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(native, "WORK_OF_A_THREAD", 1)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def close(ours: Tensor, theirs: Tensor, exact: Tensor) -> bool:
    return relative_error(ours, exact) <= TWICE * relative_error(theirs, exact) + EPS


def rows_apart(N: int, K: int) -> Tensor:
    return torch.randn(N, K + 3).to(BF16)[:, 1 : K + 1]


@EACH_SHAPE
def test_linear(shape: tuple[int, int, int]) -> None:
    N, K, M = shape
    x, w, b = rows_apart(N, K), torch.randn(M, K).to(BF16), torch.randn(M).to(BF16)
    for bias in (b, None):
        exact = F.linear(x.double(), w.double(), None if bias is None else bias.double())
        results = []
        for threads in THREADS:
            torch.set_num_threads(threads)
            results.append(native.linear(x, w, bias))
            results.append(native.linear(x, w.t().contiguous(), bias, transposed=True))
        assert results[0].dtype == BF16 and close(results[0], F.linear(x, w, bias), exact)
        assert all(torch.equal(r, results[0]) for r in results[1:])
    more = native.linear(x, w, out=results[0].clone(), accumulate=True)
    assert close(more, results[0] + F.linear(x, w), results[0].double() + exact)


@EACH_SHAPE
def test_weight_gradients(shape: tuple[int, int, int]) -> None:
    N, K, M = shape
    d, x = rows_apart(N, M), torch.randn(N, K).to(BF16)
    exact = d.double().t() @ x.double(), d.double().sum(0)
    theirs = d.t() @ x, d.sum(0)
    results = []
    for threads in THREADS:
        torch.set_num_threads(threads)
        results.append(native.weight_gradients(d, x))
        results.append(native.weight_gradients(d, x[: N // 3], x[N // 3 :]))
    for i in range(2):
        assert results[0][i].dtype == BF16 and close(results[0][i], theirs[i], exact[i])
        assert all(torch.equal(r[i], results[0][i]) for r in results[1:])
    more = native.weight_gradients(d, x, out=(results[0][0].clone(), results[0][1].clone()), accumulate=True)
    for i in range(2):
        assert close(more[i], results[0][i] + theirs[i], results[0][i].double() + exact[i])


def test_sums_are_float32() -> None:
    """256 and 4096 times 2^-10: rounded on the way, the sum would stay at 256, of which 258 is the next in bfloat16."""
    N = 4097
    d = torch.full((N, 1), 2.0**-10, dtype=BF16)
    d[0] = 256
    ones = torch.ones(N, 1, dtype=BF16)
    assert [t.item() for t in native.weight_gradients(d, ones)] == [260, 260]
    assert native.linear(d.t(), ones.t()).item() == 260


def test_nan_stays_in_its_row_and_column() -> None:
    """Odd sizes: a pair's other half is nobody's."""
    x, w, d = torch.randn(21, 41).to(BF16), torch.randn(35, 41).to(BF16), torch.randn(21, 35).to(BF16)
    x[3, 40], x[20, 7] = torch.nan, torch.inf
    exact = x.double() @ w.t().double(), d.t().double() @ x.double()
    d_w, d_b = native.weight_gradients(d, x)
    assert torch.equal(native.linear(x, w).isnan(), exact[0].isnan())
    assert torch.equal(d_w.isnan(), exact[1].isnan()) and d_b.isfinite().all()


@pytest.mark.parametrize("K", [32, 33, 41, 64, 100, 132])
def test_nan_stays_in_its_row_of_a_layer_s_products(K: int) -> None:
    """oneDNN's with AMX reach into the next row where K is no multiple of 32."""
    a, w = torch.randn(27, K).to(BF16), torch.randn(6, K).to(BF16)
    a[5], a[9] = torch.nan, torch.inf
    for weights in (w, w.t().contiguous().t()):
        found = products.matmul(a, weights)
        assert torch.equal(found.isnan(), (a.double() @ w.double().t()).isnan())
        assert relative_error(found[10:], (a.double() @ w.double().t())[10:]) <= 8 * EPS
    apart = torch.full((27, K + 40), torch.nan, dtype=BF16)
    apart[:, :K] = 1
    assert products.matmul(apart[:, :K], w, inner=True).isfinite().all()


def test_a_layer_s_products_run_in_c(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of many rows, forward and backward; with fewer, torch's. With AMX the weights' gradients alone."""
    amx = native.BF16_INSTRUCTIONS.get("amx_bf16")
    calls = []
    compute = native.linear, native.weight_gradients
    monkeypatch.setattr(native, "linear", lambda *a, **k: calls.append("linear") or compute[0](*a, **k))
    monkeypatch.setattr(native, "weight_gradients", lambda *a, **k: calls.append("weights") or compute[1](*a, **k))

    def gradients(T: int, H: int) -> list[Tensor]:
        torch.manual_seed(0)
        layer = fastcells.GRU(H, H, impl="cpu").to(BF16)
        x = torch.randn(T, 16, H).to(BF16).requires_grad_()
        calls.clear()
        out, _ = layer(x)
        return [out, *torch.autograd.grad(out.float().square().sum(), [x, *layer.parameters()])]

    ours = gradients(32, 128)
    assert calls == (["weights", "weights"] if amx else ["linear", "weights", "linear", "weights"])
    gradients(2, 8)
    assert calls == []
    monkeypatch.setattr(products, "multiplies", lambda dtype: False)
    theirs = gradients(32, 128)
    assert calls == []
    assert all(relative_error(a, b.double()) <= 8 * EPS for a, b in zip(ours, theirs, strict=True))


def test_second_derivatives() -> None:
    x, w = torch.randn(512, 128).to(BF16).requires_grad_(), torch.randn(128, 128).to(BF16).requires_grad_()
    found: list[Any] = []
    for linear in (lambda: products.linear(x, w, None), lambda: F.linear(x, w)):
        (d,) = torch.autograd.grad(linear().square().sum(), x, create_graph=True)
        found.append(torch.autograd.grad(d.sum(), w)[0])
    assert relative_error(found[0], found[1].double()) <= 8 * EPS


def test_mixed_dtypes_are_torch_s_error() -> None:
    layer, x = fastcells.GRU(8, 64, impl="cpu").to(BF16), torch.randn(35, 32, 8)
    with pytest.raises((RuntimeError, ValueError)):
        layer(x)
    with pytest.raises(RuntimeError, match=r"x must be bfloat16 \[35, 8\] on the CPU, got torch.float32"):
        native.linear(x[:, 0], nn.Linear(8, 4).to(BF16).weight.detach())
