"""bench.inference: each runtime computes what the layer does or is refused, and a missing one is left out aloud."""

from __future__ import annotations

import csv
import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bench import inference
from bench.cases import runtimes
from bench.cases.case import CELLS, Case
from bench.cases.runtimes import RUNTIMES, Session
from bench.measure import provenance, results_file, timing
from bench.measure.guard import GuardError
from bench.measure.inference_section import section

TINY = [Case(cell, "forward", T=3, B=2, I=8, H=8) for cell in CELLS]
MARKS = "<!-- inference: bench/results/inference-cpu.csv -->\n", "<!-- /inference -->"
COMMAND = ("--tiny", "--rounds", "2", "--threads", "1")


def by_definition(model: Any, x: Tensor, threads: int) -> Session:
    """A runtime that is ONNX's own definition of its operators, in numpy."""
    reference = pytest.importorskip("onnx.reference")
    evaluator, ran = reference.ReferenceEvaluator(model), []
    return Session(
        lambda: ran.append(evaluator.run(None, {"x": x.numpy()})[0]), x, lambda: torch.from_numpy(ran[-1]).squeeze(1)
    )


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[..., int]]:
    """Runs bench.inference without runtimes, with results that go into a folder of their own."""
    installed = importlib.util.find_spec

    def find_spec(name: str) -> object:
        return None if name in RUNTIMES else installed(name)

    def run(*arguments: str) -> int:
        monkeypatch.setattr("sys.argv", ["bench.inference", *COMMAND, *arguments])
        return inference.main()

    monkeypatch.setattr(runtimes.importlib.util, "find_spec", find_spec)
    monkeypatch.setattr(inference, "REST", 0.0)
    for module in (inference, provenance):
        monkeypatch.setattr(module, "RESULTS", tmp_path)
    monkeypatch.setattr(inference, "ROOT", tmp_path)
    (tmp_path / "README.md").write_text(f"before\n{MARKS[0]}old\n{MARKS[1]}\nafter\n")
    threads = torch.get_num_threads()
    yield run
    torch.set_num_threads(threads)


def test_what_is_missing_is_said_and_left_out(command: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert command("--no-write") == 0
    printed = capsys.readouterr().out
    for name in RUNTIMES:
        assert f"without {name}: not installed (pip install {name})" in printed
    assert "nn_ratio: " in printed and "onnxruntime_ratio: " not in printed


def test_rows_measured_again_take_their_places(command: Callable[..., int], tmp_path: Path) -> None:
    def table() -> list[dict[str, str]]:
        with (tmp_path / "inference-cpu.csv").open() as file:
            return list(csv.DictReader(file))

    assert command("--T", "1", "--B", "1") == 0
    first = table()
    assert [row["cell"] for row in first] == list(CELLS)
    assert {row["compared"] for row in first} == {"torch.nn"} and {row["onnxruntime_ms"] for row in first} == {""}
    assert command("--T", "1", "--B", "1", "--cells", "LSTM") == 0
    second = table()
    assert [row["cell"] for row in second] == list(CELLS)
    assert [old != new for old, new in zip(first, second, strict=True)] == [False, True, False]


def test_packed(command: Callable[..., int], tmp_path: Path) -> None:
    """In rows of their own, beside those without."""
    assert command("--T", "3") == 0 and command("--T", "3", "--B", "2", "9", "--packed") == 0
    with (tmp_path / "inference-cpu.csv").open() as file:
        found = [(row["cell"], row["B"], row["contender"]) for row in csv.DictReader(file)]
    plain, packed = "fastcells-auto", "fastcells-auto, packed"
    assert found == [*((c, B, plain) for B in "12" for c in CELLS), *((c, B, packed) for B in "29" for c in CELLS)]
    with torch.no_grad():
        runs, _ = inference.prepare(TINY[0], {}, packed=True)
    layer = runs["ours"].func  # type: ignore[attr-defined]
    assert layer.packed and layer._keeper.packed.panels


def test_the_readme_shows_what_was_packed(command: Callable[..., int], tmp_path: Path) -> None:
    path = tmp_path / "inference-cpu.csv"
    assert command("--T", "3", "--B", "2", "--packed") == 0
    rows = [
        row | {"onnxruntime_ratio": 2.0, "openvino_ratio": 0.5, "nn_ratio": ratio, "ratio": 0.5}
        for row, ratio in zip(results_file.read(path), (1.0, 3.0, 4.0), strict=True)
    ]
    found = section([*rows, rows[0] | {"H": 32, "nn_ratio": 4.0, "ratio": 1.0}, rows[1] | {"contender": "other"}])
    assert "| 1 thread: T | B | GRU | LSTM | RNN |" in found
    assert "| 3 | 2 | 2.00 / 0.50 / 2.00 | 2.00 / 0.50 / 3.00 | 2.00 / 0.50 / 4.00 |" in found
    assert "0.59 (geometric mean of 4 shapes); below 0.95 in 3 of them, the worst GRU T=3 B=2 H=8 0.50" in found
    assert (tmp_path / "README.md").read_text().startswith(f"before\n{MARKS[0]}| 1 thread: T")


@pytest.mark.parametrize("case", TINY, ids=str)
def test_the_node_alone_is_the_layer(case: Case) -> None:
    pytest.importorskip("onnx")
    with torch.no_grad():
        runs, _ = inference.prepare(case, {"onnxruntime": by_definition})
    assert [*runs] == ["ours", "nn", "onnxruntime", "limit"]


@pytest.mark.parametrize("name", RUNTIMES)
@pytest.mark.parametrize("case", TINY, ids=str)
def test_a_runtime_that_is_installed(name: str, case: Case) -> None:
    if runtimes.missing(name) is not None:
        pytest.skip(str(runtimes.missing(name)))
    with torch.no_grad():
        row = inference.row_of(case, {name: RUNTIMES[name]}, rounds=2)
    assert name in str(row["compared"]) and row[f"{name}_ms"]


@pytest.mark.parametrize("what", ["input", "weights", "output"])
def test_a_runtime_that_is_given_or_computes_something_else_is_refused(
    what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnx")
    right = inference.one_node

    def other_weights(layer: torch.nn.RNNBase, x: Tensor) -> Any:
        with torch.no_grad():
            layer.weight_hh_l0[0, 0] += 1e-6
        return right(layer, x)

    def wrong(model: Any, x: Tensor, threads: int) -> Session:
        session = by_definition(model, x, threads)
        if what == "input":
            x[0, 0, 0] += 1e-6
        return Session(session.run, x, lambda: session.out() * (1.001 if what == "output" else 1.0))

    if what == "weights":
        monkeypatch.setattr(inference, "one_node", other_weights)
    with torch.no_grad(), pytest.raises(GuardError, match="relative error"):
        inference.prepare(TINY[0], {"onnxruntime": wrong})


def test_a_rest_ends_with_a_call_that_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(timing.time, "sleep", slept.append)
    calls: list[int] = []
    samples = timing.compare({"one": lambda: calls.append(1)}, rounds=3, warmup=0, inner=4, rest=0.5)
    assert slept == [0.5] * 3 and len(calls) == 3 * 5 and len(samples["one"]) == 3
