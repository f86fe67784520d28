"""README, "Gradients of gradients, and for each sample": each block runs and finds what a loop of `torch.nn` finds, and
the table of what they cost is what was measured.
"""

from __future__ import annotations

import copy
import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import fastcells
from bench.cases.recipes import README, RECIPES, Recipe, blocks, recipes
from tests.support.accuracy import assert_equal_to_rounding

SHOWN = {recipe.name: recipe for recipe in recipes()}
RESULTS = Path(__file__).parents[2] / "bench/results/recipes-cpu.csv"


@pytest.fixture
def double() -> Iterator[None]:
    """The blocks name no dtype."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def test_all_are_shown_in_ten_lines() -> None:
    assert list(SHOWN) == list(RECIPES)
    for recipe in SHOWN.values():
        lines = README.read_text("utf-8").split(f"```python\n# {recipe.name}: ")[1].split("```")[0].splitlines()
        assert len(lines) - 1 <= 10


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("recipe", SHOWN.values(), ids=SHOWN)
def test_as_a_loop_of_torch(recipe: Recipe) -> None:
    names = recipe.run()
    theirs = fastcells.to_torch(copy.deepcopy(names["gru"]))
    assert type(theirs) is torch.nn.GRU and theirs.weight_hh_l0.dtype == torch.float64
    expected = recipe.loop(names, theirs)
    assert all(e.abs().max() > 1e-9 for e in expected), "a gradient that is zero shows nothing"
    assert_equal_to_rounding(recipe.result(names), expected)


@pytest.mark.parametrize("name", ["weights", "ONNX"])
def test_weights_of_other_libraries(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """README, "Weights of other libraries"."""
    if name == "ONNX":
        pytest.importorskip("onnx", reason="of the extra onnx")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(blocks()[name], names)
    assert isinstance(names["gru"], fastcells.GRU) and names["gru"].reset_after == (name != "ONNX")


def test_the_table_is_what_was_measured() -> None:
    with RESULTS.open() as file:
        rows = list(csv.DictReader(file))
    assert [row["recipe"] for row in rows] == list(SHOWN)
    for row in rows:
        cells = [row["recipe"], row["shape"], row["over"]]
        cells += [f"{float(row[name]):.2g}" for name in ("of the loop", "of torch.nn's", "steps")]
        assert f"\n| {' | '.join(cells)} |\n" in README.read_text("utf-8")
    first = rows[0]
    assert f"{first['device']}, {first['threads']} thread, torch {first['torch']}, commit {first['commit']}," in (
        README.read_text("utf-8")
    )
