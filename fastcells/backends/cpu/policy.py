"""When the CPU's C code is chosen: measured shapes, and the sizes from which on it pays."""

from __future__ import annotations

from dataclasses import dataclass

# A linear layer's product runs in C from this many multiplications and rows on. Below, packing the weights takes a
# tenth of the time or more, which MKL saves (AVX2: 0.85 of MKL's speed with 32 rows, 0.95 with 128, 1.0 with 1120).
LARGE_PRODUCT = 1 << 22
MANY_ROWS = 128
# In bfloat16 it does from so many rows and terms on, and a weight gradient up to so many columns: outside, oneDNN took
# 0.90 to 0.98 of C's time (AMD EPYC of family 26, one thread, busy; N 128 to 4480, K 64 to 1024), inside 0.96 to 1.13.
BF16_ROWS_FROM = 512
BF16_TERMS_FROM = 128
BF16_WEIGHT_COLUMNS = 512
AMX_TERMS = 32  # bfloat16 numbers in a row of one of AMX's tiles
# Multiplications in W_ih's product with the one-hot of token ids up to which a single step is left to ATen.
ONE_HOT_PRODUCT = 1 << 20
FEWEST_STEPS = 2  # a single step does not pay for packing the weights, whatever the shape
MOST_PADDING = 1.5  # a packed batch runs padded in C, and ATen takes only the steps that there are


# Floats of an input projection that is made at a time, which caches keep until it is read; and the fewest tokens of it,
# since each time reads W_ih anew.
CHUNK = 1 << 18
FEWEST_TOKENS = 128
MOST_WEIGHTS = 1 << 22  # floats of weights that are packed for a call as a whole; more do not stay in caches either


def packs(steps: int, batch: int, H: int) -> bool:
    """Whether such a call packs the weights.

    Measured with H 64 to 1024 (AMD EPYC of family 26, one thread). With B below 8 and 4 to 64 tokens that has paid from
    8 to 13 tokens on with H 64, from 14 to 17 with H 128, 20 to 28 with H 256, 40 with H 512, 60 to 80 with H 1024;
    with B 8 to 128 and T 1 and 2, where rows lie side by side, from 14, 20, 33, 59 and 110.
    """
    return steps * batch >= (4 + batch // 2 + H // 14 if batch < 8 else 8 + H // 10)


def steps_at_once(steps: int, batch: int, rows: int, columns: int, kept: bool) -> int:
    """Steps whose input projection is made at a time, from packed weights; rows: of W_ih. columns: of W_ih and W_hh.

    kept: whether the weights are packed already. Otherwise all of them are in memory for as long as the call takes,
    where one product after the other would do with the larger one of them: it has to be less than what it saves.
    """
    tokens = max(CHUNK // rows, FEWEST_TOKENS)
    if not kept and (rows * columns > MOST_WEIGHTS or steps * batch < tokens + columns):
        return steps
    return max(1, min(steps, tokens // batch))


@dataclass(frozen=True)
class CpuRow:
    """Shapes for which C is faster than ATen, with the range of speed-ups measured on their grid.

    Grid: B 1, 8, 32, 128; H 64 to 1024; `python -m bench.layers --device cpu`, AMD EPYC (Zen 5), 2 threads, float32;
    the rows are in bench/results/layers-cpu.csv. On Zen 4 (layers-cpu-zen4.csv), where the limit is lower, no row that
    these send to C is slower than ATen either.
    """

    cell: str
    speedup: str
    steps: int  # at least
    tokens: int = 1  # steps times batch, at least
    hidden: int = 1  # at least
    widest: int = 1 << 62  # hidden at most
    batch: int = 1 << 62  # at most
    training: bool = False  # whether only with the backward
    rows: int = 1  # batch at least

    def holds(self, cell: str, steps: int, batch: int, H: int, training: bool) -> bool:
        return (
            cell == self.cell
            and steps >= self.steps
            and steps * batch >= self.tokens
            and self.hidden <= H <= self.widest
            and self.rows <= batch <= self.batch
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
    CpuRow("lstm", "1.1 to 1.6", steps=16, tokens=128, hidden=1024, batch=8),
    CpuRow("lstm", "1.1 to 2", steps=128, batch=1),
    CpuRow("lstm", "1 to 1.7", steps=128, widest=256, training=True),
    CpuRow("lstm", "1.1 to 1.2", steps=128, widest=512, batch=32, training=True),
)
# In bfloat16 with AVX-512's products of it, against torch.nn in bfloat16, whose LSTM is oneDNN's and has the same
# instructions: narrow ones are as fast or faster there. Grid: T 4, 16, 35, 128; B 1, 8, 32, 128; H 64, 256, 512, 1024;
# `python -m bench.bfloat16 --full`, AMD EPYC (Zen 5), one thread; the rows are in bench/results/bfloat16-cpu-grid.csv.
BF16_ROWS = (
    CpuRow("gru", "1.1 to 27", steps=16),
    CpuRow("gru", "1 to 1.6", steps=4, tokens=64),
    CpuRow("rnn_tanh", "1.1 to 14", steps=16),
    CpuRow("rnn_relu", "1.1 to 14", steps=16),
    CpuRow("lstm", "1.2 to 10", steps=4, hidden=512, training=True),
    CpuRow("lstm", "1.1 to 3", steps=128, hidden=256, training=True),
    CpuRow("lstm", "1.2 to 2.5", steps=4, hidden=256, batch=1),
    CpuRow("lstm", "1 to 1.6", steps=4, hidden=1024, batch=32),
)
# With AMX, which ATen's LSTM and products have too, but not its GRU and RNN, whose steps are operators. The same grid,
# Intel family 6 model 207, one thread; the rows are in bench/results/bfloat16-cpu-grid-amx.csv.
AMX_ROWS = (
    CpuRow("gru", "1.5 to 19", steps=16),
    CpuRow("gru", "1 to 1.8", steps=4),
    CpuRow("rnn_tanh", "1.2 to 11", steps=16, tokens=32),
    CpuRow("rnn_relu", "1.2 to 11", steps=16, tokens=32),
    CpuRow("lstm", "1 to 5", steps=4, hidden=256, training=True),
    CpuRow("lstm", "1 to 2.6", steps=4, hidden=512, batch=32),
)
# A projection folded into the weights (fastcells/projection.py), which costs a product of its own and, with the smaller
# P, up to 6 times the multiplications of a step. Measured with one thread of a busy machine, T=4 and 35, B 1 to 128, P
# an eighth to three quarters of H: against torch.nn's dense LSTM, and against a loop of steps, where ATen has none.
PROJECTED_ROWS = (
    CpuRow("lstm", "1.1 to 10", steps=32, widest=64),
    CpuRow("lstm", "1.1 to 1.7", steps=32, widest=256, rows=8),
)
PROJECTED_WIDE = CpuRow("lstm", "1.2 to 1.6", steps=32, widest=512, rows=32)  # where P is at least half of H


ROWS_OF = {"avx512": CPU_ROWS, "avx2": CPU_ROWS, "avx512_bf16": BF16_ROWS, "amx_bf16": AMX_ROWS}


def layer_advantage(instructions: str) -> str | None:
    """Why one call of C for a layer and direction is the fastest for an inference, or None."""
    if instructions not in ("avx512", "avx2"):
        return None
    return f"one call of C with {instructions} instructions for a layer and direction, without gradients"


def projected_advantage(steps: int, batch: int, H: int, P: int, *, training: bool, instructions: str) -> str | None:
    """Why C is the fastest for an LSTM with a projection, or None where it is not."""
    rows = (*PROJECTED_ROWS, PROJECTED_WIDE) if 2 * P >= H else PROJECTED_ROWS
    row = next((r for r in rows if r.holds("lstm", steps, batch, H, training)), None)
    if row is None or instructions != "avx512":  # the others were not timed
        return None
    return f"C with {instructions} instructions, {row.speedup} times as fast as torch's projected LSTM"


def defined_advantage(steps: int, instructions: str) -> str | None:
    """Why C is the fastest for a defined cell, for which there is a loop of torch's operators beside it, or None."""
    if steps < FEWEST_STEPS or instructions not in ("avx512", "avx2"):
        return None
    return "C, from the cell's definition; torch would run a loop of its operators"


def advantage(
    cell: str, steps: int, batch: int, H: int, *, training: bool, aten: bool, instructions: str
) -> str | None:
    """Why C is the fastest on the CPU for this shape, or None where it is not.

    training: whether a backward follows. aten: whether the alternative is ATen's fused recurrence; otherwise it is a
    loop over torch's operators, which is slower at every shape of more than one step.
    """
    if steps < FEWEST_STEPS or instructions not in ROWS_OF:  # the portable code was not timed
        return None
    if not aten:
        return f"C with {instructions} instructions; ATen has no fused recurrence for this case"
    row = next((r for r in ROWS_OF[instructions] if r.holds(cell, steps, batch, H, training)), None)
    return None if row is None else f"C with {instructions} instructions, {row.speedup} times as fast as ATen here"
