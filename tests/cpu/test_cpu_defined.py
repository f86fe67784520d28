"""Defined cells in C, by their programs: every cell of the zoo and every operator, against float64.

Three-way: err(ours) <= 2 * err(the loop in torch, float32) + eps.
"""

from __future__ import annotations

import ctypes
import os
from typing import Any

import pytest
import torch
from torch import Tensor

import fastcells
from fastcells import one_direction, zoo
from fastcells.backends.base import Choice, LayerWeights, Steps
from fastcells.backends.cpu import defined, native
from fastcells.backends.cpu.backend import CPU
from fastcells.backends.torch.backend import DERIVED
from fastcells.defined.definition import derive
from fastcells.defined.spec import spec_of
from fastcells.spec import CellSpec, RecurrentWeights
from fastcells.spec.recurrent import DENSE, DIAGONAL, Heads
from tests.defined.cells import TwinGRU
from tests.defined.rules import RULES, nine_gates, rule, six_gates
from tests.support.accuracy import EPS, rms_error

if native.obstacle() is not None and os.environ.get("CI") != "true":
    pytest.skip(native.obstacle() or "", allow_module_level=True)

pytestmark = pytest.mark.usefixtures("poisoned_memory")

SPECS: dict[str, CellSpec] = {name: spec_of(name, rule(name), DENSE) for name in RULES}
SPECS |= {f"{name} diagonal": spec_of(name, rule(name), DIAGONAL) for name in RULES}
SPECS |= {name: getattr(zoo, name).kind.spec() for name in zoo.CELLS if name != "UpdateGateRNN"}
# More gates than a tile multiplies at once: in three groups, and in two phases of two groups and of one.
NINE = derive("nine", tuple("abcdefgki"), ("h",), (), nine_gates)
SIX = derive("six", tuple("rabcde"), ("h",), (), six_gates, {"e": lambda r, h: torch.sigmoid(r) * h})
SPECS |= {"nine gates": spec_of("nine", NINE, DENSE), "six gates": spec_of("six", SIX, DENSE)}
SPECS |= {"six gates heads of one": spec_of("six", SIX, Heads(1))}
SPECS["one head"] = spec_of("gru", rule("gru"), Heads(1))
# With W_hh in blocks, whose sizes are 8, 1, 16, 13, 65 and 12 units: within a vector, as wide as one, across several.
IN_HEADS = {f"{name} heads": name for name in ("lstm", "gru", "gru_reset_before", "peephole")}
HEADS = {24: 3, 7: 7, 64: 4, 65: 5, 130: 2, 36: 3}
# T, B, H: smaller and larger than a vector of each width, tiles cut off at both ends, size 1 in every place.
SHAPES = [(1, 1, 1), (2, 5, 24), (5, 16, 7), (2, 33, 64), (6, 5, 65), (5, 1, 130), (3, 20, 17)]
OPTIONS = ("", "reverse", "lengths", "resets", "lengths resets reverse")
IN_C = Choice("cpu", "cpu", "asked for", backend=CPU)
NAMES = [*SPECS, *IN_HEADS]
EACH_SPEC = pytest.mark.parametrize("name", NAMES)


def spec_for(name: str, H: int) -> CellSpec:
    """One in heads has as many as its units allow."""
    in_heads = IN_HEADS.get(name)
    return SPECS[name] if in_heads is None else spec_of(in_heads, rule(in_heads), Heads(HEADS.get(H, 1)))


def arguments(spec: CellSpec, shape: tuple[int, int, int]) -> list[Tensor]:
    """x, w_ih, b_ih, w_hh, b_hh, the states and extra parameters."""
    (T, B, H), G = shape, spec.num_gates
    sizes = [(T, B, 3), (G * H, 3), (G * H,), spec.recurrent.shape(G, H), (G * H,)]
    sizes += [(B, H)] * spec.num_states + [(H,)] * len(spec.extra)
    found = [torch.randn(size) * (H**-0.5 if i == 3 and len(size) > 1 else 0.6) for i, size in enumerate(sizes)]
    if "n" in spec.states:
        found[5 + spec.states.index("n")].abs_().add_(0.5)  # a normaliser is positive
    return found


def options(text: str, T: int, B: int) -> Steps:
    lengths = torch.randint(T + 1, (B,), dtype=torch.int32) if "lengths" in text else None
    return Steps("reverse" in text, lengths, torch.rand(T, B) < 0.3 if "resets" in text else None)


def run(
    choice: Choice, spec: CellSpec, given: list[Tensor], steps: Steps, d: list[Tensor], dtype: torch.dtype
) -> list[Tensor]:
    """Outputs and all gradients."""
    leaves = [t.to(dtype, copy=True).requires_grad_() for t in given]
    outs = forward(choice, spec, leaves, steps)
    return [*outs, *torch.autograd.grad(outs, leaves, [t.to(dtype) for t in d], materialize_grads=True)]


def forward(choice: Choice, spec: CellSpec, leaves: list[Tensor], steps: Steps) -> list[Tensor]:
    x, w_ih, b_ih, w_hh, b_hh, *rest = leaves
    state, extra = tuple(rest[: spec.num_states]), tuple(rest[spec.num_states :])
    weights = LayerWeights(w_ih, b_ih, RecurrentWeights(w_hh, b_hh, None, extra))
    out, last = one_direction.run(choice, spec, x, state, weights, steps)
    return [out, *last]


def case(name: str, shape: tuple[int, int, int], text: str) -> tuple[Any, ...]:
    T, B, H = shape
    spec = spec_for(name, H)
    d = [torch.randn(T, B, H), *(torch.randn(B, H) for _ in spec.states)]
    return spec, arguments(spec, shape), options(text, T, B), d


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "T{}-B{}-H{}".format(*s))
@EACH_SPEC
def test_accuracy(name: str, shape: tuple[int, int, int], instructions: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The options in turn, with one thread and with two."""
    index = SHAPES.index(shape) + NAMES.index(name)
    monkeypatch.setattr(native, "WORK_OF_A_THREAD", 1)
    monkeypatch.setattr(native, "MOST_THREADS", 1 + index % 2)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    spec, given, steps, d = case(name, shape, OPTIONS[index % len(OPTIONS)])
    most = 2.5 if instructions == "portable" else 2.0  # which rounds a product and the sum that it goes into apart
    most = 8 if name.startswith("everything") else most  # its quotients enlarge single roundings: luck decides there
    truth = run(DERIVED, spec, given, steps, d, torch.float64)
    theirs = run(DERIVED, spec, given, steps, d, torch.float32)
    ours = run(IN_C, spec, given, steps, d, torch.float32)
    for i, (exact, base, mine) in enumerate(zip(truth, theirs, ours, strict=True)):
        assert rms_error(mine, exact) <= most * rms_error(base, exact) + EPS, f"tensor {i}"
    with torch.no_grad():
        inferred = forward(IN_C, spec, given, steps)
    assert all(torch.equal(a, b) for a, b in zip(inferred, ours, strict=False))


@pytest.mark.parametrize("text", OPTIONS)
@EACH_SPEC
def test_any_number_of_threads_gives_the_same_bits(name: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "WORK_OF_A_THREAD", 1)
    before, results = torch.get_num_threads(), []
    T, B, H = 4, 7, 36 if name in IN_HEADS else 37
    spec, given, steps, _ = case(name, (T, B, H), text)
    cell, G = defined.defined_cell(spec), spec.num_gates
    # Without the input projection, which is torch's and has an order of its own for each number of threads.
    x, weights = (
        torch.randn(T, B, G * H),
        RecurrentWeights(given[3], given[4], None, tuple(given[5 + spec.num_states :])),
    )
    state = tuple(given[5 : 5 + spec.num_states])
    inputs = one_direction.Inputs(one_direction.StepInput(x), state, weights, steps)
    d = torch.randn(T, B, H)
    try:
        for count in (1, 2, 3, 1):
            torch.set_num_threads(count)
            trace = cell.forward(inputs, save=True)
            found = cell.backward(inputs, trace, d, state)
            results.append([trace.out, *trace.last, found.d_x, found.d_gates, *found.d_state, *found.d_extra])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_a_fault_of_a_thousandth_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison above is sharp, and it is C that it compares."""
    spec, given, steps, d = case("peephole", (6, 5, 65), "")
    truth = run(DERIVED, spec, given, steps, d, torch.float64)
    compute = native.call

    def wrong(kernel: str, multiplications: int, *arguments: int) -> None:
        compute(kernel, multiplications, *arguments)
        if kernel == "defined_backward":
            d_extra = (ctypes.c_float * 65).from_address(arguments[-2])
            d_extra[3] *= 1.01

    monkeypatch.setattr(native, "call", wrong)
    ours = run(IN_C, spec, given, steps, d, torch.float32)
    assert any(rms_error(o, t) > 1e-6 for o, t in zip(ours, truth, strict=True))


@EACH_SPEC
def test_nan_stays_in_its_row(name: str) -> None:
    """As in torch's operators, forward and backward: another row of the batch must not see it."""
    spec, given, steps, d = case(name, (3, 9, 33), "")
    given[0][1, 4, 2] = torch.nan
    found = [run(choice, spec, given, steps, d, torch.float32) for choice in (IN_C, DERIVED)]
    for ours, theirs in zip(*(f[: 2 + spec.num_states] for f in found), strict=True):
        assert torch.equal(ours.isnan(), theirs.isnan())


@EACH_SPEC
def test_padding_may_hold_nan(name: str) -> None:
    spec, given, _, d = case(name, (4, 3, 24), "")
    steps = Steps(False, torch.tensor([4, 0, 2], dtype=torch.int32))
    clean = run(IN_C, spec, given, steps, d, torch.float32)
    for t in (given[0], d[0]):
        t[2:, 2] = t[:, 1] = torch.nan
    for a, b in zip(clean, run(IN_C, spec, given, steps, d, torch.float32), strict=True):
        assert a.isfinite().all() and torch.equal(a, b)


@pytest.mark.parametrize("cell", ["PeepholeLSTM", "IndRNN", "SLSTM", "MinimalGatedUnit"])
def test_auto_and_what_c_declines(cell: str) -> None:
    layer, x = getattr(zoo, cell)(3, 8), torch.randn(5, 2, 3)
    expected = native.instruction_set() in ("avx512", "avx2")
    assert (fastcells.explain(layer, x).impl == "cpu") == expected
    assert fastcells.explain(layer, x[:1]).impl == "torch"
    assert fastcells.explain(layer.double(), x.double()).impl == "torch"
    eager = layer.float()(x)[0]
    torch.testing.assert_close(torch.compile(layer, fullgraph=True, backend="eager")(x)[0], eager)
    layer.impl = "cpu"
    with pytest.raises(fastcells.CannotRun, match="transforms"):
        torch.func.jvp(lambda x: layer(x)[0], (x,), (x,))
    out = layer(x, lengths=[5, 2])[0]
    assert out[2:, 1].abs().sum() == 0


def test_more_than_c_has_room_for() -> None:
    many = fastcells.define(
        "Many", gates="a", extra=[f"p{i}" for i in range(40)], step=_sum_of([f"p{i}" for i in range(40)]), doc="."
    )
    layer, x = many(3, 8, impl="cpu"), torch.randn(4, 2, 3)
    with pytest.raises(fastcells.CannotRun, match="more values than C has room for"):
        layer(x)
    layer.impl = "auto"
    assert fastcells.explain(layer, x).impl == "torch"
    assert TwinGRU(3, 8, impl="cpu")(torch.randn(4, 2, 3))[0].shape == (4, 2, 8)


def _sum_of(names: list[str]) -> Any:
    made: dict[str, Any] = {}
    exec(f"def step(a, {', '.join(names)}): return a * ({' + '.join(names)})", made)
    return made["step"]
