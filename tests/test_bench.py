"""The benchmarks' own honesty: the guards fire, ratios are right, and no row is written without its origin."""

from __future__ import annotations

import time

import pytest
import torch

import fastcells
from bench import charlm, layers, provenance
from bench.guard import GuardError, must_agree, must_run
from bench.timing import compare

ORIGIN = {"device": "a processor", "torch": "2", "commit": "abc", "date": "2026-11-21"}


def test_guard_fires_on_a_fallback() -> None:
    gru = fastcells.GRU(4, 3)
    must_run(fastcells.explain(gru, torch.zeros(1, 1, dtype=torch.int64)), "recurrence")
    with pytest.raises(GuardError, match="times the path 'recurrence', but torch \\(aten\\)"):
        must_run(fastcells.explain(gru, torch.zeros(1, 1, 4)), "recurrence")


@pytest.mark.parametrize(
    ("ours", "message"),
    [
        ([torch.tensor([1.0, 2.1])], "relative error"),
        ([torch.tensor([1.0, float("nan")])], "relative error nan"),
        ([torch.tensor([1.0])], "shape"),
        ([], "0 tensors against 1"),
    ],
)
def test_guard_fires_on_other_numbers(ours: list[torch.Tensor], message: str) -> None:
    theirs = [torch.tensor([1.0, 2.0])]
    must_agree(theirs, theirs, 0.0)
    with pytest.raises(GuardError, match=message):
        must_agree(ours, theirs, 1e-3)


def test_charlm_row_refuses_a_wrong_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong(fastcells.GRU):
        def forward(self, input: torch.Tensor, hx: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
            out, h = super().forward(input, hx)
            return out * 1.001, h

    device = torch.device("cpu")
    monkeypatch.setitem(charlm.CELLS, "GRU", Wrong)
    with pytest.raises(GuardError, match="relative error"):
        charlm.row("GRU", device, 5, 4, 11, 8, rounds=2)


def test_charlm_row() -> None:
    row = charlm.row("LSTM", torch.device("cpu"), 5, 4, 11, 8, rounds=3)
    assert row["speedup"] > 0
    assert (row["T"], row["B"], row["V"], row["H"], row["rounds"]) == (5, 4, 11, 8, 3)


@pytest.mark.parametrize("name", [*layers.LAYERS, *layers.CELLS])
def test_layers_rows(name: str) -> None:
    rows = layers.rows_of(name, torch.device("cpu"), 3, 2, 8, rounds=3)
    assert [row["mode"] for row in rows] == ["forward", "forward+backward"]
    assert all(row["ratio"] > 0 for row in rows)


def test_ratio_of_a_contender_that_takes_twice_as_long() -> None:
    contenders = {"slow": lambda: time.sleep(0.02), "fast": lambda: time.sleep(0.01)}
    timings, ratio = compare(contenders, rounds=5, warmup=1)
    assert timings["slow"].median >= 20 and timings["slow"].rounds == 5
    assert ratio("slow", "fast") == pytest.approx(2, rel=0.3)  # sleep may overrun; 1 would be a broken ratio
    assert ratio("fast", "slow") == pytest.approx(0.5, rel=0.3)


@pytest.mark.parametrize("missing", ["device", "torch", "commit", "date"])
def test_no_row_without_provenance(missing: str, tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "RESULTS", tmp_path)
    with pytest.raises(ValueError, match=missing):
        provenance.write_csv("x", [{"a": 1}], {**ORIGIN, missing: ""})
    with pytest.raises(ValueError, match="rows: 0"):
        provenance.write_csv("x", [], ORIGIN)
    path = provenance.write_csv("x", [{"a": 1}], ORIGIN)
    assert path.read_text() == "a,device,torch,commit,date\n1,a processor,2,abc,2026-11-21\n"


def test_provenance_of_this_machine() -> None:
    origin = provenance.provenance(torch.device("cpu"))
    assert origin["device"] and origin["torch"] == torch.__version__ and origin["date"]
