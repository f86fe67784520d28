"""From timings to what people read: a CSV file, tables, pictures and the README's section.

    pytest bench --benchmark-json=run.json
    python -m bench.report run.json                  # bench/results/DEVICE.csv, pictures, and the README
    python -m bench.report --compare old.csv new.csv # exit status 1 if a row became slower

Rows that do not say where they come from are refused.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.cases.case import CELLS, Case, generation, lesson
from bench.measure import pictures
from bench.measure.duel import Row
from bench.measure.provenance import RESULTS, ROOT, print_table, write_csv
from bench.measure.results_file import KEY, derived, key, number, read, slug
from bench.measure.sections import replaced

COLUMNS = (
    *("mode", "cell", "T", "B", "I", "H", "dtype", "precision", "ids", "graph", "contender", "path", "ms", "nn_ms"),
    *("ratio", "limit_ratio", "us_per_step", "nn_us_per_step", "times_floor", "peak_mb", "nn_peak_mb"),
)
THRESHOLD = 0.1  # of a ratio, between two runs of the same code: what quartiles of short cases differ by


def section(rows: Sequence[Row], name: str) -> str:
    """The README's tables of one results file, in Markdown. name: of the file, without its ending."""
    origin = rows[0]
    threads = f"{origin['threads']} thread" + ("" if origin["threads"] == "1" else "s")
    where = f"{origin['device']}, {threads}, torch {origin['torch']}, commit {origin['commit']}"
    parts = [_training(rows), _alone(rows), _generation(rows)]
    parts.append(f"Medians of {origin['rounds']} rounds. {where}, {origin['date']}.")
    for picture, alt in (("speedup", "speed-up over H"), ("steps", "microseconds per step"), ("memory", "peak memory")):
        if (RESULTS / f"{name}-{picture}.svg").exists():
            parts.append(f"![{alt}](bench/results/{name}-{picture}.svg)")
    return "\n\n".join(part for part in parts if part) + "\n"


def update(readme: str, rows: Sequence[Row], name: str) -> str:
    """The README with its benchmark section written anew, if it shows this file."""
    return replaced(readme, "bench", f"bench/results/{name}.csv", section(rows, name))


def compare(before: Sequence[Row], after: Sequence[Row], threshold: float = THRESHOLD) -> list[Row]:
    """One row for each case in both: its ratio to torch.nn then and now, and a mark where it is worse.

    Ratios, not milliseconds: torch.nn ran beside each contender, so that a slower hour of the machine cancels.

    Raises:
        ValueError: the results are of different devices.
    """
    devices = {str(row["device"]) for row in [*before, *after]}
    if len(devices) > 1:
        raise ValueError(f"results of different devices say nothing about each other: {', '.join(sorted(devices))}")
    old = {key(row): row for row in before}
    rows: list[Row] = []
    for row in after:
        if (was := old.pop(key(row), None)) is None:
            continue
        change = number(row, "ratio") / number(was, "ratio")
        mark = "REGRESSION" if change < 1 - threshold else "better" if change > 1 + threshold else ""
        ratios = {"before": number(was, "ratio"), "after": number(row, "ratio"), "change": change, "mark": mark}
        rows.append({**{name: row[name] for name in KEY}, **ratios})
    # A row that is no longer there may be one that can no longer be timed.
    rows += [{**dict(zip(KEY, gone, strict=True)), **GONE} for gone in old]
    return rows


GONE: Row = {"before": None, "after": None, "change": None, "mark": "gone"}


def main() -> int:
    """Write what the options ask for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", nargs="?", type=Path, help="of pytest-benchmark (.json) or of this command (.csv)")
    parser.add_argument("--compare", nargs=2, type=Path, metavar=("BEFORE", "AFTER"))
    parser.add_argument("--threshold", type=float, default=THRESHOLD, help="how much worse a ratio may be")
    parser.add_argument("--suffix", default="", help="of the results' name, as in DEVICE-SUFFIX.csv")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where CSV and pictures go")
    parser.add_argument("--no-readme", action="store_true", help="leave README.md alone")
    options = parser.parse_args()
    if (options.file is None) == (options.compare is None):
        parser.error("give a file, or --compare with two")
    try:
        if options.compare:
            before, after = (read(path) for path in options.compare)
            return _compare(before, after, options.threshold)
        rows = derived(read(options.file))
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    print_table([{column: row[column] for column in COLUMNS} for row in rows])
    name = "-".join(filter(None, [slug(str(rows[0]["device"])), options.suffix]))
    print(f"written to {write_csv(name, rows, folder=options.out)}")
    for suffix, draw in PICTURES.items():
        print(f"written to {draw(rows, options.out / f'{name}-{suffix}.svg')}")
    if not options.no_readme:
        readme = ROOT / "README.md"
        # Through the file, whose digits are what the README's test reads.
        readme.write_text(update(readme.read_text("utf-8"), read(options.out / f"{name}.csv"), name), "utf-8")
    return 0


PICTURES = {"speedup": pictures.speedup_over_H, "steps": pictures.steps_over_H, "memory": pictures.memory}


def _compare(before: Sequence[Row], after: Sequence[Row], threshold: float) -> int:
    rows = compare(before, after, threshold)
    if not rows:
        print("the two files have no case in common", file=sys.stderr)
        return 2
    print_table(rows)
    worse = [row for row in rows if row["mark"] == "REGRESSION"]
    print(f"{len(worse)} of {len(rows)} rows are more than {threshold:.0%} slower against torch.nn than before")
    return 1 if worse else 0


def _find(rows: Sequence[Row], case: Case, contender: str = "fastcells-auto") -> Row | None:
    """The row of a case, in float32, eager."""
    wanted = {"contender": contender, "graph": False, "dtype": "float32"}
    wanted |= {name: getattr(case, name) for name in ("cell", "mode", "T", "B", "I", "H", "ids", "layers", "packed")}
    return next((row for row in rows if all(row[name] == value for name, value in wanted.items())), None)


def _training(rows: Sequence[Row]) -> str:
    found = [row for cell in CELLS if (row := _find(rows, lesson(cell)))]
    if not found:
        return ""
    head = ["layer", "fastcells, ids: ms", "torch.nn, one-hot: ms", "speed-up", "limit", "MB", "torch.nn: MB"]
    lines = [
        (row["cell"], _spread(row, ""), _spread(row, "nn_"), _times(row), _limit(row), *_megabytes(row))
        for row in found
    ]
    return _table(head, lines)


def _alone(rows: Sequence[Row]) -> str:
    cases = [Case(cell, mode) for cell in CELLS for mode in ("forward", "backward", "forward+backward")]
    found = [row for case in cases if (row := _find(rows, case))]
    if not found:
        return ""
    head = [
        "layer alone, I = H = 256",
        "runs",
        "ms",
        "torch.nn: ms",
        "speed-up",
        "limit",
        "us a step",
        "torch.nn: us a step",
    ]
    lines = [
        (
            *(f"{row['cell']} {row['mode']}", f"`{row['path']}`"),
            *(f"{number(row, column):.2f}" for column in ("ms", "nn_ms")),
            *(_times(row), _limit(row)),
            *(_microseconds(row, column) for column in ("us_per_step", "nn_us_per_step")),
        )
        for row in found
    ]
    return _table(head, lines)


def _generation(rows: Sequence[Row]) -> str:
    row = _find(rows, generation("GRU"))
    if row is None:
        return ""
    seconds = f"{number(row, 'ms') / 1e3:.2f} s against {number(row, 'nn_ms') / 1e3:.2f} s"
    return f"{row['T']} characters written by the GRU model: {seconds} with `torch.nn` on one-hots ({_times(row)})."


def _times(row: Row) -> str:
    """A speed-up; where both sides are one operator there is none to claim."""
    return "same operator" if row["path"] == "aten" else f"{number(row, 'ratio'):.2f}x"


def _limit(row: Row) -> str:
    return "" if row["limit_ratio"] is None else f"{number(row, 'limit_ratio'):.1f}x"


def _spread(row: Row, prefix: str) -> str:
    median, lower, upper = (number(row, prefix + name) for name in ("ms", "lower_ms", "upper_ms"))
    return f"{median:.1f} ({lower:.1f} to {upper:.1f})"


def _megabytes(row: Row) -> list[str]:
    """Ours and torch.nn's: allocated by torch, and resident where the system told."""
    pairs = (("peak_mb", "resident_mb"), ("nn_peak_mb", "nn_resident_mb"))
    return [" / ".join(f"{number(row, name):.0f}" for name in pair if row[name] is not None) for pair in pairs]


def _microseconds(row: Row, column: str) -> str:
    return "" if row[column] is None else f"{number(row, column):.0f}"


def _table(head: Sequence[str], lines: Sequence[Sequence[object]]) -> str:
    rule = "|" + "---|" * len(head)
    return "\n".join([f"| {' | '.join(head)} |", rule, *(f"| {' | '.join(map(str, line))} |" for line in lines)])


if __name__ == "__main__":
    sys.exit(main())
