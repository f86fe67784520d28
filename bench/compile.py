"""Compile every kernel for NVIDIA targets on any machine, and read registers, spills and instructions off the result.

    python -m bench.compile                    # all targets, rules, dtypes and plan rows: some minutes
    python -m bench.compile --target 90 --quick

Needs triton, whose wheel brings ptxas and cuobjdump, and no GPU. What is compiled is what the launchers launch: they
run here on meta tensors, with the kernels replaced by recorders. The table goes to bench/results/compile.csv.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.pop("TRITON_INTERPRET", None)  # an interpreted kernel cannot be compiled

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from bench.provenance import print_table, provenance, write_csv
from fastcells.kernels import launch, plan
from fastcells.kernels.rule import UpdateRule
from fastcells.triton_ops import RULES

TARGETS = (80, 90, 100)
DTYPES = {"float32": (torch.float32, "tf32"), "bfloat16": (torch.bfloat16, "ieee"), "float16": (torch.float16, "ieee")}
TYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16", torch.int32: "i32"}
KERNELS = ("sequence_forward_kernel", "sequence_backward_kernel", "step_forward_kernel", "step_backward_kernel")
TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"
T, B = 7, 32


@dataclass(frozen=True)
class Case:
    """One way to run one rule: path "sequence" or "step"."""

    path: str
    rule: str
    dtype: str
    H: int
    target: int


def cases(targets: tuple[int, ...], dtypes: tuple[str, ...]) -> Iterator[Case]:
    """Every path, rule, dtype and plan row."""
    for target in targets:
        for name, rule in RULES.items():
            for dtype in dtypes:
                size = DTYPES[dtype][0].itemsize
                for H in (32, 64, 128, 256):
                    if isinstance(plan.sequence_blocks(H, rule.gates, size, target), plan.Blocks):
                        yield Case("sequence", name, dtype, H, target)
                yield Case("step", name, dtype, 256, target)


def compile_case(case: Case) -> list[dict[str, object]]:
    """One row for each kernel that the case launches."""
    rule = RULES[case.rule]
    rows = []
    for name, kernel, arguments in recorded(case, rule):
        compiled = compile_launch(kernel, arguments, case.target)
        registers, spills = resources(compiled)
        instructions, matmuls = time_loop(compiled)
        warps = arguments["num_warps"]
        rows.append(
            {
                "kernel": name.removesuffix("_kernel"),
                "part": arguments.get("PART", ""),
                "rule": case.rule,
                "dtype": case.dtype,
                "H": case.H,
                "target": f"sm_{case.target}",
                "blocks": f"{arguments['BLOCK_B']}x{arguments['BLOCK_H']}x{arguments.get('BLOCK_K', '')}".rstrip("x"),
                "warps": warps,
                "registers": registers,
                "spill_bytes": spills,
                "shared_bytes": compiled.metadata.shared,
                "loop_instructions": instructions,
                "loop_matmuls_per_warp": matmuls,
                "matmuls_expected": expected_matmuls(name, case, rule, arguments),
            }
        )
    return rows


def recorded(case: Case, rule: UpdateRule) -> list[tuple[str, Any, dict[str, Any]]]:
    """The launches of forward and backward, each kernel and part once: name, kernel, arguments."""
    dtype, precision = DTYPES[case.dtype]
    launches: dict[tuple[str, object], tuple[str, Any, dict[str, Any]]] = {}

    def meta(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    H, G = case.H, rule.gates
    if case.path == "sequence":
        blocks = plan.sequence_blocks(H, G, dtype.itemsize, case.target)
        backward_blocks = plan.sequence_blocks(H, G, dtype.itemsize, case.target, backward=True)
        forward: Callable[..., Any] = launch.sequence_forward
        backward: Callable[..., Any] = launch.sequence_backward
    else:
        blocks = backward_blocks = plan.step_blocks(dtype.itemsize)
        forward, backward = launch.step_forward, launch.step_backward
    state, w = tuple(meta(B, H) for _ in range(rule.states)), meta(G * H, H)
    lengths = torch.empty(B, dtype=torch.int32, device="meta")
    with recorders(launches):
        options = {"reverse": False, "precision": precision}
        out = forward(rule, meta(T, B, G * H), state, w, meta(G * H), lengths, save=True, blocks=blocks, **options)
        backward(rule, out, meta(T, B, H), state, state, w, lengths, blocks=backward_blocks, **options)
    return list(launches.values())


@contextmanager
def recorders(launches: dict[tuple[str, object], tuple[str, Any, dict[str, Any]]]) -> Iterator[None]:
    """Put recorders in the kernels' place in launch.py."""

    class Recorder:
        def __init__(self, name: str, kernel: Any) -> None:
            self.name, self.kernel = name, kernel

        def __getitem__(self, grid: object) -> Callable[..., None]:
            def record(**arguments: Any) -> None:
                key = self.name, (arguments.get("PART"), arguments.get("HAS_LATER"))
                launches[key] = (self.name, self.kernel, arguments)

            return record

    names = (*KERNELS, "reset_kernel")
    kernels = {name: getattr(launch, name) for name in names}
    try:
        for name, kernel in kernels.items():
            setattr(launch, name, Recorder(name, kernel))
        yield
    finally:
        for name, kernel in kernels.items():
            setattr(launch, name, kernel)


def compile_launch(kernel: Any, arguments: dict[str, Any], target: int) -> Any:
    """Compile as Triton's own launch would: pointers aligned, sizes that 16 divides known to be so."""
    signature, constants, attributes = {}, {}, {}
    for index, name in enumerate(kernel.arg_names):
        value = arguments[name]
        if isinstance(value, torch.Tensor):
            signature[name] = "*" + TYPES[value.dtype]
        elif (isinstance(value, int) and not isinstance(value, bool) and not name.isupper()) or name in ("T", "B", "H"):
            signature[name] = "i32"
        else:
            signature[name] = "constexpr"
            constants[(index,)] = value
        known = not kernel.params[index].do_not_specialize
        if signature[name].startswith("*") or (signature[name] == "i32" and known and value % 16 == 0):
            attributes[(index,)] = [["tt.divisibility", 16]]
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)
    options = {name: arguments[name] for name in ("num_warps", "num_stages", "maxnreg")}
    return triton.compile(source, target=GPUTarget("cuda", target, 32), options=options)


def cuobjdump(compiled: Any, option: str) -> str:
    """What cuobjdump says of the machine code."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        return subprocess.run(
            [TOOLS / "cuobjdump", option, file.name], capture_output=True, text=True, check=True
        ).stdout


def resources(compiled: Any) -> tuple[int, int]:
    """Registers a thread, and bytes of stack a thread: what the registers spill to."""
    found = re.search(r"REG:(\d+) STACK:(\d+)", cuobjdump(compiled, "-res-usage"))
    assert found is not None
    return int(found[1]), int(found[2])


def time_loop(compiled: Any) -> tuple[int, int]:
    """Instructions and matrix instructions in the longest loop of the machine code."""
    code = re.findall(r"^\s+/\*([0-9a-f]{4,})\*/\s+(.*?);", cuobjdump(compiled, "-sass"), re.M)
    position = {int(address, 16): i for i, (address, _) in enumerate(code)}
    first, last = 0, -1
    for i, (_, text) in enumerate(code):
        jump = re.search(r"\bBRA\b.*?0x([0-9a-f]+)", text)
        start = position.get(int(jump[1], 16), i) if jump else i
        if i - start > last - first:
            first, last = start, i
    body = [text for _, text in code[first : last + 1]]
    return len(body), sum(bool(re.search(r"\b(HMMA|HGMMA|UTCHMMA|UTCMMA|QGMMA)\b", text)) for text in body)


def expected_matmuls(name: str, case: Case, rule: UpdateRule, arguments: dict[str, Any]) -> int | str:
    """Matrix instructions a warp in the loop over time, or over the inner dimension, were no work done twice."""
    tile = 8 if case.dtype == "float32" else 16  # m16n8k8 for tf32, m16n8k16 for 16 bit
    inner = arguments["BLOCK_H"] if case.path == "sequence" else arguments["BLOCK_K"]
    tiles = (arguments["BLOCK_B"] // 16) * (arguments["BLOCK_H"] // 8) * (inner // tile)
    if name == "step_backward_kernel":
        gates = int(arguments["HAS_LATER"] or arguments["PART"] == 2)
    elif name == "reset_kernel":
        gates = 1
    elif name == "step_forward_kernel" and rule.reset is not None:
        return ""  # two loops, and which one is the longer depends on the target
    else:
        gates = rule.gates
    return gates * tiles // arguments["num_warps"]


def faults(row: dict[str, object]) -> list[str]:
    """What is wrong with a row."""
    found = []
    if row["spill_bytes"]:
        found.append(f"spills {row['spill_bytes']} bytes")
    limit = plan.SHARED_MEMORY[int(str(row["target"]).removeprefix("sm_"))]
    if int(str(row["shared_bytes"])) > limit:
        found.append(f"needs {row['shared_bytes']} bytes of shared memory, {limit} there are")
    if row["matmuls_expected"] not in ("", row["loop_matmuls_per_warp"]):
        found.append(f"{row['loop_matmuls_per_warp']} matrix instructions a warp, {row['matmuls_expected']} expected")
    return found


def main() -> int:
    """Print the table and write it; exit status 1 if a kernel has a fault."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", type=int, choices=TARGETS, action="append")
    parser.add_argument("--quick", action="store_true", help="bfloat16 only")
    parser.add_argument("--no-write", action="store_true", help="leave bench/results alone")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    options = parser.parse_args()
    chosen = list(cases(tuple(options.target or TARGETS), ("bfloat16",) if options.quick else tuple(DTYPES)))
    with ProcessPoolExecutor(options.jobs) as pool:
        rows = [row for found in pool.map(compile_case, chosen) for row in found]
    print(f"triton {triton.__version__}, {len(chosen)} cases")
    print_table(rows)
    if not options.no_write:
        print(f"written to {write_csv('compile', rows, provenance(torch.device('cpu')))}")
    bad = [row for row in rows if faults(row)]
    for row in bad:
        print(", ".join(faults(row)), *(row[key] for key in ("kernel", "part", "rule", "dtype", "H", "target")))
    print(f"{len(bad)} of {len(rows)} kernels have a fault")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
