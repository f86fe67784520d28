"""Programs that wait in vain: the launch ends, what it returns is NaN, and the host hears of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import fastcells
from fastcells.backends.triton.operators import run_backward, run_forward
from fastcells.errors import KernelFault
from fastcells.kernels.triton import fault, launch, launch_split, plan
from fastcells.kernels.triton.rules import RULES
from tests.support.concurrent_programs import concurrent_programs
from tests.support.shapes import CELLS, EACH_CELL, Case
from tests.support.split_programs import EACH_EXCHANGE

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("poisoned_memory"),
    pytest.mark.skipif(torch.cuda.is_available(), reason="no interpreter with a GPU"),
]

GRU = CELLS[2]
CPU = torch.device("cpu")
T, B, H = 3, 20, 40
COLUMNS = 16  # of a program: there are 3 of them, and two batch tiles, which they do one after another
BLOCKS = plan.Blocks(batch=16, hidden=COLUMNS, inner=32, warps=4, stages=1, reason="small, for small H")
ABSENT = 1
PRESENT = [column for column in range(H) if column // COLUMNS != ABSENT]
WHOLE = replace(BLOCKS, hidden=64)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A wait ends after so few polls that a test does, and far more than the programs need that do come."""
    monkeypatch.setattr(fault, "PATIENCE", 40)
    yield
    fault.fault_word(CPU).zero_()


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a failed launch returned is to be looked at: nobody raises after it."""
    monkeypatch.setattr(fault, "raise_own_fault", lambda *_: None)


class Problem:
    """One cell's launches, with rows that end after 0, 1 and all steps and, in reverse, such as start from zeros."""

    def __init__(self, case: Case, reverse: bool) -> None:
        rule = RULES[case.spec.name]
        gates = rule.spec.num_gates
        x, *state, _, w, _, b = (a.detach() for a in case.arguments((T, B, H, gates * H), torch.float32))
        lengths = torch.arange(B, dtype=torch.int32) % (T + 1)
        self.given = rule, tuple(state), w, lengths, reverse, "ieee"
        self.resets = (torch.rand(T, B) < 0.4).to(torch.uint8) if reverse else None
        self.input = launch.StepInput(x), b, True
        self.d = torch.randn(T, B, H), tuple(map(torch.randn_like, state))
        self.order = list(range(T))[:: -1 if reverse else 1]

    def forward(self, how: plan.Plan) -> launch.Forward:
        return run_forward(launch.ForwardPass(*self.given, *self.input, resets=self.resets), how)

    def backward(self, how: plan.Plan) -> launch.Backward:
        given = launch.BackwardPass(*self.given, self.forward(WHOLE), *self.d, resets=self.resets)
        return run_backward(given, how)


def all_nan(tensor: Tensor) -> bool:
    """In the columns of the programs that came."""
    return bool(tensor[..., PRESENT].isnan().all())


@EACH_EXCHANGE
@EACH_CELL
@pytest.mark.parametrize("reverse", [False, True], ids=["", "reverse"])
def test_forward_without_a_program(case: Case, name: str, reverse: bool, quiet: None) -> None:
    """From the second step on, all is NaN: rows that have finished too, and the second batch tile."""
    problem = Problem(case, reverse)
    with concurrent_programs(absent=ABSENT):
        out = problem.forward(plan.Split(BLOCKS, 1, name))
    assert fault.fault_word(CPU).item() == 1
    late = problem.order[1:]
    assert all_nan(out.hidden[late]) and all(all_nan(s) for s in out.last)
    assert all_nan(out.hidden[:, 16:]), "who has waited in vain does not wait, nor know anything, in the next tile"
    for tensor in (out.cells, out.saved):
        assert tensor is None or all_nan(tensor[late])


@EACH_EXCHANGE
@EACH_CELL
@pytest.mark.parametrize("reverse", [False, True], ids=["", "reverse"])
def test_backward_without_a_program(case: Case, name: str, reverse: bool, quiet: None) -> None:
    problem = Problem(case, reverse)
    with concurrent_programs(absent=ABSENT):
        out = problem.backward(plan.Split(BLOCKS, 1, name))
    assert fault.fault_word(CPU).item() == 1
    late = problem.order[:-1]
    assert all_nan(out.d_gates[late]) and all_nan(out.d_x[late]) and all(all_nan(s) for s in out.d_state)
    assert all_nan(out.d_gates[:, 16:]) and all_nan(out.d_x[:, 16:])


@EACH_EXCHANGE
def test_the_sentinel_is_published_by_nobody(name: str, quiet: None) -> None:
    """Or a program that was slow, and had polled less, would wait for what will never change."""
    with concurrent_programs(absent=ABSENT):
        hidden = Problem(GRU, False).forward(plan.Split(BLOCKS, 1, name)).hidden
    assert (hidden.view(torch.int32)[..., PRESENT] != -1).all()


@EACH_EXCHANGE
def test_without_a_fault_the_word_stays_0(name: str) -> None:
    problem, split = Problem(GRU, False), plan.Split(BLOCKS, 1, name)
    with concurrent_programs(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(fault, "PATIENCE", 100_000)
        assert not problem.forward(split).hidden.isnan().any()
        assert not problem.backward(split).d_x.isnan().any()
    assert fault.fault_word(CPU).item() == 0


@EACH_EXCHANGE
def test_a_layer_raises_and_the_next_call_works(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "sequence_plan", lambda *_, **__: plan.Split(BLOCKS, 1, name))
    layer, x = fastcells.GRU(3, H, impl="triton"), torch.randn(T, B, 3)
    with concurrent_programs(absent=ABSENT), pytest.raises(KernelFault, match=r"split_forward of gru: on cpu.*in vain"):
        layer(x)
    monkeypatch.setattr(fault, "PATIENCE", 100_000)
    with concurrent_programs():
        out = layer(x)[0]
    expected = torch.nn.GRU(3, H)
    expected.load_state_dict(layer.state_dict())
    assert torch.allclose(out, expected(x)[0], atol=1e-5)


def test_a_fault_of_an_earlier_launch_is_raised_before_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, where the word is set after the launch has returned."""
    fault.fault_word(CPU).fill_(1)
    monkeypatch.setattr(launch_split, "split_backward_kernel", {})  # launching it would be another error

    def launched() -> Any:
        return Problem(GRU, False).backward(plan.Split(BLOCKS, 1, "poll"))

    with pytest.raises(KernelFault, match=r"split_backward of gru: .*an earlier launch"):
        launched()
    assert fault.fault_word(CPU).item() == 0
