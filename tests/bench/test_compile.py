"""Kernels compile for a GPU that this machine need not have, and the compiler's figures are read rightly."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

pytest.importorskip("triton", reason="the kernels are written in Triton")

ROOT = Path(__file__).parents[2]
# `TRITON_INTERPRET=1`, which the other tests need, would leave nothing to compile: a process of its own.
ENVIRONMENT = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, cwd=ROOT, env=ENVIRONMENT)


# Each in a fork of one process, which has imported triton once: what a fault changes is gone with the fork.
COMPILED = """
import json, os, sys
from dataclasses import replace
from bench import compile
from fastcells.kernels.triton import launch_split, plan
for name, case, fault in json.loads(sys.argv[1]):
    print(name, end=": ", flush=True)
    if os.fork() == 0:
        exec(fault)
        rows = compile.compile_case(eval(f"compile.Case({case})"))
        print(len(rows), "kernels", [fault for row in rows for fault in compile.faults(row)], flush=True)
        os._exit(0)
    os.wait()
"""


LESS_MEMORY = """
blocks = plan.sequence_blocks(128, 3, 2, 90)
plan.sequence_blocks = lambda *_, **__: blocks
plan.SHARED_MEMORY[90] = 1 << 10
"""
MORE_WARPS = """
blocks = replace(plan.sequence_blocks(128, 3, 2, 90), warps=32)
plan.sequence_plan = lambda *_, **__: blocks
"""


NOT_COOPERATIVE = """
options = launch_split._options
launch_split._options = lambda split: options(split) | {"launch_cooperative_grid": False}
"""
REPEATING_WARPS = """
blocks = plan.Blocks(16, 32, 256, 8, 1, "")
plan.split_plan = lambda *_, **__: plan.Split(blocks, 16, "poll")
"""
GLUON_OPTIONS = """
options = compile.launch_gluon._arguments
compile.launch_gluon._arguments = lambda *given: options(*given) | {changed}
"""
FEW_REGISTERS = "plan.Blocks.registers = property(lambda self: 48)"
SEQUENCE = '"sequence", "gru", "bfloat16", 128, 90'
SPLIT = '"split", "gru", "bfloat16", 256, 90, 32, "poll"'
GLUON = '"gluon", "gru", "bfloat16", 256, 90'
CASES = {  # name: the case, what is done to it, the fault that is found
    "sequence": (SEQUENCE, "", "[]"),
    "few registers": (SEQUENCE, FEW_REGISTERS, "spills"),
    "little shared memory": (SEQUENCE, LESS_MEMORY, "bytes of shared memory"),
    "too many warps": (SEQUENCE, MORE_WARPS, "expected"),
    "split": (SPLIT, "", "[]"),
    "few registers, split": (SPLIT, FEW_REGISTERS, "spills"),
    "too many warps, split": (SPLIT, REPEATING_WARPS, "expected"),
    "not cooperative": (SPLIT, NOT_COOPERATIVE, "need a cooperative launch"),
    "Gluon": (GLUON, "", "2 kernels []"),
    "few registers, Gluon": (GLUON, GLUON_OPTIONS.replace("{changed}", "{'maxnreg': 96}"), "spills"),
    "not cooperative, Gluon": (
        GLUON,
        GLUON_OPTIONS.replace("{changed}", "{'launch_cooperative_grid': False}"),
        "need a cooperative launch",
    ),
    # The tightest of each path; `make compile ARGS=--quick`, in CI, compiles all of them for every target.
    "odd rows": ('"split", "lstm", "bfloat16", 251, 90, 32, "poll"', "", "2 kernels []"),
    "second product": ('"step", "gru_reset_before", "bfloat16", 256, 90', "", "[]"),
    "resets": ('"sequence", "gru", "float32", 128, 90, 4096, resets=True', "", "2 kernels []"),
    "resets, split": ('"split", "lstm", "bfloat16", 512, 90, 32, "poll", resets=True', "", "2 kernels []"),
    "resets, step": ('"step", "gru_reset_before", "bfloat16", 256, 90, resets=True', "", "[]"),
    "float32": ('"sequence", "rnn_relu", "float32", 128, 90', "", "2 kernels []"),
}


@pytest.fixture(scope="module")
def compiled() -> str:
    given = json.dumps([(name, case, fault) for name, (case, fault, _) in CASES.items()])
    done = python("-c", COMPILED, given)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.parametrize("name", CASES)
def test_faults_are_found_and_no_others(name: str, compiled: str) -> None:
    """No spills, shared memory within limits, as many matrix instructions as there is work; or what was planted."""
    line = next(line for line in compiled.splitlines() if line.startswith(f"{name}: "))
    assert "kernels" in line and CASES[name][2] in line
