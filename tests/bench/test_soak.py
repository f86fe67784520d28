"""Memory over time, the short version: bench/soak.py, and that it finds a leak. `make soak` runs thousands of steps."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from fastcells.backends.cpu import native

if not Path("/proc/self/statm").exists():
    pytest.skip("no /proc: resident memory cannot be read here", allow_module_level=True)

pytestmark = [pytest.mark.slow, pytest.mark.skipif(native.obstacle() is not None, reason=str(native.obstacle()))]


def soak(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bench.soak", *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=Path(__file__).parents[2])


def test_memory_stays_where_it_is() -> None:
    done = soak("--steps", "150")
    assert done.returncode == 0 and "within bounds" in done.stdout, done


def test_a_leak_is_found() -> None:
    done = soak("--steps", "100", "--leak", str(800 << 10))
    assert done.returncode == 1 and "too much memory: growth, left" in done.stdout, done
