"""Where a number comes from. No row of a result travels without it."""

from __future__ import annotations

import csv
import datetime
import importlib.metadata
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path

import torch

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "bench" / "results"


def provenance(device: torch.device) -> dict[str, str]:
    """Device, threads, versions, commit and date of a run."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "driver": _driver() if device.type == "cuda" else "",
        "threads": str(torch.get_num_threads()),
        "torch": torch.__version__,
        "triton": _version("triton"),
        "python": platform.python_version(),
        "commit": _commit(),
        "date": datetime.date.today().isoformat(),
    }


def write_csv(name: str, rows: Sequence[dict[str, object]], origin: dict[str, str]) -> Path:
    """Write rows, each with its provenance, to bench/results/NAME.csv.

    Raises:
        ValueError: there is no row, or the provenance lacks device, torch, commit or date.
    """
    missing = [key for key in ("device", "torch", "commit", "date") if not origin.get(key)]
    if missing or not rows:
        raise ValueError(f"a result needs rows and provenance; rows: {len(rows)}, missing: {missing}")
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0], *origin])
        writer.writeheader()
        writer.writerows({**row, **origin} for row in rows)
    return path


def print_table(rows: Sequence[dict[str, object]]) -> None:
    """The rows as a plain table, columns aligned."""
    cells = [list(rows[0]), *([f"{v:.3g}" if isinstance(v, float) else str(v) for v in row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        print("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _commit() -> str:
    """The commit, marked where tracked files of the code differ from it."""
    git = ["git", "-C", str(ROOT)]
    head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    command = [*git, "status", "--porcelain", "--untracked-files=no", "--", "fastcells", "kernels", "bench/*.py"]
    return head + ("+changes" if subprocess.run(command, capture_output=True, text=True).stdout.strip() else "")
