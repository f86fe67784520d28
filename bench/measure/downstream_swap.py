"""One run of another package's code or tests: recurrent classes put in torch.nn's place, and what each call meets.

A child process of `bench.downstream`. `python -m bench.measure.downstream_swap SIDE MODULE PACKAGE OUT` runs the cases
that a module has for a package and saves what they returned; `pytest -p bench.measure.downstream_swap` runs a package's
own tests, with side and file in FASTCELLS_DOWNSTREAM_SIDE and FASTCELLS_DOWNSTREAM_OUT. The names of torch.nn are
changed before the package is imported, so that its base classes, its `isinstance` and its tables of classes see ours.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules import module as hooks

from fastcells import CannotRun, convert, explain
from fastcells.convert import TWINS
from fastcells.modes import traced, transformed

if TYPE_CHECKING:
    import pytest

Results = dict[str, Tensor]
Model = TypeVar("Model", bound=nn.Module)
SIDES = ("float64", "torch.nn", "fastcells", "fastcells-c", "convert")
SIDE, OUT = "FASTCELLS_DOWNSTREAM_SIDE", "FASTCELLS_DOWNSTREAM_OUT"
CALLS: Counter[str] = Counter()  # by the implementation that ran; "torch.nn" where the class was torch's


class Ready(Protocol):
    """Brings a model that a case built to the dtype and, with "convert", to the classes of the run."""

    def __call__(self, model: Model) -> Model: ...


class Ran(NamedTuple):
    """What a child saves of one case."""

    error: str  # "" if it ran
    results: Results
    calls: dict[str, int]


def swap(side: str) -> None:
    """Put our classes into torch.nn, unless `side` says torch's, and count the calls of either.

    float64 and convert build with torch.nn too: the first is the truth for cases, in the second they convert what they
    built. fastcells-c asks for the C kernels wherever they can run, at shapes where "auto" would leave a call to ATen.
    """
    if side not in SIDES:
        raise ValueError(f"side must be one of {', '.join(SIDES)}, got {side!r}")
    if side in ("fastcells", "fastcells-c"):
        for theirs, ours in TWINS.items():
            for place in (nn, nn.modules, nn.modules.rnn):
                setattr(place, theirs.__name__, ours)
    layers, in_c = (*TWINS, *TWINS.values()), side == "fastcells-c"

    def count(module: nn.Module, args: tuple[object, ...]) -> None:
        if isinstance(module, layers) and not torch.compiler.is_compiling():
            CALLS[_implementation(module, args, in_c)] += 1

    hooks.register_module_forward_pre_hook(count)


def _implementation(module: nn.Module, args: tuple[Any, ...], in_c: bool) -> str:
    if not isinstance(module, tuple(TWINS.values())):
        return "torch.nn"
    if not args:
        return "input by keyword"
    if in_c and module.impl in ("auto", "cpu"):
        module.impl = "auto" if traced() or transformed() else "cpu"  # type: ignore[assignment]
    try:
        return explain(module, args[0]).impl
    except CannotRun:
        module.impl = "auto"  # type: ignore[assignment]
        return explain(module, args[0]).impl
    except Exception as error:  # of input that the layer itself will refuse
        return type(error).__name__


def run_cases(side: str, module: str, package: str, out: Path) -> None:
    """Run `CASES[package]` of a module, in float64 if that is the side, and save a `Ran` for each.

    An exception is a result: its name and text are saved.
    """
    swap(side)
    cases: dict[str, Callable[[Ready], Results]] = importlib.import_module(module).CASES[package]
    dtype = torch.float64 if side == "float64" else torch.float32

    def ready(model: Model) -> Model:
        return (convert(model) if side == "convert" else model).to(dtype)

    ran = {}
    for name, case in cases.items():
        torch.manual_seed(0)
        CALLS.clear()
        error, results = "", Results()
        try:
            results = case(ready)
        except Exception as exception:
            error = " ".join(f"{type(exception).__name__}: {exception}".split())
        ran[name] = (error, {key: t.detach().double() for key, t in results.items()}, dict(CALLS))
    torch.save(ran, out)


def load(path: Path) -> dict[str, Ran]:
    """What `run_cases` saved."""
    return {name: Ran(*saved) for name, saved in torch.load(path).items()}


def pytest_load_initial_conftests() -> None:
    """Before any conftest.py, which may import the package."""
    swap(os.environ[SIDE])


def pytest_runtest_setup(item: pytest.Item) -> None:
    torch.manual_seed(0)
    CALLS.clear()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """A line of JSON for a test: its id, how it ended, the calls and the error's last line."""
    if report.when == "setup" and report.passed:
        return
    if report.when == "teardown" and not report.failed:
        return
    message = "" if report.longrepr is None else str(report.longrepr).strip().splitlines()[-1]
    line = json.dumps([report.nodeid, report.outcome, dict(CALLS), message[:300]])
    with Path(os.environ[OUT]).open("a") as file:
        file.write(line + "\n")


if __name__ == "__main__":
    # What runs as __main__ is a second copy of this module, and the cases import the first.
    importlib.import_module("bench.measure.downstream_swap").run_cases(*sys.argv[1:4], Path(sys.argv[4]))
