"""The command that prints the executed kernels: what counts as wrong, and that it runs what is asked for."""

from __future__ import annotations

import json

import pytest

from tests.support.commands import Command

pytest.importorskip("triton", reason="the kernels are written in Triton")

ROWS: list[tuple[dict[str, object], bool]] = [
    ({}, False),
    ({"error": 3e-3}, True),
    ({"error": float("inf")}, True),
    ({"races": 1}, True),
    ({"fault": "no end", "error": "", "races": "", "limit": ""}, True),
]


def test_what_counts_as_wrong(command: Command) -> None:
    right = {"fault": "", "races": 0, "error": 1e-3, "limit": 2e-3}
    rows = json.dumps([right | changed for changed, _ in ROWS])
    done = command("-c", f"import json; from bench.ptx import wrong; print([wrong(r) for r in json.loads({rows!r})])")
    assert done.stdout.strip() == str([expected for _, expected in ROWS]), done.stderr


@pytest.mark.slow
def test_the_command_runs_the_cases_asked_for(command: Command) -> None:
    asked = ["-m", "bench.ptx", "--jobs", "1", "--path", "sequence", "--dtype", "bfloat16", "--target", "90"]
    done = command(*asked, "--rule", "rnn_tanh")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "sequence_backward" in done.stdout and "0 of 6 rows are not right" in done.stdout
    nothing = command(*asked, "--rule", "no such rule")
    assert nothing.returncode == 1 and "no such case" in nothing.stdout
