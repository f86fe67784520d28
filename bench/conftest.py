"""Options of `pytest bench`: which cases, which contenders, on which device."""

from __future__ import annotations

import pytest
import torch

from bench.cases.case import SELECTIONS
from bench.cases.contenders import chosen, contenders


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("fastcells")
    group.addoption("--selection", choices=tuple(SELECTIONS), default="short", help="which of bench.cases.case's cases")
    group.addoption("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    group.addoption("--contenders", help="names, separated by commas")
    group.addoption("--rounds", type=int, default=20, help="measurements of each contender, at least 2")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    option = metafunc.config.getoption
    if "contender" in metafunc.fixturenames:
        selection = option("--selection")
        named = option("--contenders")
        names = named.split(",") if named else []
        unknown = set(names) - set(contenders())
        if unknown:
            raise pytest.UsageError(f"no contender is called {', '.join(unknown)}; there are {', '.join(contenders())}")
        cases = SELECTIONS[selection](torch.device(option("--device")).type)
        pairs = [(case, name) for case in cases for name in names or chosen(case, selection)]
        metafunc.parametrize(("case", "contender"), pairs, ids=lambda value: str(value))


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.config.getoption("--device"))


@pytest.fixture(scope="session")
def rounds(request: pytest.FixtureRequest) -> int:
    return max(2, request.config.getoption("--rounds"))


def pytest_benchmark_update_json(output_json: dict[str, list[dict[str, object]]]) -> None:
    """Leave out what was interrupted before it had a result."""
    output_json["benchmarks"] = [b for b in output_json["benchmarks"] if b["extra_info"]]
