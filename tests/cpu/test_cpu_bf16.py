"""The recurrences in C in bfloat16, where the processor multiplies it.

Three-way: err(ours) <= 2 * err(torch's operators in bfloat16) + eps, both against float64 on the same rounded numbers.
"""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastcells
from fastcells.accuracy import TWICE, relative_error
from fastcells.backends.cpu import library, native
from tests.support import runs
from tests.support.devices import OF_BF16
from tests.support.runs import INPUT, cotangents_of, one_thread, run
from tests.support.shapes import CELLS, EACH_CELL, Case, in_turn, name_of

pytestmark = [*OF_BF16, pytest.mark.usefixtures("each_bf16")]

BF16 = torch.bfloat16
EPS = torch.finfo(BF16).eps
# T, B, H: as in test_cpu_accuracy.py, whole pairs and odd ones; sums in several parts.
SHAPES = [
    (1, 1, 1),
    (2, 5, 24),
    (9, 16, 7),
    (2, 33, 64),
    (9, 5, 65),
    (1, 16, 24),
    (5, 1, 130),
    (3, 40, 17),
    (2, 3, 1101),
]
OPTIONS = [
    {"lengths": a, "resets": b, "reverse": c, "ids": d}
    for a, b, c, d in ((0, 0, 0, 0), (1, 0, 1, 0), (0, 1, 0, 1), (1, 1, 1, 0))
]


def rounded(tensors: list[Tensor]) -> list[Tensor]:
    return [t.to(BF16).float() if t.is_floating_point() else t for t in tensors]


def arguments(case: Case, shape: tuple[int, int, int], ids: bool = False) -> list[Tensor]:
    """Those of `runs`, as bfloat16 has them. A relu's sums keep away from 0, where rounding would change its slope."""
    args = runs.arguments(case, shape, ids=ids)
    if case.name == "rnn_relu":
        args[2].mul_(0.25), args[3].mul_(0.25)
        args[5] = torch.full_like(args[5], 2.0) * (1 - 2 * (torch.arange(shape[2]) % 2))
    return rounded(args)


def options_of(case: Case, shape: tuple[int, int, int], index: int) -> tuple[dict[str, Any], bool]:
    chosen = OPTIONS[index % len(OPTIONS)]
    options: dict[str, Any] = {"reverse": bool(chosen["reverse"])}
    if chosen["lengths"]:
        options["lengths"] = torch.randint(shape[0] + 1, (shape[1],))
    if chosen["resets"]:
        options["resets"] = torch.rand(shape[:2]) < 0.3
    return options, bool(chosen["ids"])


def errors(case: Case, args: list[Tensor], d: list[Tensor], **options: Any) -> list[tuple[float, float]]:
    """Ours and what is allowed, for each output and gradient."""
    with one_thread():
        truth = run(case, args, torch.float64, d, impl="torch", **options)
        theirs = run(case, args, BF16, d, impl="torch", **options)
    ours = run(case, args, BF16, d, impl="cpu", **options)
    assert all(t.dtype == BF16 for t in ours)
    return [
        (relative_error(mine, exact), TWICE * relative_error(base, exact) + EPS)
        for exact, base, mine in zip(truth, theirs, ours, strict=True)
    ]


@pytest.mark.parametrize(
    ("case", "shape", "index"),
    [
        *itertools.product(CELLS, SHAPES[:-1], range(len(OPTIONS))),
        *in_turn(CELLS, SHAPES[-1:], range(len(OPTIONS))),  # takes as long as all others together
    ],
    ids=name_of,
)
def test_accuracy(case: Case, shape: tuple[int, int, int], index: int, threads: int) -> None:
    options, ids = options_of(case, shape, index)
    args, d = arguments(case, shape, ids), rounded(cotangents_of(case, shape))
    found = errors(case, args, d, **options)
    assert all(mine <= allowed for mine, allowed in found), found


@pytest.mark.parametrize("which", ["forward", "backward"])
def test_a_fault_of_a_twentieth_is_seen(which: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison above is sharp, and it is C that it compares."""
    compute = getattr(native, which)

    def wrong(*args: Any, **kwargs: Any) -> Any:
        out = compute(*args, **kwargs)
        out[0].mul_(1.05)
        return out

    monkeypatch.setattr(native, which, wrong)
    args, d = arguments(CELLS[2], (9, 5, 65)), rounded(cotangents_of(CELLS[2], (9, 5, 65)))
    assert any(mine > allowed for mine, allowed in errors(CELLS[2], args, d))


@EACH_CELL
def test_inference_is_what_training_gives(case: Case) -> None:
    args, d = arguments(case, (4, 5, 33)), cotangents_of(case, (4, 5, 33))
    trained = run(case, args, BF16, d, impl="cpu")
    with torch.no_grad():
        inferred = case.ours(*[a.to(BF16) for a in args], impl="cpu")
    assert all(torch.equal(a, b) for a, b in zip(inferred, trained, strict=False))


@EACH_CELL
def test_any_number_of_threads_gives_the_same_bits(case: Case) -> None:
    T, B, H, G = 6, 13, 130, case.spec.num_gates
    args, d = arguments(case, (T, B, H)), [c.to(BF16) for c in cotangents_of(case, (T, B, H))]
    x = torch.linspace(-2, 2, T * B * G * H).view(T, B, -1).to(BF16)
    state, w, b = tuple(a.to(BF16) for a in args[1:-4]), args[-3].to(BF16), args[-1].to(BF16)
    before, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3, 4, 1, 4):
            torch.set_num_threads(count)
            out = native.forward(case.spec.name, x, state, w, b, None, save=True)
            kept = (out.hidden, out.cells, out.saved)
            back = native.backward(case.spec.name, d[0], tuple(d[1:]), state, w, None, *kept)
            results.append([out.hidden, *out.last, back.d_x, back.d_gates, *back.d_state])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


def test_states_are_carried_in_float32() -> None:
    """512 steps of 2^-10 each: bfloat16 would stay where it began, since its neighbours of 1 are 2^-7 away."""
    T, one = 512, torch.ones(1, 1, dtype=BF16)
    w = torch.zeros(4, 1, dtype=BF16)
    x = torch.tensor([20.0, 20.0, 2.0**-10, 20.0]).to(BF16).expand(T, 1, 4)
    c_n = native.forward("lstm", x, (one, one), w, None, None).last[1]
    assert abs(c_n.item() - 1.5) < 0.01
    z = torch.tensor([0.0, 6.9375, 20.0]).to(BF16).expand(T, 1, 3)  # sigmoid(6.9375) = 1 - 2^-10.01: h goes from 0 to 1
    h_n = native.forward("gru", z, (0 * one,), w[:3], None, None).last[0]
    assert abs(h_n.item() - (1 - (1 - 2**-10.01) ** T)) < 0.01


@EACH_CELL
def test_nan_stays_in_its_row(case: Case) -> None:
    """An odd H: what lies behind a row's last number is the next row's first."""
    args, d = arguments(case, (3, 9, 33)), cotangents_of(case, (3, 9, 33))
    args[0][1, 4, 2] = torch.nan
    args[0][0, 7, 0] = torch.inf
    ours, exact = run(case, args, BF16, d, impl="cpu"), run(case, args, torch.float64, d, impl="torch")
    for a, b in zip(ours, exact, strict=True):
        assert torch.equal(a.isnan(), b.isnan())


@EACH_CELL
def test_large_inputs_give_no_nan(case: Case) -> None:
    args, d = arguments(case, (3, 5, 24)), cotangents_of(case, (3, 5, 24))
    for a in args[: 1 + case.states]:
        a.mul_(100)
    assert all(t.isfinite().all() for t in run(case, args, BF16, d, impl="cpu"))


@EACH_CELL
def test_padding_may_hold_nan(case: Case) -> None:
    args, d = arguments(case, (4, 3, 24)), cotangents_of(case, (4, 3, 24))
    lengths = torch.tensor([4, 0, 2])
    clean = run(case, args, BF16, d, impl="cpu", lengths=lengths)
    args[0] = args[0].clone()
    args[0][2:, 2] = args[0][:, 1] = d[0][2:, 2] = d[0][:, 1] = torch.nan
    for a, b in zip(clean, run(case, args, BF16, d, impl="cpu", lengths=lengths), strict=True):
        assert a.isfinite().all() and torch.equal(a, b)


@pytest.mark.parametrize("given", [True, False], ids=["hx", "zero_hx"])
@pytest.mark.parametrize("kind", ["RNN", "GRU", "LSTM"])
def test_autocast(kind: str, given: bool) -> None:
    """torch.nn's dtypes, and at most twice its error; the gradients are the float32 parameters'."""
    T, B, H = 9, 5, 65
    ours, theirs = getattr(fastcells, kind)(INPUT, H, impl="cpu"), getattr(nn, kind)(INPUT, H)
    theirs.load_state_dict(ours.state_dict())
    exact = getattr(nn, kind)(INPUT, H).double()
    exact.load_state_dict(ours.state_dict())
    x, h = torch.randn(T, B, INPUT), torch.randn(1, B, H)
    hx = ((h, h.flip(1)) if kind == "LSTM" else h) if given else None
    d, results = torch.randn(T, B, H), []
    for module in (exact, theirs, ours):
        wide = module is exact
        states = hx if hx is None or not wide else tuple(s.double() for s in hx) if kind == "LSTM" else h.double()
        with torch.autocast("cpu", BF16, enabled=not wide):
            out, last = module(x.double() if wide else x, states)
        gradients = torch.autograd.grad(out, list(module.parameters()), d.to(out.dtype))
        results.append([out, *(last if kind == "LSTM" else (last,)), *gradients])
    for truth, base, mine in zip(*results, strict=True):
        assert mine.dtype == base.dtype
        assert relative_error(mine, truth) <= TWICE * relative_error(base, truth) + EPS


@EACH_CELL
def test_operators_of_torch_library(case: Case) -> None:
    spec, G = case.spec, case.spec.num_gates
    x, h, w, d = (torch.randn(s, dtype=BF16) for s in ((3, 4, G * 9), (4, 9), (G * 9, 9), (3, 4, 9)))
    second = h.flip(0) if spec.num_states == 2 else None
    for save in (False, True):
        torch.library.opcheck(library.cpu_forward, (x, h, second, w, None, None, None, spec.name, False, save))
    _, hidden, cells, saved, *_ = library.cpu_forward(x, h, second, w, None, None, None, spec.name, True, True)
    kept = (hidden, cells if spec.num_states == 2 else None, saved if spec.num_saved else None)
    given = (d, h, second, h, second, w, None, None, *kept, spec.name, True)
    torch.library.opcheck(library.cpu_backward, given)


def test_what_does_not_fit_is_refused() -> None:
    x, h, w = torch.zeros(2, 3, 4, dtype=BF16), torch.zeros(3, 4, dtype=BF16), torch.zeros(4, 4, dtype=BF16)
    with pytest.raises(RuntimeError, match=r"x must be bfloat16 \[2, 3, 4\] on the CPU, got torch.float32"):
        native.forward("rnn_tanh", x.float(), (h,), w, None, None)
    with pytest.raises(
        RuntimeError, match=r"w must be float32 \[4, 4\] on the CPU, got torch.bfloat16|x must be float32"
    ):
        native.forward("rnn_tanh", x, (h,), w.float(), None, None)


@pytest.mark.parametrize("missing", ["processor", "FASTCELLS_CPU"])
def test_where_there_are_no_instructions(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    gru, x = fastcells.GRU(INPUT, 64).to(BF16), torch.zeros(35, 32, INPUT, dtype=BF16)
    explained = fastcells.explain(gru, x)
    assert explained.impl == "cpu" and native.bf16_instruction_set() in explained.reason
    if missing == "processor":
        monkeypatch.setattr(native, "BF16_INSTRUCTIONS", dict.fromkeys(native.BF16_INSTRUCTIONS, False))
    else:
        monkeypatch.setattr(native, "_bf16_instructions", -1)
    assert fastcells.explain(gru, x).impl == "torch"
    with pytest.raises(RuntimeError, match=r"impl='cpu' cannot run: .*no instructions for bfloat16"):
        fastcells.GRU(INPUT, 64, impl="cpu").to(BF16)(x)


# What auto runs in inference and in training with AVX-512, and with AMX: layer, sequence length, batch, hidden units.
AUTO = [
    ("GRU", 35, 32, 256, "cpu", "cpu", "cpu", "cpu"),
    ("GRU", 4, 1, 64, "torch", "torch", "cpu", "cpu"),
    ("GRU", 4, 32, 256, "cpu", "cpu", "cpu", "cpu"),
    ("GRU", 2, 32, 256, "torch", "torch", "torch", "torch"),
    ("RNN", 35, 32, 256, "cpu", "cpu", "cpu", "cpu"),
    ("RNN", 4, 32, 256, "torch", "torch", "torch", "torch"),
    ("RNN", 16, 1, 64, "cpu", "cpu", "torch", "torch"),
    ("LSTM", 35, 32, 256, "torch", "torch", "torch", "cpu"),
    ("LSTM", 35, 32, 128, "torch", "torch", "torch", "torch"),
    ("LSTM", 35, 128, 512, "torch", "cpu", "torch", "cpu"),
    ("LSTM", 128, 8, 256, "torch", "cpu", "torch", "cpu"),
    ("LSTM", 35, 1, 256, "cpu", "cpu", "torch", "cpu"),
    ("LSTM", 35, 32, 1024, "cpu", "cpu", "cpu", "cpu"),
]


@pytest.mark.parametrize("autocast", [False, True], ids=["parameters", "autocast"])
@pytest.mark.parametrize("case", AUTO, ids=lambda case: "{}-T{}-B{}-H{}".format(*case))
def test_what_auto_runs(case: tuple[Any, ...], autocast: bool, each_bf16: str) -> None:
    name, T, B, H, *chosen = case
    inference, training = chosen[2:] if each_bf16 == "amx_bf16" else chosen[:2]
    dtype = torch.float32 if autocast else BF16
    layer, x = getattr(fastcells, name)(4, H, dtype=dtype), torch.zeros(T, B, 4, dtype=dtype)
    with torch.autocast("cpu", BF16, enabled=autocast):
        assert fastcells.explain(layer, x).impl == training
        with torch.no_grad():
            assert fastcells.explain(layer, x).impl == inference
