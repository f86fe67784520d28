"""The process whose forks run the benches' commands, one for each test file that asks."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.commands import Command, commands


@pytest.fixture(scope="session")
def command() -> Iterator[Command]:
    """command("-m", "bench.cycles"): as subprocess.run of Python does, without its imports."""
    with commands() as run:
        yield run
