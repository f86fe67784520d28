"""Time the README's recipes of gradients beside the loops that they stand in for, float32.

    python -m bench.recipes            # the README's table; writes bench/results/recipes-cpu.csv

A block is timed as it is printed there, its layer and input included. All contenders run in turn in each round.
"""

from __future__ import annotations

import argparse
import copy
import sys
from functools import partial

import torch

import fastcells
from bench.cases.recipes import Recipe, recipes
from bench.measure.guard import must_agree
from bench.measure.provenance import origin_line, print_table, provenance, write_csv
from bench.measure.timing import compare, ratio, summary


def row_of(recipe: Recipe, rounds: int) -> dict[str, object]:
    """Milliseconds of a recipe and of its contenders, and how many times one takes the other's."""
    names = recipe.run()
    ours, theirs = names["gru"], fastcells.to_torch(copy.deepcopy(names["gru"]))
    must_agree(recipe.result(names), recipe.loop(names, theirs), 1e-4)
    samples = compare(
        {
            "recipe": recipe.run,
            "loop": partial(recipe.loop, names, ours),
            "loop of torch.nn": partial(recipe.loop, names, theirs),
            "step": partial(recipe.step, names, ours),
        },
        rounds=rounds,
    )
    milliseconds = {f"{name}, ms": summary(times).median for name, times in samples.items()}
    return {
        "recipe": recipe.name,
        "shape": " ".join(map(str, names["x"].shape)),
        "over": recipe.over,
        **milliseconds,
        "of the loop": ratio(samples["recipe"], samples["loop"]),
        "of torch.nn's": ratio(samples["recipe"], samples["loop of torch.nn"]),
        "steps": ratio(samples["recipe"], samples["step"]),
        "rounds": rounds,
    }


def main() -> int:
    """Print the table and write it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--no-write", action="store_true", help="leave bench/results alone")
    options = parser.parse_args()
    rows = [row_of(recipe, options.rounds) for recipe in recipes()]
    origin = provenance(torch.device("cpu"))
    print(origin_line(origin))
    print_table(rows)
    if not options.no_write:
        print(f"written to {write_csv('recipes-cpu', rows, origin)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
