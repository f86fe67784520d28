"""Defined cells by the Triton kernels: on a GPU where there is one, else in Triton's interpreter.

Three-way, as test_triton.py: outputs and all gradients against float64, beside torch's operators in the same dtype.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import fastcells
from fastcells import zoo
from fastcells.accuracy import ROUGH_KINKED, TWICE
from fastcells.backends.triton import backend
from fastcells.defined.layer import DefinedLayer
from fastcells.kernels.triton import plan, rules
from tests.support.accuracy import assert_equal_to_rounding, cotangents, error
from tests.support.defined_cases import CASES, EACH_DEFINED, LAYERS, DefinedCase
from tests.support.resets import some_resets
from tests.support.shapes import in_turn, name_of
from tests.support.split_programs import arguments, largest_excess, run

pytestmark = pytest.mark.usefixtures("poisoned_memory", "strict_float32")

SHAPES = [(1, 1, 1), (2, 5, 24), (9, 16, 7), (4, 33, 40)]  # T, B, H
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
EACH_IMPL = pytest.mark.parametrize("impl", ["triton", "triton-step"])


def excess(
    case: DefinedCase, shape: tuple[int, int, int], dtype: torch.dtype, device: torch.device, **options: Any
) -> float:
    """By how much outputs and gradients are further from float64 than they may be.

    Of a relu in 16 bits, the least of three problems: rounding may put a unit on its other side, here or in torch.
    """
    (T, B, H), impl, ids = shape, options.pop("impl"), options.pop("ids", False)
    kinked = case.spec.kinked and dtype != torch.float32
    found = []
    for _ in range(3 if kinked else 1):
        args = [a.to(device) for a in arguments(case, T, B, H, dtype, ids=ids)]
        d = [torch.randn(size).to(device, dtype) for size in ((T, B, H), *[(B, H)] * case.states)]
        ours = run(case, args, dtype, d, impl=impl, **options)
        found.append(largest_excess(case, args, ours, d, times=ROUGH_KINKED if kinked else TWICE, **options))
    return min(found)


@pytest.mark.parametrize(
    ("case", "impl", "shape", "dtype"),
    in_turn([*CASES.values()], ["triton", "triton-step"], SHAPES, [*DTYPES]),
    ids=name_of,
)
@pytest.mark.slow
def test_accuracy(case: DefinedCase, shape: tuple[int, int, int], dtype: str, impl: str, device: torch.device) -> None:
    """Dense and ids, ragged, with resets, both directions in turn."""
    T, B, _ = shape
    index = SHAPES.index(shape) + list(DTYPES).index(dtype)
    options: dict[str, Any] = {"impl": impl, "reverse": index % 2 == 1, "ids": SHAPES.index(shape) % 2 == 1}
    if index % 3 != 1:
        options["lengths"] = torch.randint(T + 1, (B,), device=device)
    if index % 3 != 2:
        options["resets"] = some_resets(T, B).to(device)
    assert excess(case, shape, DTYPES[dtype], device, **options) <= 0


@EACH_DEFINED
def test_accuracy_of_one_shape(case: DefinedCase, device: torch.device) -> None:
    """The quick one of those above."""
    lengths, resets = torch.tensor([3, 0, 2, 1], device=device), some_resets(3, 4).to(device)
    assert excess(case, (3, 4, 7), torch.float32, device, impl="triton", lengths=lengths, resets=resets) <= 0


@pytest.mark.parametrize(
    ("function", "old", "new"),
    [
        ("forward", "(1.0 - f) * state[0]", "(1.0 - f)"),
        ("reset_hidden", "f * state[0]", "state[0]"),
        ("backward_last_gate", "d_state[0] * f", "d_state[0]"),
        ("backward", "+ d_operand * prev[0]", ""),
    ],
)
def test_a_fault_in_the_source_is_noticed(
    function: str, old: str, new: str, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One in each function of a rule, by the kernels' results."""
    source, case = rules.source, CASES["MinimalGatedUnit"]

    def changed(*given: Any) -> str:
        before, rest = source(*given).split(f"def {function}(")
        assert rest.split("@triton.jit")[0].count(old) == 1, rest
        return before + f"def {function}(" + rest.replace(old, new, 1)

    monkeypatch.setattr(rules, "source", changed)
    monkeypatch.setattr(rules, "_generated", rules._generated.__wrapped__)
    assert excess(case, (3, 4, 7), torch.float32, device, impl="triton") > 1e-3


@pytest.mark.parametrize("name", ["CoupledGateLSTM", "MinimalGatedUnit", "EveryOperator"])
def test_large_inputs_give_no_nan(name: str, device: torch.device) -> None:
    case = CASES[name]
    args = [a.to(device) for a in arguments(case, 3, 5, 24)]
    args[: 1 + case.states] = [a * 100 for a in args[: 1 + case.states]]
    d = [torch.randn(3, 5, 24, device=device), *(torch.randn(5, 24, device=device) for _ in range(case.states))]
    assert all(t.isfinite().all() for t in run(case, args, torch.float32, d, impl="triton"))


@EACH_IMPL
def test_layers_and_cells(impl: str, device: torch.device) -> None:
    """A stack of two bidirectional layers, packed, on ids; and a cell."""
    one = zoo.CoupledGateLSTM(6, 16, 2, bidirectional=True, impl=impl).to(device)
    other = zoo.CoupledGateLSTM(6, 16, 2, bidirectional=True, impl="torch").to(device)
    other.load_state_dict(one.state_dict())
    ids = torch.nn.utils.rnn.pack_sequence([torch.randint(6, (n,), device=device) for n in (3, 5, 1)], False)
    explained = fastcells.explain(one, ids)
    assert explained.impl == impl and all("asked for" in choice.reason for choice in explained.values())
    assert error(one(ids)[0].data, other(ids)[0].data) <= 16 * torch.finfo(torch.float32).eps  # a dozen roundings
    cell = zoo.JANET.Cell(6, 16, impl=impl).to(device)
    same = zoo.JANET.Cell(6, 16, impl="torch").to(device)
    same.load_state_dict(cell.state_dict())
    x = torch.randn(4, 6, device=device)
    assert error(cell(x), same(x)) <= 16 * torch.finfo(torch.float32).eps


@EACH_IMPL
def test_without_projection(impl: str, device: torch.device) -> None:
    given = [torch.randn(3, 5, 32, device=device), torch.randn(32, 16, device=device), torch.randn(32, device=device)]
    results = []
    for each in (impl, "torch"):
        x, w, b = leaves = [t.clone().requires_grad_() for t in given]
        out, last = zoo.MinimalGatedUnit.recurrence(x, weight_hh=w, bias_hh=b, impl=each)
        torch.manual_seed(0)
        results.append((out, last, *torch.autograd.grad((out, last), leaves, cotangents((out, last)))))
    assert_equal_to_rounding(*results)


@pytest.mark.parametrize("name", ["CoupledGateLSTM", "MinimalGatedUnit", "TwinGRU"])
def test_compile_fullgraph(name: str, device: torch.device) -> None:
    """In one graph, where an operator finds the cell by its key."""
    torch.compiler.reset()
    layer = LAYERS[name](6, 16, impl="triton").to(device)
    x = torch.randn(3, 5, 6, device=device)
    results: list[list[Tensor]] = []
    for each in (layer, torch.compile(layer, fullgraph=True, backend="aot_eager")):
        out, _ = each(x)
        torch.manual_seed(0)
        results.append([out, *torch.autograd.grad(out, list(layer.parameters()), cotangents([out]))])
    assert_equal_to_rounding(*results)


def test_two_cells_of_one_name(device: torch.device) -> None:
    """Each has its own kernels, also in one compiled graph."""
    torch.compiler.reset()

    def layer(factor: float) -> DefinedLayer:
        made = fastcells.define("Namesake", gates=("a",), step=lambda a, h: torch.tanh(a) * factor + h * 0.5)
        return made(6, 16, impl="triton").to(device)

    one, other = layer(0.5), layer(0.25)
    other.load_state_dict(one.state_dict())
    both = torch.compile(lambda x: (one(x)[0], other(x)[0]), fullgraph=True, backend="aot_eager")
    x = torch.randn(1, 5, 6, device=device)
    for a, b in (both(x), (one(x)[0], other(x)[0])):
        torch.testing.assert_close(a, 2 * b)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: five_states(), "there is no kernel for Five: it has 5 states, which are more than 4"),
        (lambda: operand_of_c(), "there is no kernel for OfC: its operand reads c, which"),
        (lambda: diagonal_operand(), "there is no kernel for DiagonalOf: its diagonal recurrent weights multiply"),
    ],
    ids=["states", "operand", "diagonal operand"],
)
def test_what_no_kernel_expresses_is_declined(make: Any, reason: str, device: torch.device) -> None:
    layer = make()
    with pytest.raises(fastcells.CannotRun, match=reason):
        layer(5, 8, impl="triton", device=device)(torch.zeros(2, 3, 5, device=device))
    assert fastcells.explain(layer(5, 8, device=device), torch.zeros(2, 3, 5, device=device)).impl in ("torch", "cpu")


def five_states() -> type[DefinedLayer]:
    def step(a: Tensor, h: Tensor, c: Tensor, m: Tensor, k: Tensor, l: Tensor) -> tuple[Tensor, ...]:  # noqa: E741
        return torch.tanh(a + m), h + c, c * m, k + h, l * h

    return fastcells.define("Five", gates=("a",), states=("h", "c", "m", "k", "l"), step=step)


def diagonal_operand() -> type[DefinedLayer]:
    return fastcells.define(
        "DiagonalOf",
        gates=("a", "n"),
        operand={"n": lambda a, h: torch.sigmoid(a) * h},
        step=lambda a, n: torch.tanh(a) * torch.tanh(n),
        recurrent="diagonal",
    )


def operand_of_c() -> type[DefinedLayer]:
    def step(a: Tensor, n: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        return torch.tanh(n), torch.sigmoid(a) * c

    return fastcells.define("OfC", gates=("a", "n"), states=("h", "c"), operand={"n": lambda h, c: h * c}, step=step)


def test_auto_takes_them_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where torch has no fused recurrence: by its advantage, without a trial."""
    weights = [torch.empty(shape, device="meta") for shape in ((2 * 256, 256), (2 * 256, 256))]

    class OnAGpu(torch.Tensor):
        is_cuda = True

    w_ih, w_hh = (w.as_subclass(OnAGpu) for w in weights)
    monkeypatch.setattr(backend, "gpu", lambda _: plan.Device(90, 132))
    monkeypatch.setattr(backend, "matmul_precision", lambda *_: "tf32")
    call = fastcells.backends.base.Call("auto", CASES["JANET"].spec, False, 35, 32, w_ih, w_hh)
    advantage = backend.TRITON.advantage(call)
    assert advantage is not None and "torch having no fused recurrence for this case" in advantage
    assert backend.TRITON.advantage(call._replace(spec=five_states().kind.spec())) is None
