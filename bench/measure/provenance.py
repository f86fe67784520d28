"""Where a number comes from. No row of a result travels without it."""

from __future__ import annotations

import csv
import datetime
import hashlib
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from fastcells.tuning.machine import processor, version_of

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "bench" / "results"


REQUIRED = ("device", "torch", "triton", "commit", "date")


def provenance(device: torch.device) -> dict[str, str]:
    """Device, threads, versions, commit and date of a run."""
    return {
        "kind": device.type,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else processor(),
        "driver": _driver() if device.type == "cuda" else "",
        "threads": str(torch.get_num_threads()),
        "torch": torch.__version__,
        "triton": _triton(),
        "python": platform.python_version(),
        "commit": _commit(),
        "date": datetime.date.today().isoformat(),
    }


def require(row: Mapping[str, object], columns: Sequence[str] = ()) -> None:
    """Raise ValueError unless the row says where it comes from, and has all of `columns`.

    A row of a GPU also needs the driver.
    """
    needed = [*REQUIRED, *(["driver"] if row.get("kind") == "cuda" else []), *columns]
    missing = [key for key in needed if row.get(key) in (None, "")]
    if missing:
        raise ValueError(f"a result needs its provenance; missing: {', '.join(missing)} in {dict(row)}")


def write_csv(
    name: str, rows: Sequence[Mapping[str, object]], origin: Mapping[str, str] | None = None, folder: Path | None = None
) -> Path:
    """Write rows to FOLDER/NAME.csv, bench/results by default. origin: where all of them come from, if they do not say.

    Raises:
        ValueError: there is no row, or one does not say where it comes from.
    """
    rows = [{**row, **(origin or {})} for row in rows]
    if not rows:
        raise ValueError("a result needs rows")
    for row in rows:
        require(row)
    folder = folder or RESULTS
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: _digits(value) for key, value in row.items()} for row in rows)
    return path


def _digits(value: object) -> object:
    """Five significant digits: more is noise, in a file that is compared by eye."""
    return float(f"{value:.5g}") if isinstance(value, float) else value


def print_table(rows: Sequence[Mapping[str, object]]) -> None:
    """The rows as a plain table, columns aligned."""
    cells = [list(rows[0]), *([shown(value) for value in row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        print("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))


def shown(value: object) -> str:
    """A value of a table: three digits of a float, nothing for what is not known."""
    return "" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)


def origin_line(origin: Mapping[str, str]) -> str:
    """What a table was measured on, in one line."""
    return ", ".join(f"{key} {value}" for key, value in origin.items() if value and key != "kind")


def _driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


def _triton() -> str:
    version = version_of("triton")
    return f"{version} interpreted" if version != "none" and os.environ.get("TRITON_INTERPRET") == "1" else version


def _commit() -> str:
    """The commit, marked where tracked files of the code differ from it; in a copy without git, the code's own hash."""
    git = ["git", "-C", str(ROOT)]
    try:
        head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    except FileNotFoundError:
        head = ""
    if not head:
        files = sorted(path for folder in ("fastcells", "kernels", "bench") for path in (ROOT / folder).glob("**/*.py"))
        return "sha256-" + hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:12]
    command = [*git, "status", "--porcelain", "--untracked-files=no", "--", "fastcells", "kernels", "bench/*.py"]
    return head + ("+changes" if subprocess.run(command, capture_output=True, text=True).stdout.strip() else "")
