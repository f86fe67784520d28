"""The product of a linear layer in C: its numbers, and OpenMP that gives fewer threads than it was asked for."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

import fastcells
from fastcells import linear
from fastcells.backends.cpu import native, products
from fastcells.charlm.model import Scores
from tests.support.accuracy import EPS, rms_error
from tests.support.devices import use_instructions

if native.obstacle() is not None and os.environ.get("CI") != "true":
    pytest.skip(native.obstacle() or "", allow_module_level=True)

pytestmark = pytest.mark.usefixtures("poisoned_memory")
# rows, terms, columns: size 1 in every place, tiles and vectors cut off, sums in several parts, also through memory
SHAPES = [(1, 1, 1), (1, 7, 33), (130, 1, 5), (33, 256, 96), (7, 515, 17), (65, 100, 24), (200, 33, 130), (3, 4100, 31)]
EACH_SHAPE = pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "N{}-K{}-M{}".format(*s))


@pytest.fixture(params=list(native.INSTRUCTIONS))
def instructions(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    use_instructions(monkeypatch, "_instructions", native.INSTRUCTIONS, request.param)
    monkeypatch.setattr(native, "WORK_OF_A_THREAD", 1)


@pytest.fixture
def any_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def factors(shape: tuple[int, int, int], apart: bool) -> tuple[Tensor, Tensor, Tensor]:
    N, K, M = shape
    x = torch.randn(N, K + 5)[:, 2 : K + 2] if apart else torch.randn(N, K)
    return x, torch.randn(M, K), torch.randn(M)


def one_after_another(x: Tensor, w: Tensor, bias: Tensor | None) -> Tensor:
    """The sums as one writes them down. Where rows are few, MKL on Intel's processors splits them into sixteen."""
    out = x.new_zeros(len(x), len(w)) if bias is None else bias.repeat(len(x), 1)
    for k in range(x.shape[1]):
        out = out + x[:, k, None] * w[:, k]
    return out


@pytest.mark.usefixtures("instructions", "any_threads")
@pytest.mark.parametrize("apart", [False, True], ids=["rows together", "rows apart"])
@EACH_SHAPE
def test_accuracy_and_the_same_bits_with_any_number_of_threads(shape: tuple[int, int, int], apart: bool) -> None:
    x, w, b = factors(shape, apart)
    for bias in (b, None):
        exact = torch.nn.functional.linear(x.double(), w.double(), None if bias is None else bias.double())
        theirs = rms_error(torch.nn.functional.linear(x, w, bias), exact)
        allowed = max(2 * theirs, rms_error(one_after_another(x, w, bias), exact)) + EPS
        first = None
        for threads in (1, 2, 3, 5):
            torch.set_num_threads(threads)
            ours = native.linear(x, w, bias)
            assert rms_error(ours, exact) <= allowed
            turned = native.linear(x, w.t().contiguous(), bias, transposed=True)
            assert torch.equal(ours, turned), "the order of a sum depends on how W lies"
            assert first is None or torch.equal(ours, first), "the order of a sum depends on the number of threads"
            first = ours


@pytest.mark.usefixtures("instructions")
def test_nan_stays_in_its_row() -> None:
    x, w, b = factors((20, 40, 35), False)
    x[3, 7], x[9, 0] = torch.nan, torch.inf
    assert torch.equal(native.linear(x, w, b).isnan(), torch.nn.functional.linear(x, w, b).isnan())


@pytest.mark.parametrize("many", [False, True], ids=["few rows", "many rows"])
def test_what_a_linear_layer_gives_is_no_view(many: bool) -> None:
    x, w = torch.randn(4, 40, 200 if many else 2), torch.randn(200, 200 if many else 2).requires_grad_()
    assert (x.numel() * len(w) >= products.LARGE_PRODUCT) == many
    out = products.linear(x, w, None)
    assert not out._is_view() and out.detach_().shape == (4, 40, 200)


FEWER = """
import ctypes, sys, torch, fastcells
from fastcells.backends.cpu import products
from fastcells.backends.cpu import native
threads = 4
def layers():
    for name in ("RNN", "GRU", "LSTM"):
        torch.manual_seed(1)
        layer = getattr(fastcells, name)(256, 256, impl="cpu")
        exact = getattr(torch.nn, name)(256, 256).double()
        exact.load_state_dict({k: v.double() for k, v in layer.state_dict().items()})
        yield name, layer, exact, torch.randn(20, 32, 256), torch.randn(20, 32, 256)
def check(when):
    torch.set_num_threads(threads)
    for name, layer, exact, x, d in layers():
        x, y = x.requires_grad_(), x.detach().double().requires_grad_()
        out, truth = layer(x)[0], exact(y)[0]
        out.backward(d), truth.backward(d.double())
        pairs = {"out": (out, truth), "d_x": (x.grad, y.grad)}
        pairs |= {n: (p.grad, q.grad) for (n, p), q in zip(layer.named_parameters(), exact.parameters())}
        for what, (ours, right) in pairs.items():
            error = ((ours - right).abs().max() / right.abs().max()).item()
            assert error < 1e-5, f"{when}, {name}: {what} is off by {error}"
"""
# Wrong products are off by their own size; 1e-5 is 84 float32 roundings, of sums of 640 terms.
LIMITS = {
    "OMP_THREAD_LIMIT=1": "check('limited')",
    "OMP_DYNAMIC=true": "check('dynamic')",
    # libgomp is loaded once, by torch: the names are found in the process itself.
    "": """
check("before")
omp = ctypes.CDLL(None)
omp.omp_set_dynamic(1)
check("dynamic from here on")
omp.omp_set_dynamic(0)
omp.omp_set_num_threads(1)
check("fewer from here on")
omp.omp_set_max_active_levels(0)
check("no team at all from here on")
omp.omp_set_max_active_levels(1)
check("a team again")
""",
}


@pytest.mark.parametrize("limit", LIMITS, ids=lambda limit: limit or "while it runs")
@pytest.mark.slow
def test_fewer_threads_than_asked_for(limit: str) -> None:
    environment = {**os.environ, **dict([limit.split("=")] if limit else [])}
    command = [sys.executable, "-c", FEWER + LIMITS[limit]]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=200)
    assert done.returncode == 0, done.stderr


def test_no_private_operator_of_onednn_is_called() -> None:
    """It gives wrong numbers with a limited team, and keeps memory for every shape."""
    x = torch.randn(40, 32, 256, requires_grad=True)
    layer = fastcells.GRU(256, 256, impl="cpu")
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        out = layer(x)[0]
        out.backward(torch.randn_like(out))
    names = {event.key for event in profile.key_averages()}
    assert names and not any("mkldnn" in name for name in names), names


@pytest.mark.parametrize("in_c", [True, False], ids=["C", "MKL"])
def test_linear(in_c: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """`F.linear`'s values and gradients, in C and not, also where x has more dimensions."""
    monkeypatch.setattr(products, "LARGE_PRODUCT", 1 if in_c else 1 << 60)
    monkeypatch.setattr(products, "MANY_ROWS", 1)
    x, w, b = torch.randn(3, 5, 33), torch.randn(17, 33), torch.randn(17)
    for bias in (b, None):
        results = []
        for function, dtype in ((products.linear, torch.float32), (nn.functional.linear, torch.float64)):
            leaves = [t.to(dtype).requires_grad_() for t in (x, w, bias) if t is not None]
            out = function(*leaves, *([None] if bias is None else []))
            d = torch.linspace(-1, 1, out.numel(), dtype=dtype).view_as(out)
            results.append([out, *torch.autograd.grad(out, leaves, d)])
        for mine, exact in zip(*results, strict=True):
            assert rms_error(mine, exact) <= 4 * EPS


def test_scores_of_the_language_model() -> None:
    """The same as nn.Linear, under the same names, and C where the products are large."""
    scores = Scores(128, 300)
    plain = nn.Linear(128, 300)
    plain.load_state_dict(scores.state_dict())
    hidden = torch.randn(8, 20, 128)
    assert linear.uses_cpu_kernel("auto", hidden, scores.weight) and not linear.uses_cpu_kernel(
        "torch", hidden, plain.weight
    )
    assert not linear.uses_cpu_kernel("auto", hidden[:, :1], scores.weight)
    assert rms_error(scores(hidden), plain.double()(hidden.double())) <= 4 * EPS
