"""The C kernels, with every set of vector instructions that this machine has.

Three-way: err(ours) <= 2 * err(torch's operators in float32) + eps, both against the reference in float64.
"""

from __future__ import annotations

import copy
import itertools
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastcells
from fastcells import functional, linear
from fastcells.backends.cpu import library, native, products
from fastcells.charlm.model import Scores
from tests.support.accuracy import error, rms_error
from tests.support.shapes import CELLS, EACH_CELL, Case

if native.obstacle() is not None and os.environ.get("CI") != "true":
    pytest.skip(native.obstacle() or "", allow_module_level=True)

pytestmark = pytest.mark.usefixtures("poisoned_memory")

EPS = torch.finfo(torch.float32).eps
INPUT = 6
# T, B, H: smaller and larger than a vector of each width, tiles cut off at both ends, size 1 in every place.
SHAPES = [(1, 1, 1), (2, 5, 24), (9, 16, 7), (2, 33, 64), (9, 5, 65), (1, 16, 24), (5, 1, 130), (3, 40, 17)]
EACH_SHAPE = pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "T{}-B{}-H{}".format(*s))


@pytest.fixture(params=list(native.INSTRUCTIONS))
def instructions(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each set of vector instructions in turn."""
    if not native.INSTRUCTIONS[request.param]:
        pytest.skip(f"this machine has no {request.param}")
    monkeypatch.setattr(native, "_instructions", list(native.INSTRUCTIONS).index(request.param))
    assert native.instruction_set() == request.param
    return str(request.param)


@pytest.fixture(params=[1, 2, 3], ids=lambda n: f"threads{n}")
def threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """That many threads, however small the shape."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    monkeypatch.setattr(native, "WORK_OF_A_THREAD", 1)
    yield request.param
    torch.set_num_threads(before)


def arguments(case: Case, shape: tuple[int, int, int], *, ids: bool = False) -> list[Tensor]:
    """x, states, w_ih, w_hh, b_ih, b_hh in float32, of the size that torch's init gives."""
    T, B, H = shape
    k, G = H**-0.5, case.spec.num_gates
    x = torch.randint(INPUT, (T, B)) if ids else torch.randn(T, B, INPUT)
    states = [torch.randn(B, H) for _ in range(case.states)]
    weights = [torch.empty(size).uniform_(-k, k) for size in ((G * H, INPUT), (G * H, H), (G * H,), (G * H,))]
    return [x, *states, *weights]


def run(case: Case, args: list[Tensor], dtype: torch.dtype, d: list[Tensor], **options: Any) -> list[Tensor]:
    """Outputs and all gradients in one dtype."""
    leaves = [a.to(dtype, copy=True).requires_grad_() if a.is_floating_point() else a for a in args]
    outs = case.ours(*leaves, **options)
    wanted = [a for a in leaves if a.requires_grad]
    return [*outs, *torch.autograd.grad(outs, wanted, [c.to(dtype) for c in d])]


def cotangents_of(case: Case, shape: tuple[int, int, int]) -> list[Tensor]:
    T, B, H = shape
    return [torch.randn(T, B, H), *(torch.randn(B, H) for _ in range(case.states))]


@EACH_SHAPE
@EACH_CELL
def test_accuracy(case: Case, shape: tuple[int, int, int], instructions: str, threads: int) -> None:
    """Dense and ids, even and ragged, both directions, in turn."""
    index = SHAPES.index(shape) + CELLS.index(case)
    options: dict[str, Any] = {"reverse": index % 2 == 1}
    if index % 3 == 0:
        options["lengths"] = torch.randint(shape[0] + 1, (shape[1],))
    args, d = arguments(case, shape, ids=index % 4 == 1), cotangents_of(case, shape)
    truth = run(case, args, torch.float64, d, impl="torch", **options)
    theirs = run(case, args, torch.float32, d, impl="torch", **options)
    ours = run(case, args, torch.float32, d, impl="cpu", **options)
    for i, (exact, base, mine) in enumerate(zip(truth, theirs, ours, strict=True)):
        assert mine.dtype == torch.float32
        assert rms_error(mine, exact) <= 2 * rms_error(base, exact) + EPS, f"tensor {i}"
    with torch.no_grad():
        inferred = case.ours(*args, impl="cpu", **options)
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
            d_w = native.weight_gradients(back.d_gates.flatten(0, 1), out.hidden.flatten(0, 1))
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
        assert torch.equal(whole, case.ours(args[0][3:], *zeros, *args[1 + case.states :], impl="cpu")[0])


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


@pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM"])
def test_layers(name: str) -> None:
    """A stack of two bidirectional layers on ids, packed, against torch's on one-hots."""
    ours = getattr(fastcells, name)(INPUT, 16, 2, bidirectional=True, impl="cpu")
    theirs = getattr(nn, name)(INPUT, 16, 2, bidirectional=True)
    theirs.load_state_dict(ours.state_dict())
    sequences = [torch.randint(INPUT, (n,)) for n in (3, 5, 1)]
    ids = nn.utils.rnn.pack_sequence(sequences, enforce_sorted=False)
    one_hots = nn.utils.rnn.pack_sequence([nn.functional.one_hot(s, INPUT).float() for s in sequences], False)
    assert fastcells.explain(ours, ids).impl == "cpu"
    assert error(ours(ids)[0].data, theirs(one_hots)[0].data) <= 16 * EPS  # values below 1, a dozen roundings


@pytest.mark.parametrize("name", ["RNNCell", "GRUCell", "LSTMCell"])
def test_cells(name: str) -> None:
    ours, theirs = getattr(fastcells, name)(INPUT, 16, impl="cpu"), getattr(nn, name)(INPUT, 16)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(4, INPUT)
    for a, b in zip(*(t if isinstance(t, tuple) else (t,) for t in (ours(x), theirs(x))), strict=True):
        assert error(a, b) <= 16 * EPS


def test_outputs_are_tensors_of_their_own() -> None:
    """In-place changes are allowed, and reach neither the state nor the next call."""
    gru = fastcells.GRU(INPUT, 16, impl="cpu")
    x = torch.randn(5, 3, INPUT)
    out, h_n = gru(x)
    expected = out.clone(), h_n.clone()
    out.mul_(2.0)
    assert torch.equal(h_n, expected[1])
    assert all(torch.equal(a, b) for a, b in zip(gru(x), expected, strict=True))


@EACH_CELL
@pytest.mark.slow
def test_compile_and_opcheck(case: Case) -> None:
    args = arguments(case, (3, 4, 9))
    leaves = [a.requires_grad_() for a in args]
    d = cotangents_of(case, (3, 4, 9))
    eager = case.ours(*leaves, impl="cpu")
    compiled = torch.compile(lambda *a: case.ours(*a, impl="cpu"), fullgraph=True, backend="aot_eager")(*leaves)
    for outs in zip(eager, compiled, strict=True):
        assert error(*outs) <= 16 * EPS
    for a, b in zip(*(torch.autograd.grad(outs, leaves, d) for outs in (eager, compiled)), strict=True):
        assert error(a, b) <= 64 * EPS * max(1.0, b.abs().max().item())
    spec = case.spec
    G = spec.num_gates
    x, h, w, b = torch.randn(3, 4, G * 9), torch.randn(4, 9), torch.randn(G * 9, 9), torch.randn(G * 9)
    second = torch.randn(4, 9) if spec.num_states == 2 else None
    lengths, resets = torch.tensor([3, 0, 7, 2]), torch.ones(3, 4, dtype=torch.bool)
    for save in (False, True):
        torch.library.opcheck(library.cpu_forward, (x, h, second, w, b, lengths, resets, spec.name, False, save))
    _, hidden, cells, saved, *_ = library.cpu_forward(x, h, second, w, None, None, None, spec.name, True, True)
    kept = (hidden, cells if spec.num_states == 2 else None, saved if spec.num_saved else None)
    torch.library.opcheck(
        library.cpu_backward,
        (torch.randn(3, 4, 9), h, second, h, second, w, None, None, *kept, case.spec.name, True),
    )


def test_what_cannot_run_raises() -> None:
    def gru(dtype: torch.dtype = torch.float32, device: str = "cpu") -> object:
        x = torch.zeros(2, 3, INPUT, dtype=dtype, device=device)
        return fastcells.GRU(INPUT, 7, impl="cpu", dtype=dtype, device=device)(x)

    with pytest.raises(RuntimeError, match=r"impl='cpu' cannot run: there is no kernel for torch.float64"):
        gru(torch.float64)
    with pytest.raises(RuntimeError, match="impl='cpu' cannot run: the weights are on meta"):
        gru(device="meta")
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(RuntimeError, match=r"no kernel for torch\.bfloat16"):
        gru()
    lstm = fastcells.LSTM(INPUT, 7, proj_size=3, impl="cpu")
    with pytest.raises(RuntimeError, match="impl='cpu' cannot run: there is no kernel for proj_size"):
        lstm(torch.zeros(2, 3, INPUT))
    ours = fastcells.GRU(INPUT, 7, impl="cpu")
    with pytest.raises(RuntimeError, match=r"do not run under torch\.jit\.trace, torch\.func transforms"):
        torch.func.vmap(lambda x: ours(x)[0])(torch.zeros(4, 2, 3, INPUT))
    with pytest.raises(IndexError, match=r"token id 6 at position \[0, 1\] of ids of shape \[1, 2\]"):
        ours(torch.tensor([[0, 6]]))


def test_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """auto goes on in torch's operators; whoever asks for C is told why there is none."""
    ids = torch.zeros(5, 3, dtype=torch.long)
    assert fastcells.explain(fastcells.GRU(INPUT, 7), ids).impl == "cpu"
    monkeypatch.setattr(native, "_cpu", None)
    assert fastcells.explain(fastcells.GRU(INPUT, 7), ids).impl == "torch"
    assert fastcells.GRU(INPUT, 7)(ids)[0].shape == (5, 3, 7)
    with pytest.raises(RuntimeError, match="impl='cpu' cannot run: the C module was not built"):
        fastcells.GRU(INPUT, 7, impl="cpu")(ids)


@pytest.mark.parametrize("wanted", ["portable", "nonsense"])
def test_instructions_by_environment(wanted: str) -> None:
    code = "from fastcells.backends.cpu import native; print(native.instruction_set())"
    environment = {**os.environ, "FASTCELLS_CPU": wanted}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    if wanted == "portable":
        assert done.stdout == "portable\n", done.stderr
    else:
        assert "FASTCELLS_CPU='nonsense', but this machine has" in done.stderr


AUTO = [  # layer, sequence length, batch, what auto runs in float32 with AVX-512
    ("GRU", 35, 32, 256, "cpu"),
    ("GRU", 16, 1, 64, "cpu"),
    ("GRU", 4, 8, 64, "torch"),
    ("GRU", 1, 128, 256, "torch"),
    ("RNN", 35, 32, 256, "cpu"),
    ("RNN", 8, 8, 256, "torch"),
    ("LSTM", 35, 32, 256, "torch"),
    ("LSTM", 35, 8, 1024, "cpu"),
    ("LSTM", 35, 32, 1024, "torch"),
    ("LSTM", 128, 32, 1024, "torch"),
    ("LSTM", 128, 1, 64, "cpu"),
    ("LSTM", 128, 2, 64, "cpu"),
    ("LSTM", 127, 2, 64, "torch"),
]


@pytest.mark.parametrize(("name", "T", "B", "H", "impl"), AUTO, ids=[f"{a[0]}-T{a[1]}-B{a[2]}-H{a[3]}" for a in AUTO])
def test_what_auto_runs(name: str, T: int, B: int, H: int, impl: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = getattr(fastcells, name)(4, H), torch.zeros(T, B, 4)
    monkeypatch.setattr(native, "instruction_set", lambda: "avx512")
    assert fastcells.explain(layer, x).impl == impl
    assert fastcells.explain(copy.deepcopy(layer).double(), x.double()).impl == "torch"
    with torch.no_grad():
        assert fastcells.explain(layer, x).impl == ("torch" if (name, B) == ("LSTM", 2) else impl)
    batch_first = getattr(fastcells, name)(4, H, batch_first=True)
    assert fastcells.explain(batch_first, x.transpose(0, 1)).impl == impl
    monkeypatch.setattr(native, "instruction_set", lambda: "portable")
    assert fastcells.explain(layer, x).impl == "torch"


def test_auto_leaves_a_batch_of_mostly_padding_to_aten() -> None:
    gru, ids = fastcells.GRU(INPUT, 16), fastcells.GRU(INPUT, 16)
    full = nn.utils.rnn.pack_sequence([torch.randn(n, INPUT) for n in (40, 40, 35, 30)])
    ragged = nn.utils.rnn.pack_sequence([torch.randn(n, INPUT) for n in (40, 2, 1, 1)])
    assert fastcells.explain(gru, full).impl == "cpu" and fastcells.explain(gru, ragged).path == "aten"
    ragged_ids = nn.utils.rnn.pack_sequence([torch.zeros(n, dtype=torch.long) for n in (40, 2, 1, 1)])
    assert fastcells.explain(ids, ragged_ids).impl == "cpu"  # torch's operators would run padded as well


def test_auto_leaves_the_operators_to_who_looks_at_them() -> None:
    """Transforms, tracing and compilation see plain operators, where eager code would run C."""
    gru, x = fastcells.GRU(INPUT, 16), torch.randn(20, 3, INPUT)
    assert fastcells.explain(gru, x).impl == "cpu"
    expected = gru(x)[0]
    mapped = torch.func.vmap(lambda v: functional.gru(v, None, *gru.parameters(), reset_after=False)[0])(x[None])
    assert mapped.shape == (1, 20, 3, 16)
    with torch.autocast("cpu", torch.bfloat16):
        assert fastcells.explain(gru, x).impl == "torch"
    torch._dynamo.reset()
    assert error(torch.compile(gru, fullgraph=True, backend="eager")(x)[0], expected) <= 16 * EPS


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
