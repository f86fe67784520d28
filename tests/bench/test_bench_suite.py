"""`pytest bench` and the GPU script's parts run end to end, at shapes that say nothing about speed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import fastcells
from bench import charlm, cudnn, layers, report, stress, tune
from bench.cases.case import CELLS, SELECTIONS, Case
from bench.cases.contenders import chosen, contenders
from bench.measure.guard import GuardError
from bench.measure.provenance import RESULTS
from bench.measure.results_file import read
from fastcells.backends.cpu import native
from fastcells.dispatch import IMPLEMENTATIONS
from fastcells.kernels.triton import plan

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_suite_to_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a process of its own, as `make bench` does: JSON, then CSV, for every implementation."""
    path = tmp_path / "run.json"
    command = [sys.executable, "-m", "pytest", "bench", "--selection", "smoke", "--rounds", "2", "-k", "GRU and T3-B2"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("TRITON_INTERPRET", "PYTEST_XDIST"))}
    done = subprocess.run(
        [*command, f"--benchmark-json={path}"], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = read(path)
    own = {"fastcells-auto"} | ({"fastcells-torch", "fastcells-cpu"} if native.obstacle() is None else set())
    assert {row["contender"] for row in rows} == {*own, "cell-loop", "reference"}
    assert {row["mode"] for row in rows} >= {"forward", "backward", "forward+backward", "training step"}
    monkeypatch.setattr(sys, "argv", ["report", str(path), "--out", str(tmp_path), "--no-readme"])
    assert report.main() == 0
    (written,) = tmp_path.glob("*.csv")
    assert len(read(written)) == len(rows)


def test_every_implementation_is_a_contender() -> None:
    assert {f"fastcells-{impl}" for impl in IMPLEMENTATIONS} < set(contenders())
    for device in ("cpu", "cuda"):
        for selection in ("short", "full"):
            for case in SELECTIONS[selection](device):
                assert {f"fastcells-{impl}" for impl in IMPLEMENTATIONS} < set(chosen(case, selection))


@pytest.fixture
def results_untouched() -> None:
    before = {path: path.read_bytes() for path in RESULTS.iterdir() if path.is_file()}
    yield
    assert {path: path.read_bytes() for path in RESULTS.iterdir() if path.is_file()} == before


def run(main: object, *arguments: str, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["bench", *arguments])
    status = main()  # type: ignore[operator]
    assert isinstance(status, int)
    return status


@pytest.mark.usefixtures("results_untouched")
def test_charlm_and_layers_require(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = ("--device", "cpu", "--rounds", "5", "--steps", "3", "--batch", "2", "--vocabulary", "9", "--hidden", "4")
    assert run(charlm.main, *tiny, "--require", "0.001", monkeypatch=monkeypatch) == 0
    assert run(charlm.main, *tiny, "--require", "1000", monkeypatch=monkeypatch) == 1
    assert run(charlm.main, *tiny, "--share", "1000", monkeypatch=monkeypatch) == 1
    assert "and 1000.00 was required" in capsys.readouterr().err
    monkeypatch.setattr(layers, "SHAPES", ((3, 2, 8),))
    few = ("--device", "cpu", "--rounds", "5", "--no-write")
    assert run(layers.main, *few, "--require", "0.001", monkeypatch=monkeypatch) == 0
    assert "limit_ratio" in capsys.readouterr().out
    assert run(layers.main, *few, "--require", "1000", monkeypatch=monkeypatch) == 1


def test_layers_full_is_the_grid_that_was_asked_for() -> None:
    cases = list(layers.full())
    shapes = {(c.cell, c.mode, c.B, c.H, c.T) for c in cases}
    assert len(shapes) == len(cases) == 3 * 2 * 4 * 5 * 3
    assert {(c.I, c.ids) for c in cases} == {(H, False) for H in (64, 128, 256, 512, 1024)}


def test_layers_writes_table_and_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "SHAPES", ((3, 2, 8), (3, 2, 16)))
    monkeypatch.setattr(layers, "RESULTS", tmp_path)
    monkeypatch.setattr("bench.measure.provenance.RESULTS", tmp_path)
    assert run(layers.main, "--device", "cpu", "--rounds", "3", monkeypatch=monkeypatch) == 0
    rows = read(tmp_path / "layers-cpu.csv")
    assert {row["cell"] for row in rows} == set(CELLS) and {row["H"] for row in rows} == {8, 16, 128}
    assert "T=3, B=2" in (tmp_path / "layers-cpu.svg").read_text()


def test_stress_finds_a_kernel_that_fails_only_when_oversubscribed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = ("--device", "cpu", "--tiny")
    monkeypatch.setattr(stress, "IMPLEMENTATIONS", ("torch",))
    assert run(stress.main, *tiny, monkeypatch=monkeypatch) == 0
    printed = capsys.readouterr().out
    assert printed.count(": right") == 2 and "refused: CUDA graphs need a GPU" in printed

    class Overflows(fastcells.GRU):
        def forward(self, input: Tensor, hx: Tensor | None = None) -> tuple[Tensor, Tensor]:
            out, h = super().forward(input, hx)
            return (out * 1.01, h) if input.shape[1] > 16 else (out, h)

    monkeypatch.setattr(fastcells, "GRU", Overflows)
    assert run(stress.main, *tiny, monkeypatch=monkeypatch) == 1
    printed = capsys.readouterr().out
    assert "oversubscribed" in printed and "WRONG" in printed and "1 checks are WRONG" in printed


def test_a_check_that_hangs_ends_the_process() -> None:
    code = (
        "import sys, time; from bench import stress; stress.CHECKS = {'hangs': lambda *_: time.sleep(60)};"
        "sys.argv = ['stress', '--device', 'cpu', '--tiny', '--seconds', '0.2']; stress.main()"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=50)
    assert done.returncode != 0 and "Timeout" in done.stderr


def test_gpu_script_stays_under_nine_minutes() -> None:
    """Every part of it has a limit; CI rehearses it, here only its arithmetic is checked."""
    script = (ROOT / "bench/gpu.sh").read_text()
    assert subprocess.run(["bash", "-n", "bench/gpu.sh"], cwd=ROOT).returncode == 0
    done = subprocess.run(["bash", "bench/gpu.sh"], cwd=ROOT, env={**os.environ, "PART": "x"}, capture_output=True)
    assert done.returncode == 2 and b"PART is check, time, stress, table or tune" in done.stderr
    fixed = {name: int(seconds) for seconds, name in re.findall(r"limited (\d+) (\w+) ", script)}
    assert set(fixed) == {"verdicts", "stress", "tune", "report"}
    each, *tables = map(int, re.search(r"SECONDS_EACH:-(\d+).*?limits=\((\d+) (\d+)\)", script, re.S).groups())  # type: ignore[union-attr]
    parts = {
        "all": [each + 20, each + 15, fixed["verdicts"], fixed["stress"]],  # the check, the timing
        "table": [*tables, 15, fixed["report"]],
        "tune": [fixed["tune"]],
    }
    for part, seconds in parts.items():
        assert sum(seconds) < 9 * 60, part


def test_cudnn_table(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    options = ("--device", "cpu", "--tiny", "--rounds", "2", "--out", str(tmp_path))
    assert run(cudnn.main, *options, monkeypatch=monkeypatch) == 0
    written = (tmp_path / "cudnn.csv").read_text()
    assert "aten::gru" in written and "us_per_step" in written and torch.__version__ in written
    assert "6 cases left out" in capsys.readouterr().out  # CUDA graphs


def test_tune_changes_what_is_launched() -> None:
    before = plan.step_blocks(4)
    with tune.planned({"warps": 2, "batch": 64}):
        assert plan.step_blocks(4) == replace(before, warps=2, batch=64)
        card = plan.Device(90, 132)
        blocks, split = (plan.sequence_plan(H, 32, 3, 2, card) for H in (64, 512))
        assert isinstance(blocks, plan.Blocks) and (blocks.warps, blocks.batch) == (2, 64)
        assert isinstance(split, plan.Split) and (split.blocks.warps, split.blocks.batch) == (2, 64)
        assert isinstance(plan.sequence_plan(8192, 32, 3, 4, card), str)  # what does not fit still does not
    assert plan.step_blocks(4) == before
    with pytest.raises(ValueError, match="no warp"), tune.planned({"warp": 2}):
        pass


def test_tune_times_candidates_and_keeps_what_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    case, device = Case("GRU", "forward+backward", T=2, B=2, I=4, H=4), torch.device("cpu")
    planned = tune.time_candidate(case, "triton", {}, device, 2)
    assert planned["blocks"] == "as planned" and planned["verdict"] == "" and float(str(planned["ms"])) > 0
    broken = tune.time_candidate(case, "triton", {"batch": 3}, device, 2)  # no power of two
    assert broken["ms"] is None and broken["verdict"]
    faster = {**planned, "blocks": "warps=8", "ms": 1e-6}
    assert tune.best([planned, broken, faster]) == [planned, faster]
    assert tune.best([planned, {**planned, "blocks": "warps=8", "ms": 1e6}]) == [planned]


def test_tune_refuses_candidates_with_other_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*_: object) -> None:
        raise GuardError("relative error 1")

    monkeypatch.setattr(tune, "prepare", wrong)
    row = tune.time_candidate(Case("GRU", "forward"), "triton", {}, torch.device("cpu"), 2)
    assert row["ms"] is None and row["verdict"] == "relative error 1"
