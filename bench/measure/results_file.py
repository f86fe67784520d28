"""Rows of results: read from pytest-benchmark's JSON or from CSV, completed, and refused without their provenance."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Sequence
from pathlib import Path

from bench.cases.case import FIELDS, Case
from bench.measure import roofline
from bench.measure.duel import Row
from bench.measure.provenance import require

TEXT = {"cell", "mode", "dtype", "precision", "contender", "path", "kind", "device", "driver", "torch", "triton"}
TEXT |= {"threads", "python", "commit", "date", "floor_source", "fastest", "compared"}
KEY = (*FIELDS, "contender")
NEEDED = ("cell", "mode", "T", "B", "I", "H", "dtype", "contender", "ms")


def read(path: Path) -> list[Row]:
    """The rows of a .json file of pytest-benchmark or of a .csv file of bench.report.

    Raises:
        ValueError: there is no row, or one lacks its shape, its dtype or its provenance.
    """
    if path.suffix == ".json":
        rows: list[Row] = [benchmark["extra_info"] for benchmark in json.loads(path.read_text())["benchmarks"]]
    else:
        with path.open(newline="") as file:
            rows = [{key: _parsed(key, text) for key, text in row.items()} for row in csv.DictReader(file)]
    if not rows:
        raise ValueError(f"{path} holds no result")
    for row in rows:
        require(row, NEEDED)
    return rows


def key(row: Row) -> tuple[object, ...]:
    """What a row measures: the case and the contender."""
    return tuple(row[name] for name in KEY)


def case_of(row: Row) -> Case:
    """The case that a row measures."""
    return Case(**{name: row[name] for name in FIELDS})  # type: ignore[arg-type]


def number(row: Row, name: str) -> float:
    """A column that holds a number."""
    value = row[name]
    assert isinstance(value, int | float), f"{name} is {value!r}"
    return float(value)


def derived(rows: Sequence[Row]) -> list[Row]:
    """The rows, with microseconds per time step and the floor of a GPU.

    A step's time is the slope to the next shorter T of the same case, so that what a call costs once drops out;
    empty where no shorter T was timed.
    """
    shorter: dict[tuple[object, ...], list[Row]] = {}
    for row in rows:
        shorter.setdefault(_but_T(row), []).append(row)
    constants = roofline.load_constants()
    completed = []
    for row in rows:
        before = [r for r in shorter[_but_T(row)] if number(r, "T") < number(row, "T")]
        steps: dict[str, object] = {"us_per_step": None, "nn_us_per_step": None}
        steps |= {"floor_us": None, "times_floor": None, "floor_source": ""}
        if before:
            previous = max(before, key=lambda r: number(r, "T"))
            length = number(row, "T") - number(previous, "T")
            for column, milliseconds in (("us_per_step", "ms"), ("nn_us_per_step", "nn_ms")):
                steps[column] = (number(row, milliseconds) - number(previous, milliseconds)) * 1e3 / length
        if row["kind"] == "cuda":
            steps["floor_us"] = roofline.case_floor(case_of(row), constants)
            steps["floor_source"] = constants.label
            if before and isinstance(steps["floor_us"], float) and isinstance(steps["us_per_step"], float):
                steps["times_floor"] = steps["us_per_step"] / steps["floor_us"]
        completed.append({**row, **steps})
    return completed


def slug(device: str) -> str:
    """A device's name as a file's."""
    return re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")


def _but_T(row: Row) -> tuple[object, ...]:
    return tuple(row[name] for name in KEY if name != "T")


def _parsed(column: str, text: str) -> object:
    if column in TEXT:
        return text
    if text in ("True", "False"):
        return text == "True"
    if text == "":
        return None
    return int(text) if re.fullmatch(r"-?\d+", text) else float(text)
