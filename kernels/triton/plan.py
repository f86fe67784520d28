"""Which blocks for which shape: pure Python, without a GPU and without triton.

What decides is what fits (registers, shared memory), read off the compiler with
`python -m bench.compile`; the figures are in bench/results/compile.csv. Among the forms of a split kernel, cycles of
its time loop decide, modelled from the same machine code. `sequence_plans` gives a trial on the device the others too.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from fastcells.spec import CellSpec

# Shared memory that one program may use, in bytes, by compute capability; an unknown card gets the least.
SHARED_MEMORY = {75: 64 << 10, 80: 163 << 10, 86: 99 << 10, 89: 99 << 10, 90: 227 << 10, 100: 227 << 10, 120: 99 << 10}

REGISTERS = 65536  # of a multiprocessor, 32 bit each; a thread has 255 at most


@dataclass(frozen=True)
class Device:
    """What a plan has to know of a GPU."""

    capability: int  # 90 for compute capability 9.0
    multiprocessors: int

    @property
    def shared_memory(self) -> int:
        return SHARED_MEMORY.get(self.capability, min(SHARED_MEMORY.values()))


@dataclass(frozen=True)
class Blocks:
    """One program's tile and how it is compiled."""

    batch: int
    hidden: int
    inner: int  # tile of a matmul's inner dimension
    warps: int
    stages: int  # of the compiler's software pipeline; each keeps tiles in shared memory
    reason: str

    def __str__(self) -> str:
        """Rows, columns, warps: "16x32x4"."""
        return f"{self.batch}x{self.hidden}x{self.warps}"

    @property
    def registers(self) -> int:
        """Registers a thread, with one program a multiprocessor: left alone, ptxas goes for two and spills."""
        return min(255, REGISTERS // (32 * self.warps))


@dataclass(frozen=True)
class StepBlocks(Blocks):
    """The same of a program of the step kernels, which do one time step in a launch."""


@dataclass(frozen=True)
class DiagonalBlocks(Blocks):
    """The same of a program of the kernels without a matmul, for diagonal recurrent weights."""

    steps: int = 4  # whose inputs are loaded at once


@dataclass(frozen=True)
class Split:
    """A sequence kernel split over programs that wait for each other, and so have to run at once.

    A group of programs has all hidden columns and does one batch tile after another, so that any batch will do.
    """

    blocks: Blocks
    groups: int  # that run at once, at most
    exchange: str  # as in kernels/triton/exchange.py
    polled: int = 4  # tiles of a mailbox, each [batch, inner], that a program has room for at once
    cycles: int = 0  # of a step and all of a group's batch tiles, modelled for sm_90; 0 where nobody has

    @property
    def reason(self) -> str:
        return self.blocks.reason

    def __str__(self) -> str:
        return str(self.blocks)


Plan = Blocks | Split  # how one pass over time is launched


def of_cell(spec: CellSpec) -> dict[str, int]:
    """What plans depend on, beside gates: heads, and carried, the tiles that a program has beside h and c.

    These are further states and parameters. With any, long or odd rows are polled half as much at once: else it spills.
    """
    carried = max(0, spec.num_states - 2) + spec.num_extra
    return {"carried": carried, "heads": getattr(spec.recurrent, "heads", 1)}


def step_blocks(item_size: int) -> StepBlocks:
    """Blocks of the step kernels; any shape runs.

    More rows than 16 to 32 columns would make two warps compute the same.
    """
    inner = 32 if item_size == 4 else 64
    return StepBlocks(16, 32, inner, 4, 3, "any shape: hidden columns split over programs, inner dimension tiled")


def diagonal_blocks() -> DiagonalBlocks:
    """Blocks of the kernels for diagonal recurrent weights; any shape runs."""
    reason = "each unit reads itself alone: any shape, no program waits for another"
    return DiagonalBlocks(4, 64, 0, 2, 1, reason)


def sequence_plan(
    H: int,
    B: int,
    gates: int,
    item_size: int,
    device: Device | None,
    *,
    precision: str = "tf32",
    backward: bool = False,
    **cell: Any,
) -> Plan | str:
    """One program a batch tile where the weights fit it, else a split; or the reason why neither runs.

    As `sequence_plans`, the first of them.
    """
    plans = sequence_plans(H, B, gates, item_size, device, precision=precision, backward=backward, **cell)
    return plans if isinstance(plans, str) else plans[0]


def sequence_plans(
    H: int,
    B: int,
    gates: int,
    item_size: int,
    device: Device | None,
    *,
    precision: str = "tf32",
    backward: bool = False,
    **cell: Any,
) -> list[Plan] | str:
    """All that run, the one first that is thought the fastest; or the reason why none does.

    device: None for the interpreter, which has no limits, and whose programs cannot wait for each other.
    cell: as `of_cell` gives it.
    precision: of float32 matmuls. In "tf32x3" a float32 is the sum of two tf32, and its weights take twice the memory.
    """
    heads = cell.get("heads", 1)
    if device is None:
        return [_whole(H // heads, item_size, backward, "the interpreter runs one program a batch tile, whatever H")]
    blocks = sequence_blocks(H // heads, gates, item_size, device.capability, precision=precision, backward=backward)
    splits = split_plans(H, B, gates, item_size, device, precision=precision, backward=backward, **cell)
    if isinstance(blocks, str):
        return splits if isinstance(splits, str) else [*splits]
    few_rows = precision != "tf32x3" and device.multiprocessors >= -(-B // 8) * heads
    whole = [_with_few_rows(blocks), blocks] if few_rows else [blocks]
    return [*whole, *([] if isinstance(splits, str) else splits)]


def sequence_blocks(
    H: int, gates: int, item_size: int, capability: int, *, precision: str = "tf32", backward: bool = False
) -> Blocks | str:
    """Blocks of the sequence kernels, or the reason why the shape does not fit.

    One program holds the recurrent weights of all gates, [gates, block, block] in the storage dtype, in shared
    memory; the backward needs room for every gate's operand, [batch, block], and one more beside them.
    """
    block = max(16, _power_of_2(H))
    batch = 16
    needed = (_copies(item_size, precision) * gates * block * block + (gates + 1) * batch * block) * item_size
    limit = Device(capability, 1).shared_memory
    if needed > limit:
        return (
            f"the recurrent weights need {needed >> 10} KB of shared memory ({gates} gates of {block} x {block}, "
            f"{item_size} bytes each), and one program has {limit >> 10} KB"
        )
    return _whole(H, item_size, backward, f"weights fit one program: {needed >> 10} KB")


def split_plan(
    H: int,
    B: int,
    gates: int,
    item_size: int,
    device: Device,
    *,
    precision: str = "tf32",
    exchange: str = "poll",
    backward: bool = False,
    **cell: Any,
) -> Split | str:
    """How a sequence kernel is split, or the reason why it cannot be: as `split_plans`, the first of them."""
    options: dict[str, Any] = {"precision": precision, "exchange": exchange, "backward": backward}
    plans = split_plans(H, B, gates, item_size, device, **options, **cell)
    return plans if isinstance(plans, str) else plans[0]


def split_plans(
    H: int,
    B: int,
    gates: int,
    item_size: int,
    device: Device,
    *,
    precision: str = "tf32",
    exchange: str = "poll",
    backward: bool = False,
    heads: int = 1,
    carried: int = 0,
) -> list[Split] | str:
    """How a sequence kernel can be split, the fewest modelled cycles first; or the reason why it cannot be.

    A program holds the weights of a few hidden columns, [gates, H, columns], and gathers up to 512 columns of 16 bits
    of a mailbox at a time. The programs of a form all run at once, one on each multiprocessor; its cycles are those of
    all the batch tiles that a group does one after another.

    heads: H columns in all, of which those of one head exchange their state. carried: as `of_cell`.
    exchange: "poll" or "counter". By the model, a poll is one way through the L2 cache and a counter three; not timed.
    """
    limit = device.shared_memory
    all_columns, H = H, H // heads
    inner = _inner_tile(H, item_size, precision)
    padded = -(-H // inner) * inner
    if exchange == "counter" and (padded > inner or H > 256 or (H > 128 and H % 2)):
        return f"H={H}: the kernels that count arrivals spill registers with this many columns, or with odd rows"
    fitting: list[Split] = []
    refusal = ""
    for form in _forms(H, precision, exchange):
        weights = _copies(item_size, precision) * gates * padded * form.columns * item_size
        tile = _copies(item_size, precision) * form.batch * inner * item_size
        programs = heads * -(-H // form.columns)
        groups = device.multiprocessors // programs
        if weights + tile > limit:
            refusal = refusal or (
                f"H={H}: {form.columns} columns of the recurrent weights need {(weights + tile) >> 10} KB of shared "
                f"memory ({gates} gates of {padded} x {form.columns}, {item_size} bytes each), and one program has "
                f"{limit >> 10} KB"
            )
        elif groups == 0:
            refusal = (
                f"H={all_columns}: {programs} programs wait for each other, and {device.multiprocessors} "
                "multiprocessors do not run them at once"
            )
        else:
            in_turn = -(-B // (form.batch * groups))  # batch tiles that the busiest group does
            reason = (
                f"{programs} programs hold {form.columns} columns' weights each, {(weights + tile) >> 10} KB, and "
                f"exchange h; {form.warps} warps and {form.batch} rows each, by the model's cycles"
            )
            blocks = Blocks(form.batch, form.columns, inner, form.warps, 1, reason)
            tight = carried and (H > MODELLED_H or H % 8)
            registers = form.polled[int(gates == 4 and backward)] // (2 if tight else 1)
            room = (limit - weights) // tile - 1  # one more tile is converted
            # Who has not to wait gains nothing; with three products the parts of a second tile spill.
            room = room if exchange == "poll" and precision != "tf32x3" else 1
            polled = max(1, min(registers * 4 * 32 * form.warps * _copies(item_size, precision) // tile, room))
            cycles = form.cycles[2 * backward + (item_size == 4)]
            cycles = round(in_turn * cycles * max(1.0, H / MODELLED_H))
            fitting.append(Split(blocks, groups, exchange, polled, cycles))
    return sorted(fitting, key=lambda split: split.cycles) if fitting else refusal


class Form(NamedTuple):
    """A program of the split kernels."""

    batch: int
    columns: int
    warps: int
    cycles: tuple[int, int, int, int]  # modelled, a step of a GRU with H=256, sm_90: 16 bits, tf32; the backward's
    polled: tuple[
        int, int
    ]  # registers of a thread for what it polls at once, with up to 3 and with 4 gates: more spill


# Fewer than 8 columns a warp would be computed twice. What the warps of a program tell each other takes barriers, of
# which a single warp needs none, and 8 rows are gathered in half of the time that 16 take: many small programs are
# fast, as long as they all run at once.
FORMS = (
    Form(16, 32, 4, (2600, 3650, 3450, 6200), (64, 32)),
    Form(16, 64, 8, (3500, 5000, 5050, 7600), (64, 32)),
    Form(8, 8, 1, (1600, 2450, 3150, 6050), (64, 64)),
    Form(8, 16, 2, (2150, 3000, 2500, 4750), (64, 32)),
    Form(8, 32, 4, (2450, 3300, 2800, 3700), (40, 32)),
)
MODELLED_H = 256  # more columns take as many times longer, about
FEW_ROWS = 512  # the largest H up to which the compiler's figures for 8 rows have been read


def _forms(H: int, precision: str, exchange: str) -> Iterator[Form]:
    """Those that have been read off the compiler: with few rows, three products or a counter spill registers.

    The same for forward and backward, so that what runs forward runs backward.
    """
    aligned = H % 8 == 0  # rows in which each element has its own address take more registers
    few_rows = (FEW_ROWS if aligned else FEW_ROWS // 2) >= H and precision != "tf32x3" and exchange == "poll"
    return (form for form in FORMS if form.batch == 16 or few_rows)


def _whole(H: int, item_size: int, backward: bool, reason: str) -> Blocks:
    """One program with all H columns."""
    block = max(16, _power_of_2(H))
    # More warps would compute the same twice, fewer spill.
    warps = 4 if block <= 32 else 8 if block <= 64 or item_size == 4 else 16
    # The forward has room to load a step ahead; the backward keeps every gate's operand there instead.
    return Blocks(16, block, block, warps, 1 if backward else 2, reason)


def _with_few_rows(blocks: Blocks) -> Blocks:
    """Twice as many programs with half the rows each.

    By the model a step of a GRU with H=64, 16 bits, takes 1270 cycles instead of 1540, and 1420 instead of 2020 back.
    """
    return replace(blocks, batch=8, warps=min(blocks.warps, 8), reason=f"{blocks.reason}; 8 rows each, at once")


def _copies(item_size: int, precision: str) -> int:
    return 2 if item_size == 4 and precision == "tf32x3" else 1


def _inner_tile(H: int, item_size: int, precision: str) -> int:
    """Columns gathered at a time: all H at once if that is up to 16 KB a batch tile, else what pads H least.

    In "tf32x3" what was gathered is split in registers, which 4 KB of it fill.
    """
    largest = 1024 // item_size // _copies(item_size, precision) ** 2
    if largest >= H:
        return max(32, _power_of_2(H))  # a matmul takes 16, and of 16-bit elements every other one at a time
    return min(largest, largest // 2, key=lambda inner: -(-H // inner) * inner)


def _power_of_2(n: int) -> int:
    return 1 << (n - 1).bit_length()
