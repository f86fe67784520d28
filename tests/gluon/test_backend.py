"""When impl="gluon" runs: where it is named, on a card that it fits, or where it was measured; else never, and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch

import fastcells
from fastcells.backends import BACKENDS
from fastcells.backends.base import ASKED_FOR, Call
from fastcells.backends.gluon import backend
from fastcells.dispatch import WITH_ADVANTAGE
from fastcells.kernels.triton.plan import Device
from fastcells.spec import GRU_RESET_AFTER, LSTM

GLUON = BACKENDS["gluon"]


@dataclass(frozen=True)
class OnCard:
    """A weight as the choice sees it, on a card that this machine need not have."""

    shape: tuple[int, int]
    dtype: torch.dtype = torch.bfloat16
    is_cuda = True
    device = torch.device("cuda")

    def numel(self) -> int:
        return self.shape[0] * self.shape[1]


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> None:
    """An H100, and a Triton that compiles for it."""
    monkeypatch.setattr(backend, "gpu", lambda device: Device(90, 132))
    monkeypatch.setattr(backend, "missing", lambda: None)
    monkeypatch.setattr(Call, "dtype", property(lambda call: call.w_hh.dtype))


def call(H: int = 256, dtype: torch.dtype = torch.bfloat16, **options: Any) -> Call:
    w: Any = OnCard((3 * H, H), dtype)
    return Call("gluon", GRU_RESET_AFTER, False, 35, 32, w, w, **options)


def test_on_a_cpu_it_declines_with_a_reason() -> None:
    pytest.importorskip("triton", reason="its absence comes first")
    gru = fastcells.GRU(5, 7, impl="gluon")
    for run in (gru, lambda x: fastcells.explain(gru, x)):
        with pytest.raises(fastcells.CannotRun, match="the weights are on cpu: an NVIDIA GPU is needed"):
            run(torch.zeros(3, 2, 5))


def test_auto_takes_it_where_it_was_measured(card: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert WITH_ADVANTAGE.index(GLUON) < WITH_ADVANTAGE.index(BACKENDS["triton"])
    assert "on an H200" in str(GLUON.advantage(call()))
    for H, dtype in ((64, torch.bfloat16), (128, torch.float32), (1025, torch.bfloat16), (1024, torch.float16)):
        assert GLUON.advantage(call(H, dtype)) is None
    assert GLUON.advantage(call()._replace(T=4)) is None
    assert GLUON.advantage(call()._replace(B=129)) is None
    assert GLUON.advantage(call(1024)._replace(B=64)) is None
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=True):
        assert "on an H200" in str(GLUON.advantage(call(192, torch.float32)))
        assert GLUON.advantage(call(192, torch.float64)) is None
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        assert GLUON.advantage(call(192, torch.float32)) is None, "with three products for one it was not measured"
        assert "4.9 times" in str(GLUON.advantage(call(256, torch.float32)))
    assert "5.2 times" in str(GLUON.advantage(call(128, torch.float16)))
    assert "one launch instead of a dozen" in str(GLUON.advantage(call(64)._replace(token_ids=True)))
    monkeypatch.setattr(backend, "gpu", lambda device: Device(100, 148))
    assert GLUON.advantage(call()) is None


def test_a_choice_says_how_it_runs(card: None) -> None:
    choice = GLUON.choose(call(), ASKED_FOR)
    assert str(choice) == (
        "gluon (resident): asked for; 16 programs a group hold 16 columns' weights in the registers of 4 warps"
    )
    assert choice.plan.backward.width == 256


def test_options(card: None) -> None:
    """Of a projection the choice knows that the kernel's H is not W_hh's width."""
    assert GLUON.obstacle(call(options=frozenset({"lengths", "resets"}))) is None
    w: Any = OnCard((4 * 256, 64))
    projected = Call("gluon", LSTM, False, 35, 32, w, w, options=frozenset({"proj_size"}))
    assert GLUON.obstacle(projected) is None
    choice = GLUON.choose(projected, ASKED_FOR)
    assert choice.plan.forward.width == 256
    assert GLUON.both(choice, choice) is None


def test_both_directions_are_one_choice_where_they_run_at_once(card: None) -> None:
    one = GLUON.choose(call(directions=2), ASKED_FOR)
    both = GLUON.both(one, GLUON.choose(call(directions=2), ASKED_FOR))
    assert both is not None
    assert both.directions == 2
    assert [plan.directions for plan in (both.plan.forward, both.plan.backward)] == [2, 2]
    assert str(both) == (
        "gluon (both directions): asked for; 16 programs a group hold 16 columns' weights in the registers of 4 warps; "
        "both directions in one launch, by the model 0.63 of the cycles of one after the other"
    )


@pytest.mark.parametrize(
    ("forward", "reverse"), [(call(1024), call(1024)), (call(), call(128))], ids=["no room", "unlike"]
)
def test_both_directions_one_after_the_other(card: None, forward: Call, reverse: Call) -> None:
    assert GLUON.both(GLUON.choose(forward, ASKED_FOR), GLUON.choose(reverse, ASKED_FOR)) is None


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (call(1025), "no row for more than 1024 columns"),
        (call(600, torch.float32), "registers a thread"),
        (call(dtype=torch.float64), "no kernel for torch.float64"),
        (call(options=frozenset({"zoneout"})), "no kernel for zoneout"),
        (call(0), "is empty"),
    ],
    ids=["no row", "large", "float64", "option", "empty"],
)
def test_reasons(card: None, given: Call, reason: str) -> None:
    assert reason in (GLUON.obstacle(given) or "")


def test_an_old_card(card: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "gpu", lambda device: Device(80, 108))
    assert "compute capability 8.0" in (GLUON.obstacle(call()) or "")


def test_another_makers_card(card: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert "NVIDIA" in (GLUON.obstacle(call()) or "")


def test_a_triton_without_gluon(card: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "missing", lambda: "Triton 9.9 lacks it")
    assert GLUON.obstacle(call()) == "Triton 9.9 lacks it"
