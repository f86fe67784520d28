"""The benches of the trainer run end to end; what they require is required."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow


def run(module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", module, *arguments], capture_output=True, text=True, timeout=250)


def test_busy() -> None:
    done = run("bench.busy", "--spinning", "1", "--rounds", "1", "--epochs", "2", "--require", "1e-9")
    assert done.returncode == 1, done.stderr
    assert "one thread" in done.stdout and "1 processes spin beside it: the default takes" in done.stdout


def test_corpus() -> None:
    done = run("bench.corpus", "--mb", "1", "--require", "1000", "1000")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[:5] == ["text_mb", "seconds", "cpu", "mb", "1"] and "written" not in done.stdout
    done = run("bench.corpus", "--mb", "1", "--require", "1000", "0.001")
    assert done.returncode == 1 and "more than required" in done.stderr


def test_loss() -> None:
    small = ["--device", "cpu", "--rows", "140", "--hidden", "32", "--vocabulary", "30", "--rounds", "3"]
    done = run("bench.loss", *small)
    assert done.returncode == 0 and "nn_peak_mb" in done.stdout, done.stderr
    done = run("bench.loss", *small, "--require", "1e9")
    assert done.returncode == 1 and "was required" in done.stderr
