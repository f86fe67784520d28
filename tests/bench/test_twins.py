"""Derived rules compile to as many instructions as those by hand; one that does not is said so."""

from __future__ import annotations

import pytest

from tests.support.commands import Command

pytestmark = pytest.mark.slow

pytest.importorskip("triton", reason="the kernels are written in Triton")

WITH_ANOTHER_TWIN = """
import sys
from bench import twins
twins.TWINS["rnn_tanh"] = "EveryOperator"
sys.argv = ["twins", "--jobs", "1", "--rule", "rnn_tanh", "--path", "sequence", "--dtype", "bfloat16"]
from concurrent.futures import ThreadPoolExecutor
twins.ProcessPoolExecutor = ThreadPoolExecutor
sys.exit(twins.main())
"""


@pytest.mark.parametrize("path", ["split", "gluon"])
def test_as_many_instructions(path: str, command: Command) -> None:
    rules = ("--rule", "gru", "--rule", "lstm")
    done = command("-m", "bench.twins", "--jobs", "1", *rules, "--path", path, "--dtype", "bfloat16")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "0 of 4 derived kernels have more than 1.1 times the instructions" in done.stdout


def test_more_instructions_are_seen(command: Command) -> None:
    done = command("-c", WITH_ANOTHER_TWIN)
    assert done.returncode == 1, done.stderr[-2000:]
    assert "2 of 2 derived kernels have more than 1.1" in done.stdout
