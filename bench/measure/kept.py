"""The table of modelled cycles that is kept from run to run: read, renewed row by row, and compared with."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from bench.measure.cycles import NOTE

Row = dict[str, object]
KEY = ("family", "path", "kernel", "part", "rule", "exchange", "dtype", "H", "B", "target", "triton")
SLOWER = 1.05  # times as many cycles as kept are a fault


def key_of(row: Mapping[str, object]) -> tuple[str, ...]:
    """What a row is about, as text: equal for a row that has been through a file."""
    return tuple(str(row[name]) for name in KEY)


def kept_rows(path: Path) -> list[Row]:
    """The rows of a file; none if there is no file."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [dict(row) for row in csv.DictReader(file)]


def merged(kept: Sequence[Row], new: Sequence[Row], *, whole: bool = False) -> list[Row]:
    """All rows, new ones in the place of kept ones that are about the same; sorted by Triton version, then by key.

    whole: `new` is all that is to be kept of its Triton version.
    """
    replaced = {key_of(row) for row in new}
    versions = {row["triton"] for row in new} if whole else set()
    stay = [row for row in kept if key_of(row) not in replaced and row["triton"] not in versions]
    rows = [{name: row.get(name, "") for name in new[0]} for row in [*stay, *new]]
    return sorted(rows, key=lambda row: (_version(row), key_of(row)))


def _version(row: Row) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", str(row["triton"]))]


def verdict(kept: Sequence[Row], new: Sequence[Row]) -> tuple[list[str], list[str]]:
    """What is slower than it was, by 5 % or more; and which rows have nothing kept to be compared with."""
    before = {key_of(row): row for row in kept}
    slower, missing = [], []
    for row in new:
        name = " ".join(str(row[key]) for key in KEY if row[key] != "")
        old = before.get(key_of(row))
        if old is None:
            missing.append(name)
        elif float(str(row["cycles"])) >= SLOWER * float(str(old["cycles"])):
            slower.append(f"{name}: {old['cycles']} cycles at {old['commit']}, now {row['cycles']} ({NOTE})")
    return slower, missing


def check(kept: Sequence[Row], new: Sequence[Row]) -> int:
    """Say what is slower; exit status 1 if anything is, or if nothing could be compared."""
    slower, missing = verdict(kept, new)
    for name in missing:
        print(f"not in bench/results/cycles.csv: {name}")
    for line in slower:
        print(f"slower: {line}")
    print(f"{len(slower)} of {len(new) - len(missing)} rows are slower by 5 % or more; {len(missing)} are not kept")
    return 1 if slower or len(missing) == len(new) else 0
