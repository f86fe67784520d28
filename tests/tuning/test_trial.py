"""Trials: the fastest right candidate is chosen; what is wrong, raises, gives NaN or never ends is out and named."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from fastcells import backends
from fastcells.backends import BACKENDS
from fastcells.backends.base import Call, Choice, Gradients, Trace
from fastcells.errors import KernelFault
from fastcells.spec import SPECS
from fastcells.tuning.memory import Verdict
from fastcells.tuning.problem import Problem
from fastcells.tuning.trial import CHECKED, TIMED, _steps, candidates, compare, trial
from tests.support.both_stand_in import BothStandIn
from tests.support.trials import StandIn, ToldClock, call_of

OPTIONS = [frozenset(names) for n in range(3) for names in itertools.combinations(("lengths", "resets"), n)]


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Adds a backend to those that trials know."""

    def add(backend: StandIn) -> StandIn:
        monkeypatch.setitem(backends.BACKENDS, backend.name, backend)
        return backend

    monkeypatch.setitem(backends.BACKENDS, "cpu", BACKENDS["cpu"])
    monkeypatch.setattr(BACKENDS["cpu"], "devices", frozenset())
    return add


def tried(call: Call, clock: ToldClock, training: bool = True) -> Verdict:
    return trial(call, training, candidates(call), clock)


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "+".join(sorted(o)) or "plain")
@pytest.mark.parametrize("ids", [False, True], ids=("dense", "ids"))
@pytest.mark.parametrize("cell", SPECS)
def test_c_is_right_in_a_trial_of_every_kind(cell: str, ids: bool, options: frozenset[str]) -> None:
    for training in (False, True):
        call = call_of(cell, ids=ids, options=options, training=training)
        verdict = trial(call, training, candidates(call), ToldClock({"cpu": 10.0}))
        assert verdict.out == {} and verdict.chosen == "cpu", verdict
        assert 0 < verdict.errors["cpu"] <= 1


@pytest.mark.parametrize("ids", [False, True], ids=("dense", "ids"))
@pytest.mark.parametrize("cell", SPECS)
def test_a_bidirectional_layer_is_tried_as_a_whole(cell: str, ids: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    at_once = BothStandIn()
    at_once.name, at_once.devices = "at-once", frozenset({"cpu"})  # type: ignore[misc]
    at_once.both = lambda *_: Choice("at-once", "both directions", "", backend=at_once, directions=2)  # type: ignore[method-assign]
    monkeypatch.setitem(backends.BACKENDS, "at-once", at_once)
    call = call_of(cell, ids=ids)._replace(directions=2)
    verdict = trial(call, True, candidates(call), ToldClock({"cpu": 10.0, "at-once": 5.0}))
    assert (verdict.chosen, verdict.out) == ("at-once", {}), verdict
    assert "backward" in at_once.launches


def test_a_wrong_weight_of_the_second_direction_is_named(stand_in: Any) -> None:
    class WrongInReverse(StandIn):
        def backward(self, choice: Choice, spec: Any, inputs: Any, *given: Any) -> Gradients:
            d_x, d_gates, d_state, *_ = super().backward(choice, spec, inputs, *given)
            return Gradients(d_x, d_gates * (1.01 if inputs.steps.reverse else 1), d_state)

    stand_in(WrongInReverse("bad"))
    call = call_of()._replace(directions=2)
    assert tried(call, ToldClock({})).out["bad"].endswith("_hh_reverse")


def test_a_projected_lstm_is_made_up_in_its_own_shapes() -> None:
    call = call_of("lstm", proj=3)
    problem = Problem(call, 4, True)
    results = problem.run(candidates(call)[0])
    assert [list(r.shape) for r in results[:3]] == [[4, 3, 3], [1, 3, 3], [1, 3, 8]]
    assert all(torch.allclose(r.double(), e, atol=1e-4) for r, e in zip(results, problem.exact(), strict=True))


def test_the_fastest_is_chosen_and_others_are_kept_with_their_times(stand_in: Any) -> None:
    stand_in(StandIn("ours", ("a", "b", "c")))
    times = {"ours made up a": 30.0, "ours made up b": 20.0, "ours made up c": 25.0, "torch": 50.0}
    verdict = tried(call_of(), ToldClock(times))
    assert verdict.chosen == "ours made up b" and verdict.microseconds == times
    assert (verdict.steps, verdict.batch) == (6, 3)


@pytest.mark.parametrize(
    ("times", "chosen"), [((96.0, 100.0), "torch"), ((95.0, 100.0), "ours"), ((101.0, 100.0), "torch")]
)
def test_ours_has_to_win_by_five_percent(stand_in: Any, times: tuple[float, float], chosen: str) -> None:
    stand_in(StandIn("ours"))
    assert tried(call_of(), ToldClock({"ours": times[0], "torch": times[1]})).chosen == chosen


class WrongForward(StandIn):
    def forward(self, choice: Choice, *given: Any, **more: Any) -> Trace:
        trace = super().forward(choice, *given, **more)
        out = trace.hidden.clone()
        out[1, 0, 0] += 1e-3
        return trace._replace(out=out)


class WrongBackward(StandIn):
    def backward(self, choice: Choice, *given: Any) -> Gradients:
        d_x, d_gates, d_state, *_ = super().backward(choice, *given)
        return Gradients(d_x, d_gates, (d_state[0] * 1.001, *d_state[1:]))


class NotANumber(StandIn):
    def forward(self, choice: Choice, *given: Any, **more: Any) -> Trace:
        trace = super().forward(choice, *given, **more)
        trace.last[0].fill_(math.nan)
        return trace


class Raises(StandIn):
    def forward(self, choice: Choice, *given: Any, **more: Any) -> Trace:
        raise NotImplementedError("no registers\nand a long story")


class NeverEnds(StandIn):
    """Its kernel gives up, and sets the fault word that the host sees when it looks."""

    def check_fault(self, device: torch.device) -> None:
        raise KernelFault("its programs waited in vain")


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (WrongForward, "times the error allowed in out"),
        (WrongBackward, "times the error allowed in d_h0"),
        (NotANumber, "wrong: NaN in h_n"),
        (Raises, "NotImplementedError: no registers"),
        (NeverEnds, "KernelFault: its programs waited in vain"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_what_does_not_work_is_out_with_its_reason(stand_in: Any, wrong: type[StandIn], reason: str) -> None:
    stand_in(StandIn("good"))
    stand_in(wrong("bad"))
    clock = ToldClock({"bad": 1.0, "good": 10.0})
    verdict = tried(call_of(), clock)
    assert verdict.chosen == "good"
    assert verdict.out["bad"].endswith(reason), verdict.out
    assert "bad" not in verdict.microseconds and "bad" not in clock.timed


def test_luck_with_one_problem_is_not_enough_to_be_out(stand_in: Any) -> None:
    class Unlucky(StandIn):
        def forward(self, choice: Choice, *given: Any, **more: Any) -> Trace:
            trace = super().forward(choice, *given, **more)
            return trace if self.calls > 1 else trace._replace(out=trace.hidden + 1e-5)

    unlucky = stand_in(Unlucky("ours"))
    verdict = tried(call_of(), ToldClock({"ours": 10.0}))
    assert unlucky.calls > 1
    assert (verdict.chosen, verdict.out) == ("ours", {}) and 0 < verdict.errors["ours"] <= 1


def test_what_is_wrong_only_backward_may_be_chosen_for_inference(stand_in: Any) -> None:
    stand_in(WrongBackward("ours"))
    clock = ToldClock({"ours": 1.0})
    assert tried(call_of(training=False), clock, training=False).chosen == "ours"
    assert tried(call_of(), clock).chosen == "torch"


def test_a_trial_sees_nothing_that_its_caller_has_switched_on(stand_in: Any) -> None:
    seen: list[Any] = []

    class Looks(StandIn):
        def forward(self, choice: Choice, *given: Any, **more: Any) -> Trace:
            seen.append(
                (torch.is_autocast_enabled("cpu"), torch.is_inference_mode_enabled(), torch.zeros(1).device.type)
            )
            return super().forward(choice, *given, **more)

    stand_in(Looks("ours"))
    packed: list[Tensor] = []
    call, state = call_of(), torch.get_rng_state()
    hooks = torch.autograd.graph.saved_tensors_hooks(lambda t: packed.append(t) or t, lambda t: t)  # type: ignore[func-returns-value]
    with hooks, torch.autocast("cpu"), torch.inference_mode(), torch.device("meta"):
        tried(call._replace(w_hh=call.w_hh.detach()), ToldClock({"ours": 1.0}))
    assert seen and set(seen) == {(False, False, "cpu")}
    assert packed == []
    assert torch.equal(state, torch.get_rng_state())


def test_a_default_dtype_is_the_callers_own_affair(stand_in: Any) -> None:
    stand_in(StandIn("ours"))
    torch.set_default_dtype(torch.float64)
    try:
        assert tried(call_of(), ToldClock({"ours": 1.0})).out == {}
    finally:
        torch.set_default_dtype(torch.float32)


def test_without_torchs_own_there_is_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BACKENDS["torch"], "check_fault", NeverEnds("bad").check_fault)
    with pytest.raises(RuntimeError, match="torch's own implementation does not run: KernelFault"):
        tried(call_of(), ToldClock({}))


def test_a_long_sequence_is_cut_and_a_full_memory_refused() -> None:
    clock = ToldClock({})
    long = call_of(T=100_000, B=64, H=256, I=256)
    checked, timed = (_steps(long, True, most, clock) for most in (CHECKED, TIMED))
    assert 4 <= checked <= timed < 1000
    assert _steps(call_of(T=6), True, CHECKED, clock) == 6
    clock.free_memory = lambda: 1 << 20  # type: ignore[method-assign]
    with pytest.raises(MemoryError, match="a third of the memory"):
        _steps(long, True, TIMED, clock)


def test_rounds_alternate_and_what_is_hopeless_is_timed_once(stand_in: Any) -> None:
    stand_in(StandIn("ours", ("a", "b")))
    call = call_of()
    clock = ToldClock({"ours made up a": 10.0, "ours made up b": 31.0, "torch": 40.0})
    verdict = tried(call, clock)
    assert verdict.microseconds == clock.times
    assert clock.timed.count("ours made up b") == 1
    assert clock.timed[3:7] == ["ours made up a", "torch", "torch", "ours made up a"]
    rounds = clock.timed.count("torch") - 1
    assert 5 <= rounds <= 25


def test_the_clock_of_a_processor_counts_microseconds_of_one_call() -> None:
    import time

    from fastcells.tuning.clock import CpuClock

    times = compare({"torch": lambda: time.sleep(0.002)}, CpuClock())
    assert 2000 <= times["torch"] < 20_000
