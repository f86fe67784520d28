"""Token ids in the Triton implementations: the kernels gather the rows of W_ih^T themselves."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

pytest.importorskip("triton", reason="the kernels are written in Triton")

import fastcells
from fastcells.autograd import rows_gradient
from fastcells.backends.triton import operators
from fastcells.backends.triton.operators import recurrence_forward
from fastcells.kernels.triton import launch, launch_sequence, launch_step
from fastcells.kernels.triton.rules import RULES
from tests.support.accuracy import assert_equal_to_rounding, cotangents, error
from tests.support.shapes import EACH_CELL, Case

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("poisoned_memory", "strict_float32")]
T, B, H, V = 4, 5, 24, 7
NO_IDS = [-1, V, -(2**31), 2**31 - 1]
EACH_IMPL = pytest.mark.parametrize("impl", ["triton", "triton-step"])
EACH_PATH = pytest.mark.parametrize("path", ["sequence", "step"])


def some_ids(dtype: torch.dtype, device: torch.device) -> Tensor:
    """Most of them ids."""
    ids = torch.randint(V, (T, B), device=device)
    ids[1, 1:5] = torch.tensor(NO_IDS, device=device)
    return ids.to(dtype)


def one_hots(ids: Tensor) -> Tensor:
    """Zero where an id is none."""
    return (ids.unsqueeze(-1) == torch.arange(V, device=ids.device)).float()


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
@EACH_PATH
@pytest.mark.parametrize("rule", RULES)
def test_gathered_rows_are_the_projection(rule: str, path: str, dtype: torch.dtype, device: torch.device) -> None:
    """To the bit; an id that is none acts as an all-zero input."""
    ids, rows = some_ids(dtype, device), RULES[rule].spec.num_gates * H
    table, b_ih, w, b = (torch.randn(size, device=device) for size in ((V, rows), (rows,), (rows, H), (rows,)))
    h0 = torch.randn(B, H, device=device)
    c0 = torch.randn(B, H, device=device) if RULES[rule].spec.num_states == 2 else None
    known = (ids >= 0) & (ids < V)
    x_rows = table[torch.where(known, ids, 0).long()] * known.unsqueeze(-1)
    for bias, reverse in ((b_ih, False), (None, True)):
        options = (rule, path, reverse, True)
        gathered = recurrence_forward(table, h0, c0, w, b, None, *options, ids, bias)
        given = recurrence_forward(x_rows if bias is None else x_rows + bias, h0, c0, w, b, None, *options)
        assert all(torch.equal(a, b) for a, b in zip(gathered, given, strict=True))


@EACH_PATH
def test_opcheck(path: str, device: torch.device) -> None:
    table, b_ih, w, h0 = (torch.randn(size, device=device) for size in ((V, 3 * H), (3 * H,), (3 * H, H), (B, H)))
    arguments = (table, h0, None, w, None, None, "gru", path, False, True, some_ids(torch.int64, device), b_ih)
    tests = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(recurrence_forward, arguments, test_utils=tests)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_gradient_of_the_table(dtype: torch.dtype, device: torch.device) -> None:
    """Rows of the same id add up; an id that is none adds nothing; twice the same, to the bit."""
    ids, d_x = some_ids(torch.int64, device), torch.randn(T, B, 6, device=device).to(dtype)
    exact = d_x.double().flatten(0, 1).t() @ one_hots(ids).double().flatten(0, 1)
    gradient = rows_gradient(d_x, ids, V)
    assert gradient.shape == (6, V)
    assert error(gradient, exact) <= T * B * torch.finfo(dtype).eps * exact.abs().max().item()
    assert torch.equal(gradient, rows_gradient(d_x, ids, V))


class Sizes(TorchDispatchMode):
    """The sizes of all floating-point tensors that any operator returns."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **kwargs or {})
        self.seen |= {t.numel() for t in tree_leaves(out) if isinstance(t, Tensor) and t.is_floating_point()}
        return out


@EACH_IMPL
def test_no_projection_is_built(impl: str, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the forward, for a cell that saves less a token than that; on dense input there is one."""
    monkeypatch.setattr(operators, "recurrence_forward", recurrence_forward._init_fn)  # what it does counts too
    taken: list[launch.StepInput] = []
    for module, name in ((launch_sequence, "sequence_forward"), (launch_step, "step_forward")):
        run = getattr(module, name)
        monkeypatch.setattr(module, name, lambda given, plan, run=run: taken.append(given.x) or run(given, plan))
    layer = fastcells.GRU(V, 2, impl=impl, device=device)
    ids = torch.randint(V, (13, 11), device=device)
    largest = []
    for x in (ids, one_hots(ids)):
        with Sizes() as mode, torch.no_grad():
            layer(x)
        largest.append(max(mode.seen - {one_hots(ids).numel()}))
    assert largest[0] < 13 * 11 * 3 * 2 <= largest[1]
    assert taken[0].x.shape == (V, 3 * 2) and taken[0].ids is not None
    assert taken[1].x.shape == (13, 11, 3 * 2) and taken[1].ids is None


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@EACH_IMPL
@EACH_CELL
def test_ids_equal_one_hots(case: Case, impl: str, bias: bool, device: torch.device) -> None:
    """Outputs, gradients, and gradients of the gradients; any integer dtype; padding may hold any id."""
    rows = case.spec.num_gates * H
    sizes = [*[(B, H)] * case.states, (rows, V), (rows, H), *([(rows,), (rows,)] if bias else [])]
    leaves = [torch.randn(size, device=device).mul(0.3).requires_grad_() for size in sizes]
    lengths = torch.tensor([4, 0, 2, 3, 1], device=device)
    padding = torch.arange(T, device=device).unsqueeze(1) >= lengths
    ids = torch.randint(V, (T, B), device=device).to(torch.int16)
    results = []
    for x in (ids.masked_fill(padding, -1), one_hots(ids)):
        out = case.ours(x, *leaves, lengths=lengths, impl=impl)
        torch.manual_seed(0)
        first = torch.autograd.grad(out, leaves, cotangents(out), retain_graph=True)
        again = torch.autograd.grad(out, leaves, cotangents(out), create_graph=True)
        second = torch.autograd.grad(sum((g**2).sum() for g in again), leaves)
        results.append((*out, *first, *second))
    assert_equal_to_rounding(*results)


@EACH_IMPL
def test_transforms_raise(impl: str, device: torch.device) -> None:
    layer = fastcells.GRU(V, H, impl=impl, device=device)
    with pytest.raises(RuntimeError, match=r"do not run under torch\.jit\.trace, torch\.func transforms"):
        torch.func.vmap(lambda x: layer(x)[0])(torch.zeros(2, T, B, dtype=torch.int64, device=device))


@EACH_IMPL
def test_autocast(impl: str, device: torch.device) -> None:
    layer = fastcells.GRU(V, H, impl=impl, device=device)
    low = fastcells.GRU(V, H, impl=impl, device=device, dtype=torch.bfloat16)
    low.load_state_dict(layer.state_dict())
    ids = torch.randint(V, (T, B), device=device)
    with torch.autocast(device.type, torch.bfloat16):
        out = layer(ids)[0]
    assert torch.equal(out, low(ids)[0])
