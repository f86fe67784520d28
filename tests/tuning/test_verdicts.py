"""What `auto` does with verdicts: measured once, remembered, and nothing measured where that is forbidden."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch.nn.utils.rnn import pack_sequence

import fastcells
from fastcells import dispatch
from fastcells.backends import BACKENDS
from fastcells.backends.base import Call
from fastcells.tuning import memory as memories
from fastcells.tuning import verdicts
from fastcells.tuning.kind import bucket, in_bucket, kind_of
from fastcells.tuning.memory import Memory, Verdict
from tests.support.trials import ToldClock, call_of

SLOW, FAST = 500.0, 10.0


@pytest.fixture
def clock(memory: Memory, monkeypatch: pytest.MonkeyPatch) -> Iterator[ToldClock]:
    """Every call is worth a trial, in which C is told to be faster than torch."""
    told = ToldClock({"torch": SLOW, "cpu": FAST})
    monkeypatch.setattr(verdicts, "WORTH", 0.0)
    monkeypatch.setattr(verdicts, "clock_of", lambda device: told)
    return told


def impl(call: Call) -> str:
    return dispatch.choose(call).impl


def test_the_first_call_measures_and_the_others_of_its_kind_remember(clock: ToldClock, memory: Memory) -> None:
    layer = fastcells.LSTM(5, 8)
    for T, B in ((6, 3), (8, 4), (5, 3)):
        layer(torch.randn(T, B, 5))
    assert clock.timed.count("torch") > 1
    (found,) = memory.everything().values()
    assert list(found) == ["lstm float32 dense training H=8 I<=8 T<=8 B<=4"]
    timed = len(clock.timed)
    verdicts.reset()  # a second process
    layer(torch.randn(7, 4, 5))
    assert len(clock.timed) == timed
    choice = fastcells.explain(layer, torch.randn(7, 4, 5))
    date = next(iter(found.values())).date
    assert (choice.impl, choice.reason) == ("cpu", f"measured on this device on {date}: cpu 10 us, torch 500 us")


@pytest.mark.parametrize(
    "change",
    [
        {"T": 9}, {"T": 3}, {"B": 5}, {"B": 2}, {"H": 9}, {"I": 9}, {"ids": True}, {"training": False},
        {"cell": "lstm"}, {"options": frozenset({"lengths"})},
    ],
    ids=str,
)  # fmt: skip
def test_another_kind_is_measured_by_itself(clock: ToldClock, memory: Memory, change: dict[str, Any]) -> None:
    impl(call_of())
    timed = len(clock.timed)
    impl(call_of(**change))
    assert len(clock.timed) > timed
    assert len(next(iter(memory.everything().values()))) == 2


def test_the_quick_key_tells_apart_what_kinds_tell_apart() -> None:
    calls = [
        call_of(cell, T, B, H, ids=ids, training=training, options=options)
        for cell in ("gru", "lstm")
        for T, B, H in ((2, 1, 8), (3, 1, 8), (4, 1, 8), (4, 2, 8), (4, 3, 9), (5, 4, 9))
        for ids in (False, True)
        for training in (False, True)
        for options in (frozenset[str](), frozenset({"resets"}))
    ]
    calls += [call_of("lstm", proj=3), call_of("lstm", proj=4), call_of("lstm", dtype=torch.float64)]
    for a in calls:
        for b in calls:
            assert (
                (verdicts._key(a) == verdicts._key(b))
                == (kind_of(a) == kind_of(b))
                == (str(kind_of(a)) == str(kind_of(b)))
            )


def test_buckets() -> None:
    assert [bucket(n) for n in (1, 2, 3, 4, 5, 8, 9, 1000)] == [1, 2, 4, 4, 8, 8, 16, 1024]
    assert all(in_bucket(n, size) == (bucket(n) == size) for n in range(1, 40) for size in (1, 2, 4, 8, 16, 32, 64))


def test_threads_are_part_of_the_machine(clock: ToldClock, memory: Memory) -> None:
    impl(call_of())
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        impl(call_of())
    finally:
        torch.set_num_threads(before)
    assert len(memory.everything()) == 2


def deterministic(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)


def switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTCELLS_TUNE", "0")


def anomalies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "is_anomaly_enabled", lambda: True)


def captured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verdicts, "_forbidden", lambda call: "a CUDA graph is being captured")


@pytest.mark.parametrize("forbid", [deterministic, switched_off, anomalies, captured], ids=lambda f: f.__name__)
def test_where_nothing_may_be_measured_a_verdict_is_used_and_else_the_rule(
    clock: ToldClock, monkeypatch: pytest.MonkeyPatch, forbid: Callable[[pytest.MonkeyPatch], None]
) -> None:
    known, unknown = call_of("lstm"), call_of("lstm", H=9)
    assert impl(known) == "cpu"
    timed = len(clock.timed)
    with pytest.MonkeyPatch.context() as patch:
        forbid(patch)
        assert impl(known) == "cpu"
        assert impl(unknown) == "torch"  # an LSTM of this size, by the rows of policy.py
    assert len(clock.timed) == timed
    assert impl(unknown) == "cpu"  # it may be measured again


@pytest.mark.parametrize("watch", ["vmap", "jvp", "make_fx", "trace"])
def test_nothing_is_measured_for_who_looks_through(clock: ToldClock, watch: str) -> None:
    layer, x = fastcells.GRU(5, 8), torch.randn(6, 3, 5)
    if watch == "vmap":
        torch.func.vmap(lambda one: layer(one)[0], in_dims=1)(x.unsqueeze(-2))
    elif watch == "jvp":
        torch.func.jvp(lambda one: layer(one)[0], (x,), (x,))
    elif watch == "make_fx":
        from torch.fx.experimental.proxy_tensor import make_fx

        make_fx(lambda one: layer(one)[0])(x)
    else:
        torch.jit.trace(layer, x, check_trace=False)  # the check runs the layer, unwatched
    assert clock.timed == []


@pytest.mark.parametrize("known", [False, True])
def test_under_torch_compile_a_verdict_is_a_constant_and_nothing_is_measured(
    clock: ToldClock, known: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer, x = fastcells.LSTM(5, 8), torch.randn(6, 3, 5)
    if known:
        layer(x)
    timed = len(clock.timed)
    ran: list[str] = []
    for backend in BACKENDS.values():
        original = backend.choose
        monkeypatch.setattr(backend, "choose", lambda call, reason, c=original: ran.append(reason) or c(call, reason))
    torch._dynamo.reset()
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    out = compiled(x)[0]
    compiled(torch.randn(7, 3, 5))
    compiled(torch.randn(5, 4, 5))
    assert len(clock.timed) == timed
    assert any("measured on this device" in str(reason) for reason in ran) == known
    torch.testing.assert_close(out, layer(x)[0])


def test_explain_measures_nothing_and_says_that_a_call_would(clock: ToldClock) -> None:
    layer, x = fastcells.LSTM(5, 8), torch.randn(6, 3, 5)
    assert fastcells.explain(layer, x).reason == f"ATen's fused recurrence expresses this case; {verdicts.NOT_YET}"
    assert clock.timed == []
    layer(x)
    assert verdicts.NOT_YET not in fastcells.explain(layer, x).reason
    assert verdicts.NOT_YET not in fastcells.explain(layer, x[:1]).reason  # a single step is never measured


def test_a_call_of_microseconds_is_not_worth_a_trial(memory: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = ToldClock({"cpu": FAST})
    monkeypatch.setattr(verdicts, "clock_of", lambda device: clock)
    impl(call_of("lstm"))
    assert clock.timed == []
    impl(call_of("lstm", T=300, B=64, H=64, I=64))
    assert clock.timed != []


def test_a_machine_that_the_shipped_file_knows_measures_nothing(
    clock: ToldClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipped = {str(kind_of(call_of("lstm"))): Verdict("cpu", "2026-01-01", 6, 3, {"cpu": 1.0, "torch": 9.0})}
    monkeypatch.setattr(memories, "shipped", lambda device: shipped)
    choice = dispatch.choose(call_of("lstm"))
    assert (choice.impl, choice.reason) == ("cpu", "measured on this device on 2026-01-01: cpu 1 us, torch 9 us")
    assert impl(call_of("lstm", H=9)) == "torch"
    assert clock.timed == []


def test_a_packed_batch_is_measured_against_the_steps_that_it_has(clock: ToldClock) -> None:
    clock.times = {"torch": 20.0, "cpu": 10.0}  # twice as fast, where no step is padding
    call = call_of("lstm")
    assert impl(call) == "cpu"
    assert impl(call._replace(padding=1.5)) == "cpu"
    assert impl(call._replace(padding=1.95)) == "torch"
    layer = fastcells.LSTM(5, 8)
    even, ragged = ([torch.randn(n, 5) for n in lengths] for lengths in ((6, 6, 6), (8, 1, 1)))
    assert fastcells.explain(layer, pack_sequence(even)).impl == "cpu"
    assert fastcells.explain(layer, pack_sequence(ragged)).impl == "torch"


def test_a_trial_that_fails_altogether_is_logged_and_not_repeated(
    clock: ToldClock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock.free_memory = lambda: 1000  # type: ignore[method-assign]
    with caplog.at_level(logging.INFO, "fastcells"):
        for _ in range(3):
            assert impl(call_of("lstm")) == "torch"
    assert caplog.text.count("no trial of lstm float32") == 1


def test_a_trial_changes_neither_the_call_nor_what_follows(clock: ToldClock) -> None:
    """Nor does it matter to the numbers whether the verdict was there before."""
    torch.manual_seed(0)
    layer = fastcells.GRU(5, 8, num_layers=2, dropout=0.5)
    x = torch.randn(6, 3, 5)
    results = []
    for _ in range(2):
        torch.manual_seed(1)
        layer.zero_grad()
        out = layer(x)[0]
        out.sum().backward()
        results.append((out, torch.rand(3), layer.weight_hh_l0.grad))
    assert clock.timed
    for first, second in zip(*results, strict=True):
        assert torch.equal(first, second)
