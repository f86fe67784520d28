"""Options of `pytest bench`: which cases, which contenders, on which device."""

from __future__ import annotations

import pytest
import torch

from bench.cases import SELECTIONS
from bench.contenders import SHORT, contenders


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("fastcells")
    group.addoption("--selection", choices=tuple(SELECTIONS), default="short", help="which cases of bench/cases.py")
    group.addoption("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    group.addoption("--contenders", help="names, separated by commas (default: those that need no compilation; all)")
    group.addoption("--rounds", type=int, default=20, help="measurements of each contender, at least 2")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    option = metafunc.config.getoption
    if "contender" in metafunc.fixturenames:
        selection = option("--selection")
        named = option("--contenders")
        names = named.split(",") if named else SHORT if selection != "full" else tuple(contenders())
        unknown = set(names) - set(contenders())
        if unknown:
            raise pytest.UsageError(f"no contender is called {', '.join(unknown)}; there are {', '.join(contenders())}")
        cases = list(SELECTIONS[selection](torch.device(option("--device")).type))
        metafunc.parametrize("case", cases, ids=str, scope="session")
        metafunc.parametrize("contender", names)


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.config.getoption("--device"))


@pytest.fixture(scope="session")
def rounds(request: pytest.FixtureRequest) -> int:
    return max(2, request.config.getoption("--rounds"))
