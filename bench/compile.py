"""Compile every kernel for NVIDIA targets on any machine, and read registers, spills and instructions off the result.

    python -m bench.compile                    # every kernel, rule and target at the sizes that are tightest: minutes
    python -m bench.compile --full             # every dtype and plan row: half an hour on two cores
    python -m bench.compile --target 90 --quick

Needs triton, whose wheel brings ptxas and cuobjdump, and no GPU. What is compiled is what the launchers launch: they
run here on meta tensors, with the kernels replaced by recorders. With --write the table goes to
bench/results/compile.csv.
"""

from __future__ import annotations

import argparse
import functools
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

os.environ.pop("TRITON_INTERPRET", None)  # an interpreted kernel cannot be compiled

import torch
import triton

from bench.cases.compile_cases import DEVICES, DTYPES, Case, cases, gluon_cases, gluon_selection, selection
from bench.cases.rules import rule_named, weight_shape
from bench.measure import sass
from bench.measure.launched import compile_launch
from bench.measure.provenance import print_table, provenance, write_csv
from fastcells.backends.kernel_backend import h_and_c
from fastcells.backends.triton.operators import run_backward, run_forward
from fastcells.kernels.gluon import launch as launch_gluon
from fastcells.kernels.triton import launch_diagonal, launch_sequence, launch_split, launch_step, plan
from fastcells.kernels.triton.launch import BackwardPass, ForwardPass, StepInput
from fastcells.kernels.triton.rule import UpdateRule

KERNELS = (  # the launcher's module, what the kernel is called there
    (launch_sequence, "sequence_forward_kernel"),
    (launch_sequence, "sequence_backward_kernel"),
    (launch_step, "step_forward_kernel"),
    (launch_step, "step_backward_kernel"),
    (launch_step, "reset_hidden_kernel"),
    (launch_split, "split_forward_kernel"),
    (launch_split, "split_backward_kernel"),
    (launch_diagonal, "diagonal_forward_kernel"),
    (launch_diagonal, "diagonal_backward_kernel"),
    (launch_gluon, "forward_kernel"),
    (launch_gluon, "backward_kernel"),
)
LAUNCHERS: dict[str, tuple[Any, Any]] = {"gluon": (launch_gluon.gluon_forward, launch_gluon.gluon_backward)}
TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"
# Registers a step: weights fill them so far that a few may spill, by target; see `ROOM` in kernels/gluon/plan.py.
GLUON_RELOADS = {90: 1, 100: 2}
T = 7


def compile_case(case: Case) -> list[dict[str, object]]:
    """One row for each kernel that the case launches."""
    rule = rule_named(case.rule)
    rows = []
    for launch in recorded(case, rule):
        name, kernel, arguments, _ = launch
        compiled = compile_launch(kernel, arguments, case.target)
        registers, spills = resources(compiled)
        instructions, matmuls, reloads = time_loop(compiled)
        warps = arguments["num_warps"]
        rows.append(
            {
                "kernel": name.removesuffix("_kernel"),
                "part": launch.part,
                "rule": case.rule + (" resets" if case.resets else ""),
                "exchange": case.exchange,
                "dtype": case.dtype,
                "H": case.H,
                "target": f"sm_{case.target}",
                "blocks": f"{arguments['BLOCK_B']}x{arguments['BLOCK_H']}x{arguments.get('BLOCK_K', '')}".rstrip("x"),
                "warps": warps,
                "registers": registers,
                "spill_bytes": spills,
                "loop_reloads": reloads,
                "shared_bytes": compiled.metadata.shared,
                "cooperative": compiled.metadata.launch_cooperative_grid,
                "loop_instructions": instructions,
                "loop_matmuls_per_warp": matmuls,
                "matmuls_expected": expected_matmuls(name, case, rule, arguments),
            }
        )
    return rows


class Launch(NamedTuple):
    """What a launcher launches."""

    name: str
    kernel: Any
    arguments: dict[str, Any]
    grid: tuple[int, ...]

    @property
    def part(self) -> str:
        """What tells a case's launches of one kernel apart, and those of one direction from those of both."""
        return "both" if self.arguments.get("DIRECTIONS") == 2 else str(self.arguments.get("PART", ""))


def recorded(case: Case, rule: UpdateRule) -> list[Launch]:
    """The launches of forward and backward, each kernel and part once."""
    dtype, precision = DTYPES[case.dtype]
    launches: dict[tuple[str, object], Launch] = {}

    def meta(*shape: int) -> torch.Tensor:
        return torch.empty((2, *shape) if case.directions == 2 else shape, dtype=dtype, device="meta")

    B, H, rows = case.B, case.H, rule.spec.num_gates * case.H
    plans = case.plan(), case.plan(backward=True)
    assert not isinstance(plans[0], str) and not isinstance(plans[1], str), plans
    state = tuple(s for s in h_and_c(tuple(meta(B, H) for _ in rule.spec.states)) if s is not None)
    w, extra = meta(*weight_shape(rule, H)), meta(rule.spec.num_extra, H) if rule.spec.extra else None
    lengths = torch.empty(B, dtype=torch.int32, device="meta")
    resets = torch.empty(T, B, dtype=torch.uint8, device="meta") if case.resets else None
    given = (rule, state, w, lengths, False, precision)
    forward, backward = LAUNCHERS.get(case.path, (run_forward, run_backward))
    with recorders(launches):
        x = StepInput(meta(T, B, rows))
        out = forward(ForwardPass(*given, x, meta(rows), save=True, resets=resets, extra=extra), plans[0])
        backward(BackwardPass(*given, out, meta(T, B, H), state, resets=resets, extra=extra), plans[1])
    return list(launches.values())


@contextmanager
def recorders(launches: dict[tuple[str, object], Launch]) -> Iterator[None]:
    """Put recorders in the kernels' place in the launchers' modules."""

    class Recorder:
        def __init__(self, name: str, kernel: Any) -> None:
            self.name, self.kernel = name, kernel

        def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
            def record(**arguments: Any) -> None:
                key = self.name, (arguments.get("PART"), arguments.get("HAS_LATER"))
                launches[key] = Launch(self.name, self.kernel, arguments, grid)

            return record

    kernels = [(module, name, getattr(module, name)) for module, name in KERNELS]
    try:
        for module, name, kernel in kernels:
            setattr(module, name, Recorder(f"gluon_{name}" if module is launch_gluon else name, kernel))
        yield
    finally:
        for module, name, kernel in kernels:
            setattr(module, name, kernel)


def cuobjdump(compiled: Any) -> str:
    """What cuobjdump says of the machine code: resources and instructions."""
    return _dumped(compiled.asm["cubin"])


@functools.lru_cache(maxsize=1)  # each is asked for both, one after the other
def _dumped(cubin: bytes) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(TOOLS / "cuobjdump"), "-res-usage", "-sass", file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def resources(compiled: Any) -> tuple[int, int]:
    """Registers a thread, and bytes of stack a thread: what the registers spill to."""
    found = re.search(r"REG:(\d+) STACK:(\d+)", cuobjdump(compiled))
    assert found is not None
    return int(found[1]), int(found[2])


def time_loop(compiled: Any) -> tuple[int, int, int]:
    """Instructions, matrix instructions and registers that were spilled and are read back in one loop of the code.

    Were there matrix instructions outside of the loop over time, they would be more than expected: see `main_loop`.
    """
    code = sass.decode(cuobjdump(compiled))
    loop = sass.main_loop(code)
    turn = code[loop[0] : loop[1] + 1] if loop else []
    reloads = sum(instruction.element_bytes // 4 for instruction in turn if instruction.base == "LDL")
    return len(turn), sass.matmuls(turn), reloads


def expected_matmuls(name: str, case: Case, rule: UpdateRule, arguments: dict[str, Any]) -> int | str:
    """Matrix instructions a warp in the loop over time, or over the inner dimension, were no work done twice."""
    tile = 8 if case.dtype.startswith("float32") else 16  # m16n8k8 for tf32, m16n8k16 for 16 bit
    products = 3 if arguments["PRECISION"] == "tf32x3" else 1
    if case.path == "gluon":  # columns are M there and the batch is N, and no warp shares its part of K
        tiles = (arguments["BLOCK_H"] // 16) * (arguments["BLOCK_B"] // 8) * (arguments["BLOCK_K"] // tile)
        return products * arguments["GATES"] * arguments["INNER"] * tiles
    inner = {
        "sequence": arguments["BLOCK_H"],
        "split": arguments.get("INNER", 0) * arguments.get("BLOCK_K", 0),
        "step": arguments.get("BLOCK_K", 0),
    }[case.path]
    tiles = -(-arguments["BLOCK_B"] // 16) * (arguments["BLOCK_H"] // 8) * (inner // tile)  # of 8 rows as of 16
    if name == "step_backward_kernel":
        gates = int(arguments["HAS_LATER"] or arguments["PART"] == 2)
    elif name == "reset_hidden_kernel":
        gates = 1
    elif name == "step_forward_kernel" and rule.reset_hidden is not None:
        return ""  # two loops, and which one is the longer depends on the target
    else:
        gates = rule.spec.num_gates
    return products * gates * tiles // arguments["num_warps"]


def faults(row: dict[str, object]) -> list[str]:
    """What is wrong with a row."""
    found = []
    gluon, target = str(row["kernel"]).startswith("gluon"), int(str(row["target"]).removeprefix("sm_"))
    if row["spill_bytes"] and not (gluon and int(str(row["loop_reloads"])) <= GLUON_RELOADS[target]):
        found.append(f"spills {row['spill_bytes']} bytes, reads {row['loop_reloads']} registers back in a step")
    limit = plan.SHARED_MEMORY[target]
    if int(str(row["shared_bytes"])) > limit:
        found.append(f"needs {row['shared_bytes']} bytes of shared memory, {limit} there are")
    if row["cooperative"] != (gluon or str(row["kernel"]).startswith("split")):
        found.append("programs that wait for each other, and only they, need a cooperative launch")
    if row["matmuls_expected"] not in ("", row["loop_matmuls_per_warp"]):
        found.append(f"{row['loop_matmuls_per_warp']} matrix instructions a warp, {row['matmuls_expected']} expected")
    return found


def main() -> int:
    """Print the table and write it; exit status 1 if a kernel has a fault."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", type=int, choices=tuple(DEVICES), action="append")
    parser.add_argument("--quick", action="store_true", help="bfloat16 only")
    parser.add_argument("--full", action="store_true", help="every dtype and plan row")
    parser.add_argument("--write", action="store_true", help="put the table into bench/results")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    options = parser.parse_args()
    among = (cases, gluon_cases) if options.full else (selection, gluon_selection)
    asked = tuple(options.target or DEVICES), ("bfloat16",) if options.quick else tuple(DTYPES)
    chosen = [case for some in among for case in some(*asked)]
    with ProcessPoolExecutor(options.jobs) as pool:
        rows = [row for found in pool.map(compile_case, chosen) for row in found]
    print(f"triton {triton.__version__}, {len(chosen)} cases")
    print_table(rows)
    if options.write:
        print(f"written to {write_csv('compile', rows, provenance(torch.device('cpu')))}")
    bad = [row for row in rows if faults(row)]
    for row in bad:
        print(", ".join(faults(row)), *(row[key] for key in ("kernel", "part", "rule", "dtype", "H", "target")))
    print(f"{len(bad)} of {len(rows)} kernels have a fault")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
