"""The README's tables of inference beside other runtimes, made from a file that `python -m bench.inference` wrote."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import product
from statistics import geometric_mean

from bench.cases.case import CELLS
from bench.measure.duel import Row
from bench.measure.results_file import number
from bench.measure.sections import replaced

BESIDE = ("onnxruntime", "openvino", "nn")
PACKED = "fastcells-auto, packed"
TOLERATED = 0.95  # of the fastest


def section(rows: Sequence[Row]) -> str:
    """Their time over ours with packed weights, geometric means over H, for each number of threads, T and B."""
    rows = [row for row in rows if row["contender"] == PACKED]
    if not rows:
        return ""
    origin, parts = rows[0], []
    for threads in sorted({str(row["threads"]) for row in rows}, key=int):
        here = [row for row in rows if row["threads"] == threads]
        head = (f"{threads} thread{'' if threads == '1' else 's'}: T", "B", *CELLS)
        lines = [_line(head), _line(["---"] * len(head))]
        for T, B in product(*(sorted({int(number(row, letter)) for row in here}) for letter in "TB")):
            there = [row for row in here if (row["T"], row["B"]) == (T, B)]
            lines.append(_line([T, B, *(_ratios([row for row in there if row["cell"] == cell]) for cell in CELLS)]))
        parts += ["\n".join(lines), _summary(here)]
    widths = sorted({int(number(row, "H")) for row in rows})
    parts.append(
        f"Each: ONNX Runtime's / OpenVINO's / `torch.nn`'s time over ours, geometric means over H of {widths[0]} to "
        f"{widths[-1]}. {origin['device']}, torch {origin['torch']}, {str(origin['compared']).partition(', ')[2]}, "
        f"commit {origin['commit']}, {origin['date']}."
    )
    return "\n\n".join(parts) + "\n"


def _line(fields: Iterable[object]) -> str:
    return f"| {' | '.join(map(str, fields))} |"


def update(text: str, rows: Sequence[Row], path: str) -> str:
    """The text with its section made anew."""
    return replaced(text, "inference", path, section(rows))


def _ratios(rows: Sequence[Row]) -> str:
    """Of each that ran beside all of these rows."""
    found = []
    for who in BESIDE if rows else ():
        there = all(row[f"{who}_ratio"] is not None for row in rows)
        found.append(f"{geometric_mean(number(row, f'{who}_ratio') for row in rows):.2f}" if there else "-")
    return " / ".join(found)


def _summary(rows: Sequence[Row]) -> str:
    """How many shapes are slower than the fastest of the others, and the worst ones."""
    ordered = sorted(rows, key=lambda row: number(row, "ratio"))
    slower = sum(number(row, "ratio") < TOLERATED for row in rows)
    worst = ", ".join(f"{r['cell']} T={r['T']} B={r['B']} H={r['H']} {number(r, 'ratio'):.2f}" for r in ordered[:3])
    mean = geometric_mean(number(row, "ratio") for row in rows)
    return (
        f"Against the fastest of the three {mean:.2f} (geometric mean of {len(rows)} shapes); below {TOLERATED} in "
        f"{slower} of them, the worst {worst}."
    )
