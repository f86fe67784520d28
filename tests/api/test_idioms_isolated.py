"""Wrong inputs and ambient state: what torch.nn does, and no input ends the process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.idiom_isolated import TABLE

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def results() -> dict[str, str]:
    """By idiom: "" or what is wrong. A process that ends is started again behind the idiom it was in."""
    found: dict[str, str] = {}
    for _ in range(5):
        try:
            done = subprocess.run(
                [sys.executable, "-m", "tests.support.idiom_isolated", str(len(found))], cwd=ROOT, capture_output=True,
                timeout=120, env={**os.environ, "PYTHONPATH": str(ROOT)},
            )  # fmt: skip
            lines, ended = (
                done.stdout,
                done.returncode and f"the process ended with {done.returncode}: {done.stderr[:2000]!r}",
            )
        except subprocess.TimeoutExpired as late:  # a broken heap can also hang
            lines, ended = late.stdout or b"", "the process hangs"
        found.update(json.loads(line) for line in lines.splitlines() if line.endswith(b"]"))
        if ended:
            found[list(found)[-1] if found else "start"] = ended
    return {name: found.get(name, "not run: the process ended too often before") for name in TABLE}


@pytest.mark.parametrize("name", TABLE)
def test_isolated(results: dict[str, str], name: str) -> None:
    assert not results[name], results[name]
