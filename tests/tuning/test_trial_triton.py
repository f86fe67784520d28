"""Triton's candidates in a trial, through the interpreter, with a clock that says what it is told."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

import fastcells
from fastcells import zoo
from fastcells.backends import BACKENDS
from fastcells.backends.base import Call
from fastcells.backends.triton import operators
from fastcells.errors import KernelFault
from fastcells.kernels.triton import fault, plan
from fastcells.tuning import verdicts
from fastcells.tuning.kind import kind_of
from fastcells.tuning.memory import Memory
from fastcells.tuning.trial import candidates, trial
from tests.support.trials import ToldClock, call_of

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="no interpreter with a GPU")

WHOLE = plan.Blocks(16, 32, 32, 4, 1, "all columns")
SPLIT = plan.Split(plan.Blocks(16, 16, 32, 4, 1, "16 columns"), 1, "poll", cycles=1)
NAMES = ["triton split 16x16x4 16x16x4", "triton sequence 16x32x4 16x32x4", "triton sequence 32x32x2 32x32x2"]


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Puts the interpreter among the devices of trials, and sets the plans."""

    def set_plans(*plans: plan.Plan) -> None:
        monkeypatch.setattr(plan, "sequence_plans", lambda *_, **__: list(plans))

    monkeypatch.setattr(BACKENDS["cpu"], "devices", frozenset())
    monkeypatch.setattr(BACKENDS["triton"], "devices", frozenset({"cpu"}))
    monkeypatch.setattr(fault, "PATIENCE", 40)
    yield set_plans
    fault.fault_word(torch.device("cpu")).zero_()


def test_every_block_is_a_candidate_and_the_fastest_right_one_is_chosen(planned: Any) -> None:
    planned(WHOLE, replace(WHOLE, batch=32, warps=2))
    call = call_of(H=20)
    choices = candidates(call)
    assert [choice.name for choice in choices] == ["torch", *NAMES[1:]]
    verdict = trial(call, True, choices, ToldClock({"torch": 300.0, NAMES[1]: 40.0, NAMES[2]: 30.0}))
    assert (verdict.chosen, verdict.out) == (NAMES[2], {})
    assert all(verdict.errors[name] <= 1 for name in NAMES[1:])


def test_programs_that_never_come_end_the_trial_of_their_candidate_alone(planned: Any) -> None:
    """The interpreter runs one program after another: the first of a split kernel waits for those that never come."""
    planned(SPLIT, WHOLE)
    call = call_of(H=20)
    verdict = trial(call, True, candidates(call), ToldClock({NAMES[0]: 1.0, NAMES[1]: 40.0}))
    assert verdict.chosen == NAMES[1]
    assert verdict.out[NAMES[0]].startswith("KernelFault: split_forward of gru: on cpu, the programs of an earlier")


def test_a_kernel_made_wrong_on_purpose_is_out_and_named(planned: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    planned(WHOLE, replace(WHOLE, batch=32, warps=2))
    original = operators.run_backward

    def wrong(given: Any, blocks: plan.Plan) -> Any:
        result = original(given, blocks)
        if isinstance(blocks, plan.Blocks) and blocks.warps == 2:
            result.d_gates[-1] = 0  # the last step's gradient is lost
        return result

    monkeypatch.setattr(operators, "run_backward", wrong)
    call = call_of(H=20)
    verdict = trial(call, True, candidates(call), ToldClock({NAMES[1]: 40.0, NAMES[2]: 1.0}))
    assert verdict.chosen == NAMES[1]
    assert "times the error allowed in d_" in verdict.out[NAMES[2]]


def test_what_the_compiler_refuses_is_out(planned: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    planned(replace(WHOLE, hidden=24), WHOLE)  # no power of 2
    call = call_of(H=20)
    verdict = trial(call, True, candidates(call), ToldClock({NAMES[1]: 40.0}))
    assert verdict.chosen == NAMES[1] and len(verdict.out) == 1, verdict


def test_auto_goes_on_with_torch_after_a_fault(planned: Any, memory: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel was right in its trial; then, one day, its programs do not all run."""
    planned(SPLIT, WHOLE)
    monkeypatch.setattr(verdicts, "WORTH", 0.0)
    clock = ToldClock({NAMES[0]: 1.0, NAMES[1]: 200.0, "torch": 150.0})
    monkeypatch.setattr(verdicts, "clock_of", lambda device: clock)
    layer, x = fastcells.GRU(5, 20), torch.randn(6, 3, 5)
    from tests.support.concurrent_programs import concurrent_programs

    monkeypatch.setattr(fault, "PATIENCE", 100_000)
    with concurrent_programs():
        layer(x)
    assert fastcells.explain(layer, x).path == "split"
    (kinds,) = memory.everything().values()
    (verdict,) = kinds.values()
    assert verdict.chosen == NAMES[0]
    monkeypatch.setattr(fault, "PATIENCE", 40)
    with pytest.raises(KernelFault, match="in vain"):
        layer(x)
    assert fastcells.explain(layer, x).impl == "torch"
    layer(x)[0].sum().backward()
    (kinds,) = memory.everything().values()
    assert next(iter(kinds.values())).out[NAMES[0]] == verdicts.FAULT
    verdicts.reset()  # a new process reads the file
    assert fastcells.explain(layer, x).impl == "torch"


def test_a_defined_cell_takes_part_by_its_key(planned: Any) -> None:
    """Another definition of its name is another kind of call; what cannot be made up is not measured."""
    planned(WHOLE)
    spec, H = zoo.MinimalGatedUnit.kind.spec(), 20
    weights = [torch.randn(2 * H, columns, requires_grad=True) for columns in (6, H)]
    call = Call("auto", spec, False, 5, 3, *weights)
    verdict = trial(call, True, candidates(call), ToldClock({"torch": 300.0, NAMES[1]: 40.0}))
    assert (verdict.chosen, verdict.out) == (NAMES[1], {})
    assert verdict.errors[NAMES[1]] <= 1
    assert kind_of(call).cell == spec.key != spec.name
    assert verdicts._measurable(call) and not verdicts._measurable(call._replace(spec=zoo.PeepholeLSTM.kind.spec()))
