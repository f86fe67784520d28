"""Pictures of results, as SVG: the same numbers give the same file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bench.cases.case import CELLS, Case
from bench.measure.duel import Row
from bench.measure.results_file import number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS = {"GRU": "#1b6ca8", "LSTM": "#c1440e", "RNN": "#3a7d44"}


def speedup_over_H(rows: Sequence[Row], path: Path) -> Path | None:
    """How many times faster than torch.nn, over H, with the line where nothing is gained. None without such rows."""
    chosen = _over_H(rows)
    if not chosen:
        return None
    figure = _figure(6.4, 3.6)
    axes = figure.subplots()
    for cell in CELLS:
        points = [row for row in chosen if row["cell"] == cell]
        paths = sorted({str(row["path"]) for row in points})  # "aten" is torch.nn's own operator
        _line(axes, points, "ratio", COLORS[cell], "-", f"{cell} ({', '.join(paths)})")
        _line(axes, points, "limit_ratio", COLORS[cell], ":", f"{cell}, if only the matmuls took time")
    _crossover(axes)
    axes.set(xlabel="H", ylabel="times as fast as torch.nn", title=_title(chosen[0]))
    _scale(axes, chosen)
    axes.legend(fontsize=7, frameon=False)
    return _save(figure, path)


def steps_over_H(rows: Sequence[Row], path: Path) -> Path | None:
    """Microseconds of one more time step over H, ours and torch.nn's, and a GPU's floor. None without such rows."""
    chosen = [row for row in _over_H(rows) if row.get("us_per_step") and min(_steps(row)) > 0]  # noise may say less
    if not chosen:
        return None
    figure = _figure(6.4, 3.6)
    axes = figure.subplots()
    for cell in CELLS:
        points = [row for row in chosen if row["cell"] == cell]
        _line(axes, points, "us_per_step", COLORS[cell], "-", f"{cell}, fastcells")
        _line(axes, points, "nn_us_per_step", COLORS[cell], "--", f"{cell}, torch.nn")
        _line(axes, points, "floor_us", COLORS[cell], ":", f"{cell}, floor ({chosen[0].get('floor_source')})")
    axes.set(xlabel="H", ylabel="microseconds a time step", title=_title(chosen[0]))
    _scale(axes, chosen)
    axes.set_yscale("log")
    axes.legend(fontsize=7, frameon=False)
    return _save(figure, path)


def memory(rows: Sequence[Row], path: Path) -> Path | None:
    """Peak memory of a training step, ours and torch.nn's. None without such rows.

    What the system handed out, where that was measured: torch's allocator does not see what C keeps between calls.
    """
    first = {cell: [row for row in rows if row["cell"] == cell and _is_lesson(row)] for cell in CELLS}
    chosen = {cell: found[0] for cell, found in first.items() if found}
    if not chosen:
        return None
    resident = all(row[name] is not None for row in chosen.values() for name in ("resident_mb", "nn_resident_mb"))
    column, said = ("resident_mb", "handed out by the system") if resident else ("peak_mb", "allocated by torch")
    figure = _figure(6.4, 2.6)
    axes = figure.subplots()
    for index, (cell, row) in enumerate(chosen.items()):
        axes.barh(index - 0.2, number(row, column), 0.38, color=COLORS[cell])
        axes.barh(index + 0.2, number(row, f"nn_{column}"), 0.38, color=COLORS[cell], alpha=0.4)
    axes.set_yticks(range(len(chosen)), chosen)
    axes.invert_yaxis()
    axes.set(
        xlabel=f"MB {said} at the peak of a training step; pale: torch.nn on one-hots",
        title=_title(next(iter(chosen.values()))),
    )
    return _save(figure, path)


def grid(rows: Sequence[Row], path: Path) -> Path:
    """bench.layers' grid: how many times faster than torch.nn over H, a line for each T and B."""
    modes = list(dict.fromkeys(str(row["mode"]) for row in rows if row["mode"] != "cell step"))
    figure = _figure(9.0, 2.8 * len(modes))
    panels = figure.subplots(len(modes), len(CELLS), sharex=True, squeeze=False)
    for mode, line in zip(modes, panels, strict=True):
        for cell, axes in zip(CELLS, line, strict=True):
            found = [row for row in rows if row["mode"] == mode and row["cell"] == cell]
            lines = sorted({(number(row, "T"), number(row, "B")) for row in found})
            for index, (T, B) in enumerate(lines):
                points = [row for row in found if (row["T"], row["B"]) == (T, B)]
                shade = str(0.7 * index / max(1, len(lines) - 1))
                _line(axes, points, "ratio", shade, "-", f"T={T:.0f}, B={B:.0f}")
            _crossover(axes)
            axes.set_title(f"{cell}, {mode}", fontsize=8)
            _scale(axes, rows)
    panels[-1][0].set_xlabel("H")
    panels[0][0].set_ylabel("times as fast as torch.nn")
    panels[0][-1].legend(fontsize=5, frameon=False)
    return _save(figure, path)


def _over_H(rows: Sequence[Row]) -> list[Row]:
    """What `auto` does forward and backward at the lesson's T and B, over H; one dtype, eager."""
    chosen = [
        row
        for row in rows
        if row["contender"] == "fastcells-auto"
        and row["I"] == row["H"]
        and _same(row, Case("", "forward+backward"), ("mode", "T", "B", "layers", "bidirectional", "packed", "graph"))
    ]
    return [row for row in chosen if (row["dtype"], row["precision"]) == (chosen[0]["dtype"], chosen[0]["precision"])]


def _is_lesson(row: Row) -> bool:
    return row["contender"] == "fastcells-auto" and _same(row, Case("", "training step"), ("mode", "T", "B", "graph"))


def _same(row: Row, case: Case, names: Sequence[str]) -> bool:
    return all(row[name] == getattr(case, name) for name in names)


def _line(axes: Axes, rows: Sequence[Row], column: str, color: str, style: str, label: str) -> None:
    points = sorted((number(row, "H"), number(row, column)) for row in rows if row.get(column) is not None)
    if points:
        axes.plot(*zip(*points, strict=True), style, marker=".", color=color, label=label, linewidth=1.2)


def _steps(row: Row) -> tuple[float, float]:
    return number(row, "us_per_step"), number(row, "nn_us_per_step")


def _scale(axes: Axes, rows: Sequence[Row]) -> None:
    sizes = sorted({number(row, "H") for row in rows})
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [f"{H:.0f}" for H in sizes])


def _crossover(axes: Axes) -> None:
    axes.axhline(1.0, color="black", linewidth=0.8)
    axes.set_ylim(bottom=0)


def _title(row: Row) -> str:
    shape = f"{row['mode']}, T={row['T']}, B={row['B']}, {row['dtype']} {row['precision'] or ''}".strip()
    return f"{shape}\n{row['device']}, torch {row['torch']}, {row['commit']}, {row['date']}"


def _figure(width: float, height: float) -> Figure:
    import matplotlib

    matplotlib.rcParams.update({"svg.hashsalt": "fastcells", "svg.fonttype": "none", "font.size": 8})
    from matplotlib.figure import Figure

    return Figure((width, height), layout="constrained")


def _save(figure: Figure, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None, "Creator": None})
    return path
