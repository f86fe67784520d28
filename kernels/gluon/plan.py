"""Which blocks for which shape: pure Python, without a GPU and without triton.

What decides is what fits the registers without spilling, and a model of a step's time. The registers are fitted to what
ptxas made of 50 kernels for sm_90. The time is fitted to 331 plans of GRUs and LSTMs that an H200 ran (`bench.plans`,
bench/results/gpu/h200-plans.csv): it is off by 17 % (standard deviation of the logarithm), and what it chooses takes
1.04 times as long as the fastest plan (geometric mean over shapes; at most 1.5).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from math import ceil

from fastcells.kernels.triton.plan import Device

CAPABILITY = 90  # the least: `max.u16x2` came with it, and earlier cards have had no trial of any kind
LARGEST = 1024  # of the shapes that ptxas's registers have been read off for
PAYS = 0.9  # of the cycles: both directions at once take copies that each alone does without
L2 = 3134  # bytes a cycle, for all programs together: an estimate, 5.5 TB/s
# Registers a thread for weights, operands and sums, of 255; the rest is addresses, the state, its input. So full, at
# most one register spills within a step: a GRU's of H=1024 given ids, an LSTM's backward given lengths. On sm_100, for
# which nothing is fitted, two do.
ROOM, ROOM_BACKWARD, ROOM_FOR_THREE = 216, 208, 192  # FOR_THREE: where three products make one


@dataclass(frozen=True)
class Resident:
    """A pass split over programs that keep their weights in registers, and so have to run at once."""

    batch: int
    hidden: int  # columns of a program
    split: int  # parts of K, one a warp
    inner: int  # columns of an operand
    operands: int  # of a warp, and in a backward pass of a gate
    groups: int  # of programs of a direction that run at once, at most; each does one batch tile after another
    reason: str
    directions: int = 1  # 2: both of a layer run at once
    cycles: float = 0.0  # of a step of all batch tiles, modelled
    full: bool = False  # there is no register left for the addresses of a prefetch

    def __str__(self) -> str:
        """Rows, columns, warps: "8x16x4"."""
        return f"{self.batch}x{self.hidden}x{self.split}"

    @property
    def width(self) -> int:
        """Columns of a mailbox's row."""
        return self.split * self.inner * self.operands


@dataclass(frozen=True)
class Shape:
    """What a plan is for."""

    H: int
    gates: int
    item_size: int
    precision: str  # of a float32 matmul: "tf32" or "tf32x3"
    backward: bool
    directions: int

    @property
    def unit(self) -> int:
        """Columns that `mma` and 16-byte loads allow a warp: K comes in multiples of it."""
        return 128 // self.item_size

    @property
    def polled(self) -> int:
        """Rows' worth of operands that a step gathers at once."""
        return self.gates if self.backward else 1

    @property
    def thrice(self) -> bool:
        """Whether three products make one."""
        return self.item_size == 4 and self.precision == "tf32x3"


@lru_cache(1024)
def resident_plan(
    H: int,
    B: int,
    gates: int,
    item_size: int,
    device: Device,
    *,
    precision: str = "tf32",
    backward: bool = False,
    two_products: bool = False,
    directions: int = 1,
) -> Resident | str:
    """The plan with the fewest modelled cycles among those that fit, or the reason why none does.

    two_products: of a cell whose last gate is multiplied with something else than h, and so has a second exchange.
    directions: 2 for both of a layer at once, which takes twice as many programs.
    """
    plans = fitting_plans(Shape(H, gates, item_size, precision, backward, directions), B, device, two_products)
    return plans if isinstance(plans, str) else plans[0]


def fitting_plans(shape: Shape, B: int, device: Device, two_products: bool = False) -> list[Resident] | str:
    """Those that fit, the fewest modelled cycles first; or the reason why none does."""
    H, backward = shape.H, shape.backward
    if device.capability < CAPABILITY:
        return (
            f"compute capability {device.capability / 10:.1f}: the kernels use an instruction of {CAPABILITY / 10:.1f}"
        )
    if H > LARGEST:
        return f"H={H}: there is no row for more than {LARGEST} columns"
    fitting: list[tuple[bool, Resident]] = []
    least, room = None, ROOM_FOR_THREE if shape.thrice else ROOM_BACKWARD if backward or two_products else ROOM
    for plan in _candidates(shape, device):
        registers = _registers(shape, plan)
        least = registers if least is None else min(least, registers)
        if registers <= room:
            tight = plan.width > H and registers > room - 8  # beside the mailbox, the outputs have their own addresses
            in_turn = ceil(ceil(B / plan.batch) / plan.groups)
            cycles = in_turn * _cycles(shape, plan, B)
            full = backward and shape.item_size == 2 and registers == room
            fitting.append((tight, replace(plan, cycles=cycles, full=full)))
    if least is None:
        programs = shape.directions * ceil(H / 32)
        return f"H={H}: {programs} programs wait for each other, and {device.multiprocessors} do not run at once"
    if not fitting:
        return (
            f"H={H}: {'backward' if backward else 'forward'}, the weights of 16 columns and what they are multiplied "
            f"with take {least} registers a thread, and there is room for {room}"
        )
    return [plan for _, plan in sorted(fitting, key=lambda fit: (fit[0], fit[1].cycles))]


def pays(
    each: tuple[Resident, Resident], both: tuple[Resident | str, Resident | str]
) -> tuple[Resident, Resident] | None:
    """The plans for both directions at once, where they save a tenth of the cycles of two directions in turn.

    each, both: a forward and a backward pass.
    """
    forward, backward = both
    if isinstance(forward, str) or isinstance(backward, str):
        return None
    at_once, in_turn = forward.cycles + backward.cycles, 2 * sum(plan.cycles for plan in each)
    return (forward, backward) if at_once < PAYS * in_turn else None


def _candidates(shape: Shape, device: Device) -> Iterator[Resident]:
    """Every split that runs at once."""
    for hidden in (16, 32):
        programs = ceil(shape.H / hidden)
        groups = device.multiprocessors // (shape.directions * programs)
        for split in (1, 2, 4, 8) if groups else ():
            columns = ceil(shape.H / (split * shape.unit)) * shape.unit  # of a warp
            if split * columns > max(2 * shape.H, 4 * shape.unit):
                continue  # most of it would be zeros
            # The backward loads its weights one by one before they are packed, of one operand at a time.
            inner = min(columns & -columns, 2048 // hidden if shape.backward else 256)
            for batch in (8, 16, 32):
                if batch * inner <= 4096:
                    reason = (
                        f"{programs} programs a group hold {hidden} columns' weights in the registers of {split} warps"
                    )
                    yield Resident(batch, hidden, split, inner, columns // inner, groups, reason, shape.directions)


def _owned(plan: Resident) -> int:
    """Elements of a thread."""
    return max(1, plan.hidden * plan.batch // (32 * plan.split))


def _words(shape: Shape, plan: Resident, rows: int) -> int:
    """Registers a thread of an operand with so many rows."""
    return rows * plan.width * shape.item_size // (4 * 32 * plan.split)


def _registers(shape: Shape, plan: Resident) -> int:
    """A thread's, for weights, operands, sums, and what its elements take beyond those of the first."""
    weights = _words(shape, plan, shape.gates * plan.hidden)
    operands = _words(shape, plan, shape.polled * plan.batch)
    apart = plan.hidden // 16 * (plan.batch // 8) * plan.split < 16  # `few_sums` in tiles.py: all gates' sums at once
    sums = (shape.gates if apart or shape.thrice else 1) * plan.hidden * plan.batch // 32
    own = _owned(plan)
    if shape.thrice:  # the operands and their two parts; the sums of the small ones
        operands, sums = 3 * operands, 2 * sums
    return weights + operands + sums + 8 * shape.gates * (own - 1)


def _cycles(shape: Shape, plan: Resident, B: int) -> float:
    """Of a step, at an H200's clock of 1.98 GHz."""
    programs = shape.directions * ceil(shape.H / plan.hidden) * min(plan.groups, ceil(B / plan.batch))
    row = shape.polled * plan.batch * plan.width * shape.item_size  # bytes that a program gathers
    loads = row / (16 * 32 * plan.split)  # of a lane, 16 bytes each
    chain = plan.width * shape.item_size / (32 * plan.split)  # `mma` one after another, each waiting for the last
    turns = max(1, plan.split / 4)  # warps that share one tensor core and one way to shared memory
    each = shape.gates * (plan.hidden // 16) * (plan.batch // 8) * turns * 8
    products = chain * max(33, each) * (4 if shape.thrice else 1)
    own = _owned(plan)
    sums = (1 if shape.backward else shape.gates) * plan.split * turns * 4 * own
    gathered = programs * row / L2
    return 393 + 1.48 * gathered + 9.8 * programs + 75 * loads + 1.45 * products + 3.55 * sums + 187 * (own - 1)
