"""The boundary between Python and C under random calls, right ones and wrong ones mixed.

C believes what it is told, so `backends.cpu.native` has to turn away whatever does not fit, and to bring into memory
what fits but lies elsewhere. A right call gives the right numbers, a wrong one an exception, and none may end the
process: the calls run in one of their own. `python -m tests.support.fuzz N` repeats call N.
Those of bfloat16, too: their numbers are compared with float64 and with torch's own in bfloat16.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fastcells.backends.cpu import native
from tests.support.fuzz.calls import KINDS

CALLS = 10_000

# The subprocess has libgomp's threads give way: more threads than cores, on a machine that others use too.
ENVIRONMENT = {**os.environ, "OMP_WAIT_POLICY": "passive", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}


def fuzz(
    first: int, count: int, where: Path, code: str = "", dtype: str = "float32"
) -> subprocess.CompletedProcess[str]:
    """Calls in a process of their own, after `code`. Its output ends with the call that it ended in, if it did."""
    path = where / "progress"
    with path.open("w") as file:
        start = (
            f"import tests.support.fuzz.calls as fuzz\n{code}\nfuzz.main({first}, {count}, {file.fileno()}, {dtype!r})"
        )
        command = [sys.executable, "-c", start]
        done = subprocess.run(
            command, capture_output=True, text=True, env=ENVIRONMENT, pass_fds=[file.fileno()], timeout=600
        )
    done.stderr += f"\nrepeat with: python -m tests.support.fuzz {path.read_text()}{dtype}" if done.returncode else ""
    return done


needs_c = pytest.mark.skipif(native.obstacle() is not None, reason=str(native.obstacle()))


needs_bf16 = pytest.mark.skipif(native.bf16_obstacle() is not None, reason=str(native.bf16_obstacle()))
DTYPES = ["float32", pytest.param("bfloat16", marks=needs_bf16)]


@needs_c
@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
def test_random_calls(dtype: str, tmp_path: Path) -> None:
    done = fuzz(0, CALLS, tmp_path, dtype=dtype)
    assert done.returncode == 0, f"exit status {done.returncode}\n{done.stdout}{done.stderr}"
    seen = {what: int(times) for times, what in (line.split(" ", 1) for line in done.stdout.splitlines())}
    assert sum(seen.values()) == CALLS >= 10_000
    for kind in {kind.__name__ for kind in KINDS[dtype]}:  # neither kind of call is rare
        assert seen[f"{kind} right"] > 300 and seen[f"{kind} RuntimeError"] > 100, seen


FAULTY = {
    "a crash": (
        "import types; c = fuzz.native._cpu; wrong = {'gather': lambda *a, **k: c.gather(*a, **{**k, 'w': 8})}\n"
        "fuzz.native._cpu = types.SimpleNamespace(**{**vars(c), **wrong})",
        -signal.SIGSEGV,
    ),
    "a check too few": ("fuzz.native.check.matrix = lambda name, t: t.shape[-2:]", 1),
    "a wrong number": ("f = fuzz.native.gather; fuzz.native.gather = lambda *a: f(*a) * 1.01", 1),
    "a right call refused": ("fuzz.native._cpu = None", 1),
}


@needs_c
@pytest.mark.parametrize("fault", FAULTY)
def test_a_planted_fault_is_found(fault: str, tmp_path: Path) -> None:
    code, status = FAULTY[fault]
    done = fuzz(0, 500, tmp_path, code)
    assert done.returncode == status and "repeat with: python -m tests.support.fuzz" in done.stderr, done


OFF_BY_A_TWENTIETH = """
compute = fuzz.native.{kernel}
def wrong(*args, **kwargs):
    out = compute(*args, **kwargs)
    out[0].mul_(1.05)
    return out
fuzz.native.{kernel} = wrong
"""


@needs_bf16
@pytest.mark.parametrize("kernel", ["forward", "backward", "weight_gradients"])
def test_a_fault_of_a_twentieth_is_found_in_bfloat16(kernel: str, tmp_path: Path) -> None:
    done = fuzz(0, 500, tmp_path, OFF_BY_A_TWENTIETH.format(kernel=kernel), "bfloat16")
    assert done.returncode == 1 and "is off by" in done.stderr and "repeat with" in done.stderr, done
