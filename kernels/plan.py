"""Which blocks for which shape: pure Python, without a GPU and without triton.

No row has been timed yet. What decides so far is what fits (registers, shared memory), read off the compiler with
`python -m bench.compile`; the figures are in bench/results/compile.csv.
"""

from __future__ import annotations

from dataclasses import dataclass

# Shared memory that one program may use, in bytes, by compute capability; an unknown card gets the least.
SHARED_MEMORY = {75: 64 << 10, 80: 163 << 10, 86: 99 << 10, 89: 99 << 10, 90: 227 << 10, 100: 227 << 10, 120: 99 << 10}


REGISTERS = 65536  # of a multiprocessor, 32 bit each; a thread has 255 at most


@dataclass(frozen=True)
class Blocks:
    """One program's tile and how it is compiled."""

    batch: int
    hidden: int
    inner: int  # tile of a matmul's inner dimension, in the step kernels
    warps: int
    stages: int  # of the compiler's software pipeline; each keeps tiles in shared memory
    reason: str

    @property
    def registers(self) -> int:
        """Registers a thread, with one program a multiprocessor: left alone, ptxas goes for two and spills."""
        return min(255, REGISTERS // (32 * self.warps))


def step_blocks(item_size: int) -> Blocks:
    """Blocks of the step kernels; any shape runs.

    More rows than 16 to 32 columns would make two warps compute the same.
    """
    inner = 32 if item_size == 4 else 64
    return Blocks(16, 32, inner, 4, 3, "any shape: hidden columns split over programs, inner dimension tiled")


def sequence_blocks(H: int, gates: int, item_size: int, capability: int, *, backward: bool = False) -> Blocks | str:
    """Blocks of the sequence kernels, or the reason why the shape does not fit.

    One program holds the recurrent weights of all gates, [gates, block, block] in the storage dtype, in shared
    memory; the backward needs room for every gate's operand, [batch, block], and one more beside them.
    """
    block = max(16, 1 << (H - 1).bit_length())
    batch = 16
    needed = (gates * block * block + (gates + 1) * batch * block) * item_size
    limit = SHARED_MEMORY.get(capability, min(SHARED_MEMORY.values()))
    if needed > limit:
        return (
            f"the recurrent weights need {needed >> 10} KB of shared memory ({gates} gates of {block} x {block}, "
            f"{item_size} bytes each), and one program has {limit >> 10} KB"
        )
    # More warps would compute the same twice, fewer spill.
    warps = 4 if block <= 32 else 8 if block <= 64 or item_size == 4 else 16
    # The forward has room to load a step ahead; the backward keeps every gate's operand there instead.
    return Blocks(batch, block, block, warps, 1 if backward else 2, f"weights fit one program: {needed >> 10} KB")


# ---- the CPU ----

# Multiplications in a matmul from which oneDNN's longer way into the kernel (about 10 us) is worth it.
LARGE_PRODUCT = 1 << 22
FEWEST_STEPS_IN_C = 2  # a single step does not pay for packing the weights, whatever the shape


@dataclass(frozen=True)
class CpuRow:
    """Shapes for which C is faster than ATen, with the range of speed-ups measured on their grid.

    Grid: B 1, 8, 32, 128; H 64 to 1024; `python -m bench.layers --device cpu`, AMD EPYC (Zen 5), 2 threads, float32;
    the rows are in bench/results/layers-cpu.csv.
    """

    cell: str
    speedup: str
    steps: int  # at least
    tokens: int = 1  # steps times batch, at least
    hidden: int = 1  # at least
    batch: int = 1 << 62  # at most
    training: bool = False  # whether only with the backward

    def holds(self, cell: str, steps: int, batch: int, H: int, training: bool) -> bool:
        return (
            cell == self.cell
            and steps >= self.steps
            and steps * batch >= self.tokens
            and self.hidden <= H
            and batch <= self.batch
            and training >= self.training
        )


CPU_ROWS = (
    CpuRow("gru", "1.6 to 6", steps=16),
    CpuRow("gru", "1.1 to 3", steps=4, tokens=64),
    CpuRow("rnn_tanh", "1.4 to 6", steps=20),
    CpuRow("rnn_relu", "1.4 to 6", steps=20),
    CpuRow("rnn_tanh", "1.1 to 3", steps=8, tokens=256),
    CpuRow("rnn_relu", "1.1 to 3", steps=8, tokens=256),
    # ATen's LSTM is oneDNN's, which packs its weights too and is as fast or faster in a forward alone. It loses where
    # the weights outgrow a core's cache, with one sequence, and over long sequences in training.
    CpuRow("lstm", "1.1 to 1.4", steps=16, tokens=128, hidden=1024, batch=32),
    CpuRow("lstm", "1.3 to 2", steps=128, batch=1),
    CpuRow("lstm", "1 to 2", steps=128, training=True),
)


def faster_in_c(
    cell: str, steps: int, batch: int, H: int, *, training: bool, aten: bool, instructions: str
) -> str | None:
    """Why C is the fastest on the CPU for this shape, or None where it is not.

    training: whether a backward follows. aten: whether the alternative is ATen's fused recurrence; otherwise it is a
    loop over torch's operators, which is slower at every shape of more than one step.
    """
    if steps < FEWEST_STEPS_IN_C or instructions not in ("avx512", "avx2"):  # the portable code was not timed
        return None
    if not aten:
        return f"C with {instructions} instructions; ATen has no fused recurrence for this case"
    row = next((r for r in CPU_ROWS if r.holds(cell, steps, batch, H, training)), None)
    return None if row is None else f"C with {instructions} instructions, {row.speedup} times as fast as ATen here"
