"""The README's table of what a GPU measured, made from a file that `python -m bench.device` wrote."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bench.cases.case import CELLS
from bench.measure.sections import replaced

MODES = ("forward", "forward+backward")
TRAINING = "training step"  # of the character language model
WHAT = {"T=128": "", TRAINING: "a"}  # what comes first
SIZES = (64, 128, 256, 512, 768, 1024)  # H; others are in the file
PRECISIONS = {"": "", "tf32": " (TF32)", "strict": ""}

Row = Mapping[str, str]


def section(rows: Sequence[Row], impl: str = "gluon") -> str:
    """torch.nn's time over ours, forward and with the backward: as CUDA graphs, then called from Python."""
    origin = rows[0]
    found: dict[tuple[str, ...], dict[tuple[str, str], float]] = {}
    for row in rows:
        if row["impl"] == impl and int(row["H"]) in SIZES:
            dtype = row["dtype"] + PRECISIONS[row["precision"]]
            key = "graph" if row["graph"] == "True" else "Python", _what(row), dtype, row["H"], row["B"]
            found.setdefault(key, {})[row["cell"], row["mode"]] = float(row["ratio"])
    lines = [f"| launched by | what | dtype | H | B | {' | '.join(CELLS)} |", "|---|---|---|---|---|---|---|---|"]
    for shape in sorted(found, key=_order):
        ratios = found[shape]
        modes = (TRAINING,) if shape[1] == TRAINING else MODES
        cells = [" / ".join(_shown(ratios.get((cell, mode))) for mode in modes) for cell in CELLS]
        lines.append(f"| {' | '.join([*shape, *cells])} |")
    about = (
        f"{origin['device']}, torch {origin['torch']}, Triton {origin['triton']}, driver {origin['driver']}, commit "
        f'{origin["commit"]}, {origin["date"]}; `impl="{impl}"`, the median over {origin["rounds"]} rounds '
        "side by side. A CUDA graph shows the GPU's time; called from Python, the host's launches decide on that "
        "machine, whose processor is slow."
    )
    return "\n".join([*lines, "", about, ""])


def update(text: str, rows: Sequence[Row], path: str) -> str:
    """The text with its section made anew."""
    return replaced(text, "gpu", path, section(rows))


def _what(row: Row) -> str:
    if row["mode"] == TRAINING:
        return TRAINING
    return f"{'both directions, ' if row['bidirectional'] == 'True' else ''}T={row['T']}"


def _order(key: tuple[str, ...]) -> tuple[bool, str, str, list[int]]:
    launched_by, what, dtype, *sizes = key
    return launched_by == "Python", WHAT.get(what, what), dtype, [int(size) for size in sizes]


def _shown(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.1f}" if ratio >= 1.05 else f"{ratio:.2f}"
