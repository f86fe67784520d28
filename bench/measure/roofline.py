"""The floor of one time step on a GPU, from a model: nobody has measured it. `python -m bench.roofline` prints it.

The model is that of a persistent kernel: every program keeps its slice of the recurrent weights in registers, and in
every step writes its part of h (forward) or of the gates' gradients (backward) and reads everybody's. A step costs

    exchange + gather + stage + matmul + reduce + elementwise    (clock cycles; the functions below say each)

and the partition over programs and warps is the one that costs least. What it gives is a lower bound; real kernels
take 1.3 to 1.6 times as long, it is thought. Splitting K over multiprocessors as well is not modelled; it would pay in
the backward from H = 1024 on. A constant that has been measured replaces the assumed one: a row
`constant,value` and its provenance in bench/results/gpu-constants.csv, one for each name in `Constants`.
"""

from __future__ import annotations

import csv
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path

from bench.cases.case import Case
from bench.measure.limit import GATES
from bench.measure.provenance import RESULTS, require

# Bytes of an element, columns of K in one matrix instruction, and instructions for one product.
DTYPES = {"bfloat16": (2, 16, 1), "float16": (2, 16, 1), "tf32": (4, 8, 1), "strict": (4, 8, 3)}
EXCHANGES = ("lamport", "barrier")


@dataclass(frozen=True)
class Constants:
    """An H100. Cycles of the clock, bytes per cycle, bytes."""

    clock_ghz: float = 1.755
    multiprocessors: float = 132
    l2_round_trip: float = 270
    l2_bytes_per_cycle: float = 3134  # 5.5 TB/s, all multiprocessors together
    l2_bytes_per_cycle_each: float = 64
    shared_bytes_per_cycle: float = 128
    mma_issue: float = 6.5  # of one matrix instruction, on one of the four sub-cores
    mma_latency: float = 33  # until the next one may use the sum
    barrier: float = 1350  # a counter that all programs add to and poll
    elementwise: float = 220
    register_bytes: float = 150 << 10  # what weights may take of one multiprocessor
    shared_bytes: float = 200 << 10
    measured: tuple[str, ...] = ()  # the names of those that were

    @property
    def label(self) -> str:
        """How much of it is a guess."""
        return f"modelled; measured: {', '.join(self.measured)}" if self.measured else "modelled"


@dataclass(frozen=True)
class Partition:
    """How a step is cut: batch rows and hidden columns of a program, its warps, and the share of K of a warp."""

    rows: int
    columns: int
    warps: int
    split: int  # of K, over warps

    def __str__(self) -> str:
        return f"{self.rows}x{self.columns}, {self.warps} warps, K/{self.split}"


@dataclass(frozen=True)
class Shape:
    """One recurrence: gates, batch, hidden size, and a key of DTYPES."""

    gates: int
    B: int
    H: int
    dtype: str
    backward: bool = False

    @property
    def K(self) -> int:
        """Length of the recurrent product's sum."""
        return self.H * (self.gates if self.backward else 1)

    @property
    def width(self) -> int:
        """Products of K that make one hidden column."""
        return 1 if self.backward else self.gates


def load_constants(path: Path = RESULTS / "gpu-constants.csv") -> Constants:
    """The assumed constants, with those in the file in place of their guesses.

    Raises:
        ValueError: a row without provenance, or a constant that the model has not.
    """
    constants = Constants()
    if not path.exists():
        return constants
    with path.open() as file:
        rows = list(csv.DictReader(file))
    known = {field.name for field in fields(Constants)} - {"measured"}
    for row in rows:
        require(row)
        if row["constant"] not in known:
            raise ValueError(f"the model has no constant {row['constant']!r}; it has {', '.join(sorted(known))}")
    measured = {row["constant"]: float(row["value"]) for row in rows}
    return replace(constants, **measured, measured=tuple(sorted(measured)))


def cycles(shape: Shape, cut: Partition, exchange: str, c: Constants) -> float:
    """One step, cut as `cut` says; infinity if its weights do not fit or its programs do not run side by side."""
    size, k_step, products = DTYPES[shape.dtype]
    programs = math.ceil(shape.B / cut.rows) * math.ceil(shape.H / cut.columns)
    weights = shape.gates * cut.columns * shape.H * size
    if programs > c.multiprocessors or weights > c.register_bytes + c.shared_bytes:
        return math.inf
    tile = cut.rows * shape.K * size
    beside = cut.warps // cut.split  # warps that read the same part of the tile
    # Data that is its own flag: half a trip to write, one to read. Or a barrier, and then the data.
    exchanged = 1.5 * c.l2_round_trip + 50 if exchange == "lamport" else c.barrier
    gather = tile / min(c.l2_bytes_per_cycle_each, c.l2_bytes_per_cycle / programs)
    in_shared = max(0.0, weights - c.register_bytes)  # weights beyond the registers are read again in every step
    stage = 110 + (tile * (1 + beside) + in_shared) / c.shared_bytes_per_cycle
    chain = math.ceil(shape.K / k_step / cut.split) * c.mma_latency
    instructions = shape.width * math.ceil(cut.columns / 16) * math.ceil(cut.rows / 8) * shape.K / k_step
    matmul = max(products * instructions / 4 * c.mma_issue, chain)
    partials = cut.split * cut.rows * shape.width * cut.columns * 8
    reduce = partials / c.shared_bytes_per_cycle + 80 if cut.split > 1 else 0.0
    return exchanged + gather + stage + matmul + reduce + c.elementwise


def partitions() -> Iterator[Partition]:
    """What the search goes through."""
    for rows, columns, warps in itertools.product((8, 16, 32, 64), (16, 32, 64), (4, 8, 16)):
        for split in (1, 2, 4, 8, 16):
            # A warp owns 16 columns at least: those that share K have enough of them.
            if split <= warps and warps // split <= columns // 16:
                yield Partition(rows, columns, warps, split)


def floor(
    shape: Shape, exchange: str = "lamport", constants: Constants | None = None
) -> tuple[float, Partition | None]:
    """Microseconds of a step and the partition that reaches it; infinity and None where the weights do not fit."""
    c = constants or load_constants()
    best, cut = min(((cycles(shape, cut, exchange, c), cut) for cut in partitions()), key=lambda pair: pair[0])
    return best / c.clock_ghz / 1e3, cut if best < math.inf else None


def case_floor(case: Case, constants: Constants) -> float | None:
    """Microseconds of a step of a benchmark's case: the recurrence alone. None where the model says nothing."""
    passes = {"forward": (False,), "backward": (True,), "forward+backward": (False, True)}.get(case.mode, ())
    if not passes or case.layers > 1 or case.bidirectional:
        return None
    dtype = case.precision or "tf32" if case.dtype == "float32" else case.dtype
    shapes = (Shape(GATES[case.cell], case.B, case.H, dtype, backward) for backward in passes)
    found = [floor(shape, constants=constants)[0] for shape in shapes]
    return sum(found) if max(found) < math.inf else None
