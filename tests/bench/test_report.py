"""bench.report and bench.roofline: rows are refused, regressions marked, tables and pictures follow from the file."""

from __future__ import annotations

import csv
import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from bench import report
from bench.cases.case import CELLS, SLOPE, Case, lesson
from bench.measure import pictures
from bench.measure.duel import Row
from bench.measure.families import modelled
from bench.measure.results_file import derived, read, slug
from bench.measure.roofline import Constants, Shape, floor, load_constants
from bench.roofline import main as print_roofline

ORIGIN = {
    **{"kind": "cpu", "device": "A Processor (8)", "driver": "", "threads": "2", "torch": "2", "triton": "3"},
    **{"python": "3.11", "commit": "abc", "date": "2026-11-21"},
}


def row(case: Case, ms: float = 2.0, nn_ms: float = 6.0, **other: object) -> Row:
    times = {"ms": ms, "lower_ms": ms - 1, "upper_ms": ms + 1, "ratio": nn_ms / ms, "limit_ms": 1.0}
    nn = {"nn_ms": nn_ms, "nn_lower_ms": nn_ms - 1, "nn_upper_ms": nn_ms + 1, "limit_ratio": nn_ms}
    memory = {"peak_mb": 3.5, "nn_peak_mb": 4.5, "resident_mb": None, "nn_resident_mb": 6.5}
    run = {"contender": "fastcells-auto", "path": "recurrence", "rounds": 20, "inner": 1}
    return {**asdict(case), **run, **times, **nn, **memory, **ORIGIN, **other}


def some_rows() -> list[Row]:
    rows = [row(lesson(cell), 20.0, 50.0 + index) for index, cell in enumerate(CELLS)]
    for cell in CELLS:
        for H in (64, 256):
            rows += [row(Case(cell, "forward+backward", T=T, I=H, H=H), T / 10, T / 5) for T in SLOPE]
        rows.append(row(Case(cell, "forward"), path="aten"))
    return rows


def as_json(rows: list[Row], path: Path) -> Path:
    path.write_text(json.dumps({"benchmarks": [{"name": "x", "extra_info": r} for r in rows]}))
    return path


def run(*arguments: object, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["report", *map(str, arguments)])
    return report.main()


@pytest.mark.parametrize(
    "missing", ["device", "torch", "triton", "commit", "date", "dtype", "T", "B", "I", "H", "cell", "driver"]
)
def test_rows_without_provenance_are_refused(missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = {**row(lesson("GRU")), "kind": "cuda", "driver": "570"}
    assert read(as_json([good], tmp_path / "good.json")) == [good]
    for name, bad in (("empty", {**good, missing: ""}), ("gone", {k: v for k, v in good.items() if k != missing})):
        path = as_json([good, bad], tmp_path / f"{name}.json")
        with pytest.raises(ValueError, match=f"missing: {missing}"):
            read(path)
        assert run(path, "--out", tmp_path / "out", "--no-readme", monkeypatch=monkeypatch) == 2
    assert not (tmp_path / "out").exists()


def test_a_file_without_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no result"):
        read(as_json([], tmp_path / "none.json"))


def test_report_writes_what_it_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = as_json(some_rows(), tmp_path / "run.json")
    assert run(path, "--out", tmp_path / "out", "--no-readme", monkeypatch=monkeypatch) == 0
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        *("a-processor-8-memory.svg", "a-processor-8-speedup.svg", "a-processor-8-steps.svg", "a-processor-8.csv")
    ]
    written = read(tmp_path / "out/a-processor-8.csv")
    assert [{k: v for k, v in r.items() if k in some_rows()[0]} for r in written] == some_rows()
    assert slug("AMD EPYC") == "amd-epyc"


def test_a_step_is_the_slope_between_two_lengths() -> None:
    rows = derived(some_rows())
    long = next(r for r in rows if r["mode"] == "forward+backward" and r["T"] == SLOPE[1])
    assert long["us_per_step"] == pytest.approx(100) and long["nn_us_per_step"] == pytest.approx(200)
    short = next(r for r in rows if r["T"] == SLOPE[0])
    assert short["us_per_step"] is None and short["floor_us"] is None  # no shorter one; no GPU


def test_rows_of_a_gpu_carry_their_floor() -> None:
    case = Case("GRU", "forward", dtype="bfloat16")
    (done,) = derived([{**row(case), "kind": "cuda", "driver": "570"}])
    assert done["floor_us"] == pytest.approx(0.707, abs=0.01) and done["floor_source"] == "modelled"
    assert done["times_floor"] is None  # no second length, no time of a step
    two = [{**row(replace(case, T=T), ms=T / 1e3), "kind": "cuda", "driver": "570"} for T in SLOPE]
    assert derived(two)[1]["times_floor"] == pytest.approx(1 / 0.707, rel=0.01)
    (none,) = derived([{**row(replace(case, H=4096, I=4096)), "kind": "cuda", "driver": "570"}])
    assert none["floor_us"] is None


def test_section_shows_every_figure_and_claims_nothing_for_the_same_operator() -> None:
    text = report.section(derived(some_rows()), "nowhere")
    assert "| GRU | 20.0 (19.0 to 21.0) | 50.0 (49.0 to 51.0) | 2.50x | 50.0x | 4 | 4 / 6 |" in text
    assert "| GRU forward+backward | `recurrence` | 3.50 | 7.00 | 2.00x | 7.0x | 100 | 200 |" in text
    assert "| LSTM forward | `aten` | 2.00 | 6.00 | same operator | 6.0x |  |  |" in text
    assert all(ORIGIN[key] in text for key in ("device", "torch", "commit", "date"))
    assert "svg" not in text  # no picture was drawn under this name


def test_update_writes_its_own_section_only() -> None:
    rows = derived(some_rows())
    readme = "before\n<!-- bench: bench/results/x.csv -->\nold\n<!-- /bench -->\nafter\n"
    new = report.update(readme, rows, "x")
    assert new.startswith("before\n<!-- bench: bench/results/x.csv -->\n| layer |") and new.endswith("-->\nafter\n")
    assert "old" not in new and report.update(new, rows, "x") == new
    assert report.update(readme, rows, "another-device") == readme


def test_compare_marks_regressions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = some_rows()
    slower = [{**rows[0], "ratio": rows[0]["ratio"] * 0.85}, *rows[1:]]  # type: ignore[operator]
    before, after = as_json(rows, tmp_path / "before.json"), as_json(slower, tmp_path / "after.json")
    assert [r["mark"] for r in report.compare(rows, slower)] == ["REGRESSION"] + [""] * (len(rows) - 1)
    assert report.compare(slower, rows)[0]["mark"] == "better"
    assert report.compare(rows, rows[1:])[-1]["mark"] == "gone"
    assert run("--compare", before, after, monkeypatch=monkeypatch) == 1
    assert run("--compare", after, before, monkeypatch=monkeypatch) == 0
    assert run("--compare", before, after, "--threshold", "0.2", monkeypatch=monkeypatch) == 0
    as_json([{**r, "device": "another"} for r in rows], after)
    assert run("--compare", before, after, monkeypatch=monkeypatch) == 2


def test_a_slower_machine_is_no_regression() -> None:
    rows = some_rows()
    slow = [{**r, "ms": r["ms"] * 3, "nn_ms": r["nn_ms"] * 3} for r in rows]  # type: ignore[operator]
    assert {r["mark"] for r in report.compare(rows, slow)} == {""}


@pytest.mark.slow
def test_pictures_are_the_same_file_for_the_same_numbers(tmp_path: Path) -> None:
    rows = derived(some_rows())
    for draw in (*report.PICTURES.values(), pictures.grid):
        one, two = draw(rows, tmp_path / "one.svg"), draw(rows, tmp_path / "two.svg")
        assert one is not None and two is not None
        text = one.read_text()
        assert text == two.read_text() and "GRU" in text and len(text) < 100_000
        other = draw([{**r, "ratio": 9.0, "us_per_step": 9.0, "peak_mb": 9.0} for r in rows], tmp_path / "other.svg")
        assert other is not None and other.read_text() != text


def test_pictures_without_their_rows_are_not_drawn(tmp_path: Path) -> None:
    for draw in report.PICTURES.values():
        assert draw([row(Case("GRU", "forward"))], tmp_path / "none.svg") is None
    assert not (tmp_path / "none.svg").exists()


# gates, B, H, dtype, backward: microseconds of a step as gpu-kernels.md 2.2 gives them, Lamport and counter barrier.
PUBLISHED = [
    (Shape(3, 32, 128, "bfloat16"), 0.60, 1.11),
    (Shape(3, 32, 256, "bfloat16"), 0.71, 1.22),
    (Shape(3, 32, 256, "bfloat16", backward=True), 0.88, 1.39),
    (Shape(3, 256, 256, "bfloat16"), 0.98, 1.34),
    (Shape(3, 32, 512, "bfloat16"), 0.96, 1.40),
    (Shape(3, 32, 512, "bfloat16", backward=True), 1.25, 1.81),
    (Shape(3, 128, 512, "bfloat16", backward=True), 1.95, 2.46),
    (Shape(3, 32, 1024, "bfloat16"), 1.72, 2.10),
    (Shape(3, 128, 1024, "bfloat16"), 5.0, 5.2),
    (Shape(3, 32, 256, "tf32"), 0.86, 1.37),
    (Shape(3, 32, 512, "tf32"), 1.31, 1.82),
    (Shape(3, 32, 256, "strict"), 1.04, 1.55),
    (Shape(4, 32, 256, "bfloat16"), 0.73, 1.24),
    (Shape(4, 16, 768, "float16"), 1.14, 1.51),
    (Shape(1, 32, 256, "bfloat16"), 0.65, 1.16),
]


@pytest.mark.parametrize(("shape", "lamport", "barrier"), PUBLISHED, ids=str)
def test_roofline_reproduces_the_table_it_was_written_from(shape: Shape, lamport: float, barrier: float) -> None:
    """Within a tenth: the table is rounded to two digits, and its search over partitions was not written down."""
    assert floor(shape, "lamport", Constants())[0] == pytest.approx(lamport, rel=0.1)
    assert floor(shape, "barrier", Constants())[0] == pytest.approx(barrier, rel=0.1)


def test_roofline_says_what_does_not_fit() -> None:
    assert floor(Shape(3, 32, 2048, "tf32"), constants=Constants()) == (float("inf"), None)


def test_measured_constants_replace_the_assumed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "gpu-constants.csv"
    assert load_constants(path) == Constants() and Constants().label == "modelled"

    def write(constant: str, **other: str) -> None:
        line = {"constant": constant, "value": "540", **ORIGIN, "kind": "cuda", "driver": "570", **other}
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(line))
            writer.writeheader()
            writer.writerow(line)

    write("l2_round_trip")
    measured = load_constants(path)
    assert measured == Constants(l2_round_trip=540, measured=("l2_round_trip",))
    assert measured.label == "modelled; measured: l2_round_trip"
    shape = Shape(3, 32, 256, "bfloat16")
    assert floor(shape, constants=measured)[0] - floor(shape, constants=Constants())[0] == pytest.approx(405 / 1755)
    write("l2_round_trip", commit="")
    with pytest.raises(ValueError, match="missing: commit"):
        load_constants(path)
    write("speed_of_light")
    with pytest.raises(ValueError, match="no constant 'speed_of_light'"):
        load_constants(path)


def test_roofline_says_that_nobody_measured(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["roofline", "--cell", "GRU", "--hidden", "256", "--dtype", "tf32"])
    assert print_roofline() == 0
    printed = capsys.readouterr().out
    assert "modelled" in printed and "No GPU was timed" in printed and "0.859" in printed


def test_families_are_ranked_by_the_kept_rows_of_the_model() -> None:
    """A row stands for its batch and those above it; of several Tritons' rows the slowest counts."""

    def row(family: str, path: str, B: int, cycles: int, **changed: object) -> dict[str, object]:
        kept = {"family": family, "path": path, "kernel": "forward", "rule": "gru", "dtype": "bfloat16", "H": "256"}
        own = {"part": "", "B": str(B), "target": "sm_90", "cycles_of": "step", "cycles": str(cycles)}
        return {**kept, **own, **changed}

    rows = [
        row("triton", "split", 16, 1600),
        row("triton", "split", 16, 1700),
        row("triton", "split", 256, 9000),
        row("gluon", "gluon", 32, 950),
        row("gluon", "gluon", 32, 900, kernel="backward"),
        row("gluon", "gluon", 32, 999, part="both"),
        row("triton", "step", 16, 1, cycles_of="launch"),
        row("triton", "split", 16, 1, rule="lstm"),
        row("triton", "split", 16, 1, target="sm_80"),
    ]
    assert modelled(Shape(3, 32, 256, "bfloat16"), rows) == {"split": 1700.0, "gluon": 950.0}
    assert modelled(Shape(3, 16, 256, "bfloat16"), rows) == {"split": 1700.0}
    assert modelled(Shape(3, 512, 256, "bfloat16"), rows) == {"split": 9000.0, "gluon": 950.0}
    assert modelled(Shape(3, 32, 256, "bfloat16", backward=True), rows) == {"gluon": 900.0}
    assert modelled(Shape(3, 32, 512, "bfloat16"), rows) == {}
