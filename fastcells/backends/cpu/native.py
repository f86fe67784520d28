"""The recurrence on the CPU in C (kernels/cpu): its calls, with tensors that checks.py has seen.

`forward` and `backward` run at once; library.py makes operators of torch.library of them. Without a C compiler at
installation the module `_cpu` is missing; `obstacle` says so.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastcells.backends.base import Gradients
from fastcells.backends.cpu import arguments, buffers
from fastcells.backends.cpu import checks as check
from fastcells.backends.cpu.arguments import Tensors
from fastcells.backends.cpu.cores import cores
from fastcells.backends.cpu.instructions import BESIDE, BF16_INSTRUCTIONS, INSTRUCTIONS, chosen
from fastcells.spec import SPECS

_cpu = arguments.c_module
# C's number of each cell.
_NUMBERS: dict[str, int] = {} if _cpu is None else {name: i for i, (name, *_) in enumerate(_cpu.cells())}
# Multiplications that are worth another thread: starting a team costs a few microseconds, in which one does this many.
WORK_OF_A_THREAD = 1 << 18
WORK_OF_A_STEP = 1 << 16  # multiplications of one step, of which a barrier takes as long as a few thousand
# A row, or two, and fewer packed weights than this take less time than what a second thread waits for in each step.
# Measured, T=35: one thread is 1.3 times as fast as two with B=1 and 16,000 weights, 1.1 with B=2 and 12,000; slower
# with 49,000 and 16,000.
SMALL_WEIGHTS = {1: 1 << 15, 2: 1 << 14}
FEWEST_ROWS = 2  # that AMX multiplies faster than vectors, whose tiles may be wider for a row by itself
MOST_THREADS = 256  # as many as kernels/cpu/team.c starts by itself


class Forward(NamedTuple):
    out: Tensor  # [T, B, H] for the caller: zero past a row's length, in memory that `backward` does not read
    hidden: Tensor  # [T, B, H] the state after each step; `out` itself where nothing tells them apart
    cells: Tensor | None  # [T, B, H], for a cell with a c, if saved
    saved: Tensor | None  # [T, B, saved, H]
    last: tuple[Tensor, ...]  # each [B, H]


_instructions, _bf16_instructions = chosen()


def instruction_set() -> str:
    """The vector instructions in use; "" without the C module."""
    return list(INSTRUCTIONS)[_instructions] if INSTRUCTIONS else ""


def bf16_instruction_set() -> str:
    """Those in use for bfloat16; "" where there are none."""
    return "" if _bf16_instructions < 0 else list(BF16_INSTRUCTIONS)[_bf16_instructions]


def team() -> str:
    """Where threads come from: "openmp", torch's own, or "threads", started for each call; "" without the C module."""
    return "" if _cpu is None else _cpu.team()


def obstacle() -> str | None:
    """Why C cannot run here, or None."""
    if _cpu is None:
        return "the C module was not built: fastcells was installed without a C compiler"
    return None


def bf16_obstacle() -> str | None:
    """Why C cannot run a recurrence in bfloat16 here, or None."""
    if not any(BF16_INSTRUCTIONS.values()):
        return f"this processor has no instructions for bfloat16 ({' or '.join(BESIDE)})"
    if _bf16_instructions < 0:
        return f"there are no instructions for bfloat16 in {instruction_set()}"
    return obstacle()


def forward(
    cell: str,
    x: Tensor,
    state: tuple[Tensor, ...],
    w: Tensor,
    b: Tensor | None,
    lengths: Tensor | None,
    *,
    resets: Tensor | None = None,
    reverse: bool = False,
    save: bool = False,
) -> Forward:
    """All steps of one layer in one direction.

    x: [T, B, G*H], the input projection with its bias. state: (h0,) or (h0, c0), each [B, H]. w: [G*H, H]. b: [G*H].
    lengths: integers [B]; from step lengths[b] on, the state of row b stands still. resets: bool [T, B], true where a
    step starts from zeros; past a row's length they mean nothing. All else float32, or bfloat16 where `bf16_obstacle`
    has nothing against it; any strides.
    save: whether `backward` will follow.

    Raises:
        RuntimeError: a tensor has another shape, dtype or device; the message names it. MemoryError.
    """
    h0, c0 = check.pair(state, len(SPECS[cell].states), "h0, c0")
    given = {"x": x, "h0": h0, "c0": c0, "w": w, "b": b, "lengths": lengths, "resets": resets}
    written = recur("forward", cell, given, reverse, save)
    out, hidden, cells, saved, h_n, c_n = written.values()
    assert out is not None and h_n is not None
    return Forward(out, out if hidden is None else hidden, cells, saved, (h_n,) if c_n is None else (h_n, c_n))


def backward(
    cell: str,
    d_hidden: Tensor,
    d_last: tuple[Tensor, ...],
    state: tuple[Tensor, ...],
    w: Tensor,
    lengths: Tensor | None,
    hidden: Tensor,
    cells: Tensor | None,
    saved: Tensor | None,
    *,
    resets: Tensor | None = None,
    reverse: bool = False,
) -> Gradients:
    """The adjoint of `forward`; hidden, cells and saved are what it left behind.

    d_hidden: [T, B, H]. d_last: each [B, H].

    Raises:
        as `forward`.
    """
    states = len(SPECS[cell].states)
    (h0, c0), (d_h_n, d_c_n) = check.pair(state, states, "h0, c0"), check.pair(d_last, states, "d_h_n, d_c_n")
    given = {"d_hidden": d_hidden, "d_h_n": d_h_n, "d_c_n": d_c_n, "h0": h0, "c0": c0, "w": w}
    given |= {"lengths": lengths, "resets": resets, "hidden": hidden, "cells": cells, "saved": saved}
    written = recur("backward", cell, given, reverse)
    d_x, d_gates, d_h0, d_c0 = written.values()
    assert d_x is not None and d_h0 is not None
    return Gradients(d_x, d_x if d_gates is None else d_gates, (d_h0,) if d_c0 is None else (d_h0, d_c0))


# What the last state, or the gradient of the first, is where there is no step.
_WITHOUT_STEPS = {
    "forward": (("h_n", "h0"), ("c_n", "c0")),
    "backward": (("d_h0", "d_h_n"), ("d_c0", "d_c_n")),
}


def recur(kernel: str, cell: str, given: Tensors, reverse: bool, save: bool = False) -> Tensors:
    """`forward` or `backward` with the tensors by their names in arguments.h. What C has written, None if nothing."""
    T, B, H = check.sizes(given["x"] if kernel == "forward" else given["d_hidden"], given["w"])
    shapes = arguments.shapes(cell, T, B, H)
    plan = arguments.recurrence(kernel, cell, save, save or given["lengths"] is not None, _element(given["w"]))
    read = plan.read(given, shapes)
    assert read[0] is not None
    outputs = plan.allocate(read[0], shapes)
    written = {name: t for name, t, _ in outputs}
    if T and B and H:
        addresses = [0 if t is None else t.data_ptr() for t in read]
        addresses += check.written(*outputs, dtype=plan.dtype).values()
        threads = _threads(T * B * len(SPECS[cell].gates) * H * H)
        getattr(_cpu, plan.function)(_position(plan.dtype, B), threads, _NUMBERS[cell], T, B, H, reverse, *addresses)
    else:
        for last, first in _WITHOUT_STEPS[kernel]:
            if (to := written[last]) is not None and (source := given[first]) is not None:
                to.copy_(source)
    return written


def _element(w: Tensor | None) -> torch.dtype:
    """The dtype that tensors beside these weights must have."""
    bf16 = w is not None and w.dtype is torch.bfloat16 and bf16_obstacle() is None
    return torch.bfloat16 if bf16 else torch.float32


def _position(dtype: torch.dtype, batch: int = FEWEST_ROWS) -> int:
    """Of the instructions that C uses for a dtype and a recurrence of so many rows, among those that there are."""
    if dtype is not torch.bfloat16:
        return _instructions
    few = batch < FEWEST_ROWS and bf16_instruction_set() == "amx_bf16"
    return list(BF16_INSTRUCTIONS).index("avx512_bf16") if few else _bf16_instructions


def _function(kernel: str, dtype: torch.dtype) -> Any:
    """A kernel of C that there is for each of the dtypes."""
    return getattr(_cpu, kernel if dtype == torch.float32 else f"{kernel}_bf16")


def call(kernel: str, multiplications: int, *arguments: int) -> None:
    """The kernel of a defined cell, with the instructions in use, and threads for so much work.

    Raises:
        ValueError: a program that C refuses. MemoryError.
    """
    getattr(_cpu, kernel)(_instructions, _threads(multiplications), *arguments)


def matvec(w: Tensor, x: Tensor, b: Tensor | None) -> Tensor:
    """`w @ x + b` for w [rows, columns], x [columns] and b [rows], float32, without autograd.

    Raises:
        as `forward`.
    """
    rows, columns = check.matrix("w", w)
    w, x = check.float32("w", w, (rows, columns)), check.float32("x", x, (columns,))
    b = None if b is None else check.float32("b", b, (rows,))
    out = w.new_empty(rows)
    read, written = _addresses(w=w, x=x, b=b), check.written(("out", out, (rows,)))
    _cpu.matvec(_instructions, _threads(w.numel()), rows=rows, columns=columns, **read, **written)
    return out


def linear(
    x: Tensor,
    w: Tensor,
    b: Tensor | None = None,
    *,
    transposed: bool = False,
    out: Tensor | None = None,
    accumulate: bool = False,
) -> Tensor:
    """`x @ w.t() + b` for x [N, K], whose rows may lie apart, w [M, K] and b [M], without autograd.

    All float32, or bfloat16 where `bf16_obstacle` has nothing against it: sums are float32.

    transposed: w is [K, M], and the product `x @ w + b`. out: [N, M], for the result; its rows may lie apart.
    accumulate: add to what `out` holds; b is None.

    Raises:
        as `forward`.
    """
    (N, K), (rows, columns) = check.matrix("x", x), check.matrix("w", w)
    M, dtype = columns if transposed else rows, _element(w)
    x = check.float32("x", x, (N, K), rows_apart=True, dtype=dtype)
    w = check.float32("w", w, (K, M) if transposed else (M, K), dtype=dtype)
    b = None if b is None else check.float32("b", b, (M,), dtype=dtype)
    out = x.new_empty(N, M) if out is None else out
    if K == 0 and not accumulate:
        return out.zero_() if b is None else out.copy_(b)
    if out.numel() and K:
        sizes = {"rows": N, "K": K, "columns": M, "x_stride": x.stride(0), "out_stride": out.stride(0)}
        read, written = _addresses(x=x, w=w, b=b), check.written(("out", out, (N, M)), rows_apart=True, dtype=dtype)
        flags = {"transposed": transposed, "accumulate": accumulate}
        _function("linear", dtype)(_position(dtype), _threads(N * K * M), **sizes, **flags, **read, **written)
    return out


def weight_gradients(
    d: Tensor,
    *pieces: Tensor,
    d_rest: Tensor | None = None,
    out: tuple[Tensor, Tensor] | None = None,
    accumulate: bool = False,
) -> tuple[Tensor, Tensor]:
    """`d.t() @ x` and `d.sum(0)` for d [N, rows], whose rows may lie apart, and x [N, columns].

    All float32, or bfloat16, as in `linear`.
    pieces: x, or two tensors that are x when put below each other. d_rest: what stands beside d, [N, more rows], whose
    rows may lie apart too. out: for the results.
    accumulate: add to what `out` holds.

    Raises:
        as `forward`.
    """
    x, rest = pieces if len(pieces) == 2 else (pieces[0], None)
    (N, first), (split, columns) = check.matrix("d", d), check.matrix("x", x)
    more = 0 if d_rest is None else check.matrix("the rest of d", d_rest)[1]
    rows = first + more
    left = 0 if rest is None else check.matrix("the rest of x", rest)[0]
    if split + left != N:
        raise RuntimeError(f"d has {N} rows, and x {split + left}")
    dtype = _element(x)
    x = check.float32("x", x, (split, columns), dtype=dtype)
    rest = None if rest is None else check.float32("the rest of x", rest, (left, columns), dtype=dtype)
    d = check.float32("d", d, (N, first), rows_apart=True, dtype=dtype)
    d_rest = None if d_rest is None else check.float32("the rest of d", d_rest, (N, more), rows_apart=True, dtype=dtype)
    d_w, d_b = out or (x.new_empty(rows, columns), x.new_empty(rows))
    if N * rows * columns == 0:
        sums = (d if d_rest is None else torch.cat([d, d_rest], 1)).detach().sum(0)
        return (d_w, d_b.add_(sums)) if accumulate else (d_w.zero_(), d_b.copy_(sums))
    sizes = {"tokens": N, "rows": rows, "columns": columns, "d_stride": d.stride(0)}
    sizes |= {"rest_stride": 0 if d_rest is None else d_rest.stride(0), "rest_rows": more}
    sizes |= {"split": split, "accumulate": accumulate}
    read = _addresses(d=d, d_rest=d_rest, x=x, x_rest=rest)
    written = check.written(("d_w", d_w, (rows, columns)), ("d_b", d_b, (rows,)), dtype=dtype)
    _function("weight_grad", dtype)(_position(dtype), _threads(N * rows * columns), **sizes, **read, **written)
    return d_w, d_b


def gather(ids: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
    """`one_hot(ids) @ w.t() + b` for integer ids [N], w [G, V] and b [G]: [N, G], float32.

    Raises:
        as `forward`. IndexError: an id outside [0, V).
    """
    ids, (G, V) = check.ids(ids), check.matrix("w", w)
    w, b = check.float32("w", w, (G, V)), None if b is None else check.float32("b", b, (G,))
    out = buffers.empty(len(ids), G)  # an input projection, which no user gets to see
    sizes = {"tokens": len(ids), "rows": G, "vocabulary": V}
    read, written = _addresses(ids=ids, w=w, b=b), check.written(("out", out, (len(ids), G)))
    check.inside(ids, V, _cpu.gather(_instructions, _few_threads(out), **sizes, **read, **written))
    return out


def scatter(ids: Tensor, d: Tensor, vocabulary: int) -> tuple[Tensor, Tensor]:
    """The adjoint of `gather` for d [N, G]: the gradients of w, [G, V], and of b, [G]. Sums in the order of the ids.

    Raises:
        as `gather`.
    """
    ids, (N, G) = check.ids(ids), check.matrix("d", d)
    d = check.float32("d", d, (len(ids), G))
    d_w, d_b = d.new_empty(G, vocabulary), d.new_empty(G)
    sizes, read = {"tokens": N, "rows": G, "vocabulary": vocabulary}, _addresses(ids=ids, d=d)
    written = check.written(("d_w", d_w, (G, vocabulary)), ("d_b", d_b, (G,)))
    check.inside(ids, vocabulary, _cpu.scatter(_instructions, _few_threads(d), **sizes, **read, **written))
    return d_w, d_b


def _addresses(**tensors: Tensor | None) -> dict[str, int]:
    """Of what C reads, which has been checked; 0 for None."""
    return {name: 0 if t is None else t.data_ptr() for name, t in tensors.items()}


def _few_threads(touched: Tensor) -> int:
    """For what moves memory: a thread for each 16,000 elements."""
    return _team_for(touched.numel(), 1 << 14)


def _threads(multiplications: int) -> int:
    """For what computes."""
    return _team_for(multiplications, WORK_OF_A_THREAD)


def layer_threads(packed: bool, T: int, B: int, I: int, rows: int, H: int) -> int:  # noqa: E741
    """The most threads that pay for one call for a layer and direction; see `no_more_than`."""
    work = T * B * rows * (H if packed else I + H) // WORK_OF_A_THREAD
    if packed and rows * H < SMALL_WEIGHTS.get(B, 0):
        return 1
    if not packed and T > 1:
        work = min(work, B * rows * H // WORK_OF_A_STEP)
    return max(1, min(torch.get_num_threads(), MOST_THREADS, work))


def no_more_than(most: int) -> int:
    """So many threads, or fewer where others have the cores."""
    return 1 if most < 2 else min(most, cores.limit())


def _team_for(work: int, of_a_thread: int) -> int:
    """torch's number of threads, or fewer where there is less to do or others have the cores."""
    return no_more_than(min(torch.get_num_threads(), MOST_THREADS, work // of_a_thread))
