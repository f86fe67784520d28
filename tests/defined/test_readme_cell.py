"""README, "Your own cell": the block runs and prints what it says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fastcells import zoo
from tests.support.devices import OF_A_CPU

README = (Path(__file__).parents[2] / "README.md").read_text("utf-8")
SECTION = README.split("\n## Your own cell\n")[1].split("\n## ")[0]


@OF_A_CPU
def test_block_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = re.findall(r"^```python\n(.*?)^```$", SECTION, re.S | re.M)
    exec(compile(block, "README.md", "exec"), {"__name__": "readme"})
    expected = [re.split(r"\s# ", line)[1] for line in block.splitlines() if line.startswith("print(")]
    assert capsys.readouterr().out.splitlines() == expected


def test_cells_are_named() -> None:
    assert all(name in SECTION for name in zoo.CELLS)
    assert len(SECTION.splitlines()) <= 50
