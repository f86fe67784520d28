"""Kernels compile for a GPU that this machine need not have, and the compiler's figures are read rightly."""

from __future__ import annotations

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


def test_bfloat16_for_sm_90() -> None:
    """No spills, shared memory within limits, as many matrix instructions as there is work: exit status 0."""
    done = python("-m", "bench.compile", "--target", "90", "--quick")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "0 of 92 kernels have a fault" in done.stdout


PLANTED = """
import sys
from dataclasses import replace
from bench import compile
from fastcells.kernels.triton import launch_split, plan
{fault}
case = compile.Case({case})
print([fault for row in compile.compile_case(case) for fault in compile.faults(row)])
"""


LESS_MEMORY = """
blocks = plan.sequence_blocks(128, 3, 2, 90)
plan.sequence_blocks = lambda *_, **__: blocks
plan.SHARED_MEMORY[90] = 1 << 10
"""
MORE_WARPS = """
blocks = replace(plan.sequence_blocks(128, 3, 2, 90), warps=32)
plan.sequence_blocks = lambda *_, **__: blocks
"""


NOT_COOPERATIVE = """
options = launch_split._options
launch_split._options = lambda split: options(split) | {"launch_cooperative_grid": False}
"""
REPEATING_WARPS = """
blocks = plan.Blocks(16, 32, 256, 8, 1, "")
plan.split_plan = lambda *_, **__: plan.Split(blocks, 16, "poll")
"""
FEW_REGISTERS = "plan.Blocks.registers = property(lambda self: 48)"
SEQUENCE = '"sequence", "gru", "bfloat16", 128, 90'
SPLIT = '"split", "gru", "bfloat16", 256, 90, 32, "poll"'


@pytest.mark.parametrize(
    ("case", "fault", "found"),
    [
        pytest.param(SEQUENCE, "pass", "[]", id="none"),
        pytest.param(SEQUENCE, FEW_REGISTERS, "spills", id="few registers"),
        pytest.param(SEQUENCE, LESS_MEMORY, "bytes of shared memory", id="little shared memory"),
        pytest.param(SEQUENCE, MORE_WARPS, "expected", id="too many warps"),
        pytest.param(SPLIT, "pass", "[]", id="none, split"),
        pytest.param(SPLIT, FEW_REGISTERS, "spills", id="few registers, split"),
        pytest.param(SPLIT, REPEATING_WARPS, "expected", id="too many warps, split"),
        pytest.param(SPLIT, NOT_COOPERATIVE, "need a cooperative launch", id="not cooperative"),
    ],
)
def test_a_planted_fault_is_found(case: str, fault: str, found: str) -> None:
    done = python("-c", PLANTED.format(case=case, fault=fault))
    assert found in done.stdout, done.stdout + done.stderr[-2000:]


NESTED = """
from bench import compile
compile.cuobjdump = lambda *_: '''
    /*0000*/    S2R R0, SR_CTAID.Y ;
    /*0010*/    MOV R1, R0 ;
    /*0020*/    FADD R1, R1, R1 ;
    /*0030*/    FADD R1, R1, R1 ;
    /*0040*/    FADD R1, R1, R1 ;
    /*0050*/    FADD R1, R1, R1 ;
    /*0060*/    LDG.E R1, [R2] ;
    /*0070*/    @P0 BRA 0x60 ;
    /*0080*/    HMMA.16816.F32 R4, R4, R8, R4 ;
    /*0090*/    HMMA.16816.F32 R4, R4, R8, R4 ;
    /*00a0*/    @P1 BRA 0x20 ;
    /*00b0*/    {last} ;
    /*00c0*/    @P2 BRA 0x10 ;
    /*00d0*/    EXIT ;
    /*00e0*/    BRA 0x80 ;
'''
print(compile.time_loop(None))
"""


@pytest.mark.parametrize(
    ("last", "found"),
    [
        pytest.param("STG.E [R2], R4", "(9, 2)", id="all in the inner loop"),
        pytest.param("HMMA.16816.F32 R4, R4, R8, R4", "(12, 3)", id="one outside of it"),
    ],
)
def test_the_loop_over_time_is_found_within_the_one_over_batch_tiles(last: str, found: str) -> None:
    done = python("-c", NESTED.format(last=last))
    assert done.stdout.strip() == found, done.stdout + done.stderr[-2000:]
