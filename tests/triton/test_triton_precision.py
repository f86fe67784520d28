"""The modes of float32's matmuls, in numbers: "tf32", "tf32x3", and "ieee", which is float32 itself.

On a GPU the tensor cores run; elsewhere what `kernels/triton/tiles.py` has the interpreter do in their place. What is
exact here is so on both: were the two to differ on a GPU, the first tests would say in what.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from fastcells.backends.triton import backend
from fastcells.kernels.triton import plan, tiles
from tests.support.accuracy import rms_error
from tests.support.shapes import CELLS, EACH_CELL, Case
from tests.triton.test_triton import arguments, run

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("poisoned_memory", "strict_float32")]
INTERPRETED = pytest.mark.skipif(torch.cuda.is_available(), reason="a tensor core cannot be changed")
MODES = ["ieee", "tf32", "tf32x3"]
EACH_MODE = pytest.mark.parametrize("mode", MODES)
SIZE = 32  # of the square tiles in the tests of one product


@triton.jit
def product_kernel(
    a_ptr,  # [SIZE, SIZE], as all the others
    b_ptr,
    acc_ptr,
    out_ptr,
    SIZE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    tile = tl.arange(0, SIZE)[:, None] * SIZE + tl.arange(0, SIZE)[None, :]
    out = tiles.product(tl.load(a_ptr + tile), tl.load(b_ptr + tile), tl.load(acc_ptr + tile), PRECISION)
    tl.store(out_ptr + tile, out)


def product(a: Tensor, b: Tensor, acc: Tensor | None, mode: str) -> Tensor:
    acc, out = torch.zeros_like(a) if acc is None else acc, torch.empty_like(a)
    product_kernel[(1,)](a_ptr=a, b_ptr=b, acc_ptr=acc, out_ptr=out, SIZE=SIZE, PRECISION=mode, num_warps=1)
    return out


def cut(x: Tensor) -> Tensor:
    """To 10 bits of mantissa, towards 0: 2^-10 of the power of two below, up to which the rest is dropped."""
    unit = torch.exp2(x.double().abs().log2().floor() - 10)
    return ((x.double() / unit).trunc() * unit).float()


def nearest(x: Tensor) -> Tensor:
    """To 10 bits of mantissa, to the nearest, on a tie away from 0."""
    unit = torch.exp2(x.double().abs().log2().floor() - 10)
    return (((x.double() / unit).abs() + 0.5).floor() * unit * x.sign()).float()


def as_taken(x: Tensor, mode: str) -> Tensor:
    """What is left of a float32 that is multiplied by 1."""
    return {"ieee": x, "tf32": cut(x), "tf32x3": nearest(x) + cut(x - nearest(x))}[mode]


def ties_and_others(device: torch.device) -> Tensor:
    """[SIZE, SIZE] float32 of either sign and many sizes, among them some half-way between two of 10 bits."""
    x = torch.randn(SIZE, SIZE, device=device) * 10.0 ** torch.randint(-9, 9, (SIZE, SIZE), device=device)
    x.view(torch.int32)[::2] &= -0x2000
    x.view(torch.int32)[::2] |= 0x1000
    return x


@EACH_MODE
def test_which_bits_of_an_operand_count(mode: str, device: torch.device) -> None:
    """Exact: a product with the unit matrix has one summand that is not 0."""
    x, unit = ties_and_others(device), torch.eye(SIZE, device=device)
    expected = as_taken(x, mode)
    assert torch.equal(product(x, unit, None, mode), expected)
    assert torch.equal(product(unit, x, None, mode), expected)


@EACH_MODE
def test_a_product_of_both(mode: str, device: torch.device) -> None:
    """Added to what there is, and right to float32's rounding for the operands as they are taken."""
    a, b, acc = torch.randn(3, SIZE, SIZE, device=device)
    x, y = as_taken(a, mode).double(), as_taken(b, mode).double()
    # 33 summands, each rounded once when it is added; and "tf32x3" leaves the product of the small parts out.
    limit = (SIZE + 1) * 2.0**-23 * (x.abs() @ y.abs() + acc.abs())
    assert ((product(a, b, acc, mode).double() - (x @ y + acc)).abs() <= limit).all()


INFINITY = 0x7F800000
# Of the second, rounding to 10 bits makes a 0 unless one looks; the third is the sentinel of the exchange by polling.
NANS = [0x7FC00000, 0x7FFFFFFF, -1]
IN_THE_LAST_BITS = INFINITY + 1  # what a tensor core takes such a NaN for is not documented


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # NumPy's, in the interpreter
@EACH_MODE
@pytest.mark.parametrize("bits", [INFINITY, *NANS, pytest.param(IN_THE_LAST_BITS, marks=INTERPRETED)], ids=hex)
def test_infinity_and_nan_go_through(bits: int, mode: str, device: torch.device) -> None:
    special = torch.tensor(bits, dtype=torch.int32, device=device).view(torch.float32)
    a, b = torch.rand(2, SIZE, SIZE, device=device) + 0.5
    clean = product(a, b, None, mode)
    for operands, place in (((a.clone(), b), (3, slice(None))), ((a, b.clone()), (slice(None), 3))):
        operands[0 if place[0] == 3 else 1][place] = special
        out = product(*operands, None, mode)
        assert out[place].isnan().all() if special.isnan() else out[place].isposinf().all()
        out[place] = clean[place]
        assert torch.equal(out, clean)


PATHS = ["sequence", "split", "step"]
EACH_PATH = pytest.mark.parametrize("path", PATHS)
SHAPES = [(3, 5, 40), (2, 17, 21)]  # T, B, H


@contextmanager
def computed_in(mode: str, path: str) -> Iterator[None]:
    """The Triton implementations multiply in this mode; impl="triton" splits if that is the path.

    The split has one program a batch tile, which gathers in two parts what it published: nobody waits for another.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backend, "matmul_precision", lambda *_: mode)
        if path == "split":
            blocks = plan.Blocks(batch=16, hidden=64, inner=32, warps=8, stages=1, reason="all columns in one program")
            patch.setattr(plan, "sequence_plan", lambda *_, **__: plan.Split(blocks, 2, "poll"))
        yield


def errors(case: Case, path: str, mode: str, device: torch.device) -> list[tuple[float, float]]:
    """Of outputs and gradients against float64: the kernels' error, and that of torch's operators in float32."""
    T, B, H = shape = SHAPES[(CELLS.index(case) + PATHS.index(path)) % 2]
    args = arguments(case, shape, device, ids=False)
    if case.name == "rnn_relu":
        # Far from the kink, on either side. Were a sum of the other sign in another precision, the gradient would jump.
        args[-3] /= 4
        args[-2] = 6.0 * torch.randn_like(args[-2]).sign()
    args = [a.float().double() for a in args]
    d = [torch.randn(T, B, H, device=device), *(torch.randn(B, H, device=device) for _ in range(case.states))]
    options: dict[str, Any] = {"lengths": torch.randint(1, T + 1, (B,), device=device), "reverse": T == 3}
    truth, theirs = (run(case, args, to, d, impl="torch", **options) for to in (torch.float64, torch.float32))
    with computed_in(mode, path):
        ours = run(case, args, torch.float32, d, impl="triton-step" if path == "step" else "triton", **options)
    return [(rms_error(o, e), rms_error(t, e)) for o, t, e in zip(ours, theirs, truth, strict=True)]


def in_float32(ours: float, theirs: float) -> float:
    """The error, in units of what is taken for float32's own; a GPU's exponential is rougher."""
    roundings = 2 if torch.cuda.is_available() else 1
    return ours / (2 * theirs + roundings * torch.finfo(torch.float32).eps)


@EACH_PATH
@EACH_CELL
def test_tf32_is_as_wrong_as_10_bits_make_it(case: Case, path: str, device: torch.device) -> None:
    """All that a product enters, outputs and every gradient.

    Cutting a mantissa to 10 bits takes 2^-11 ln 2 = 0.35 * 2^-10 of a number on average, and so 0.7 * 2^-10 of a
    product; cutting to 9 would take 1.4 * 2^-10. The gates' slopes, at most 1, let no more of it through. A float32's
    rounding is 2^13 times smaller; of that, gates and small weights leave a hundred times and more.
    """
    for i, (ours, theirs) in enumerate(errors(case, path, "tf32", device)):
        assert in_float32(ours, theirs) > 50 and ours < 2.0**-10, f"tensor {i}: {ours:.1e}, float32 {theirs:.1e}"


@EACH_PATH
@pytest.mark.parametrize("mode", ["ieee", "tf32x3"])
@EACH_CELL
def test_the_others_are_as_good_as_float32(case: Case, mode: str, path: str, device: torch.device) -> None:
    for i, (ours, theirs) in enumerate(errors(case, path, mode, device)):
        assert in_float32(ours, theirs) <= 1, f"tensor {i}: {ours:.1e}, float32 {theirs:.1e}"


@INTERPRETED
@EACH_PATH
@pytest.mark.parametrize("dropped", [0, 1, 2], ids=["small-big", "big-small", "big-big"])
def test_each_of_the_three_products_is_missed(
    dropped: int, path: str, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    right, calls = tiles.one_product, count()
    monkeypatch.setattr(tiles, "one_product", lambda a, b, acc: acc if next(calls) % 3 == dropped else right(a, b, acc))
    found = errors(CELLS[3], path, "tf32x3", device)
    assert next(calls) > 3
    assert all(in_float32(ours, theirs) > 50 for ours, theirs in found), found
