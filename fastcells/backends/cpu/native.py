"""The recurrence on the CPU in C (kernels/cpu): its calls, with tensors that checks.py has seen.

`forward` and `backward` run at once; library.py makes operators of torch.library of them. Without a C compiler at
installation the module `_cpu` is missing; `obstacle` says so.
"""

from __future__ import annotations

import os
from typing import NamedTuple

import torch
from torch import Tensor

from fastcells.backends.base import Gradients
from fastcells.backends.cpu import buffers
from fastcells.backends.cpu import checks as check

try:
    from fastcells.kernels import _cpu  # type: ignore[attr-defined]
except ImportError:  # built only where there was a C compiler
    _cpu = None


class Cell(NamedTuple):
    """A cell as kernels/cpu/recurrence.h knows it."""

    number: int
    gates: int
    states: int
    saved: int  # values per hidden unit and token, besides h and c


CELLS = {
    "rnn_tanh": Cell(0, 1, 1, 0),
    "rnn_relu": Cell(1, 1, 1, 0),
    "gru": Cell(2, 3, 1, 4),
    "gru_reset_before": Cell(3, 3, 1, 3),
    "lstm": Cell(4, 4, 2, 4),
}
# Multiplications that are worth another thread: starting a team costs a few microseconds, in which one does this many.
WORK_OF_A_THREAD = 1 << 18
MOST_THREADS = 256  # as many as kernels/cpu/team.c starts by itself


class Forward(NamedTuple):
    out: Tensor  # [T, B, H] for the caller: zero where the mask is false, in memory that `backward` does not read
    hidden: Tensor  # [T, B, H] the state after each step; `out` itself where nothing tells them apart
    cells: Tensor | None  # [T, B, H], for a cell with a c, if saved
    saved: Tensor | None  # [T, B, saved, H]
    last: tuple[Tensor, ...]  # each [B, H]


# The sets of vector instructions that C was written for, and whether this machine has them; the best first.
INSTRUCTIONS: dict[str, bool] = {} if _cpu is None else dict(_cpu.backends())


def _chosen() -> int:
    """The position of the instructions to use: those of the environment variable FASTCELLS_CPU, or the best."""
    usable = [name for name, here in INSTRUCTIONS.items() if here]
    wanted = os.environ.get("FASTCELLS_CPU") or next(iter(usable), "")
    if usable and wanted not in usable:
        raise ImportError(f"FASTCELLS_CPU={wanted!r}, but this machine has {', '.join(usable)}")
    return list(INSTRUCTIONS).index(wanted) if usable else -1


_instructions = _chosen()


def instruction_set() -> str:
    """The vector instructions in use; "" without the C module."""
    return list(INSTRUCTIONS)[_instructions] if INSTRUCTIONS else ""


def team() -> str:
    """Where threads come from: "openmp", torch's own, or "threads", started for each call; "" without the C module."""
    return "" if _cpu is None else _cpu.team()


def obstacle() -> str | None:
    """Why C cannot run here, or None."""
    if _cpu is None:
        return "the C module was not built: fastcells was installed without a C compiler"
    return None


def forward(
    cell: str,
    x: Tensor,
    state: tuple[Tensor, ...],
    w: Tensor,
    b: Tensor | None,
    mask: Tensor | None,
    *,
    resets: Tensor | None = None,
    reverse: bool = False,
    save: bool = False,
) -> Forward:
    """All steps of one layer in one direction.

    x: [T, B, G*H], the input projection with its bias. state: (h0,) or (h0, c0), each [B, H]. w: [G*H, H]. b: [G*H].
    mask: bool [T, B] or [T, B, 1], false where the state stands still. resets: bool of the same shape, true where a
    step starts from zeros. All else float32; any strides.
    save: whether `backward` will follow.

    Raises:
        RuntimeError: a tensor has another shape, dtype or device; the message names it. MemoryError.
    """
    c = CELLS[cell]
    T, B, H = check.sizes(x, w)
    x, w = check.float32("x", x, (T, B, c.gates * H)), check.float32("w", w, (c.gates * H, H))
    b = None if b is None else check.float32("b", b, (c.gates * H,))
    mask, resets = check.mask("mask", mask, T, B), check.mask("resets", resets, T, B)
    h0, c0 = check.pair(state, c.states, (B, H), "h0", "c0")
    out = x.new_empty(T, B, H)
    hidden = buffers.empty(T, B, H) if save or mask is not None else out
    h_n, c_n = x.new_empty(B, H), None if c0 is None else x.new_empty(B, H)
    cells = buffers.empty(T, B, H) if save and c0 is not None else None
    saved = buffers.empty(T, B, c.saved, H) if save and c.saved else None
    if hidden.numel():
        all_steps, state_shape = (T, B, H), (B, H)
        outputs = check.written(
            ("hidden", hidden, all_steps),
            ("cells", cells, all_steps),
            ("saved", saved, (T, B, c.saved, H)),
            ("out", None if out is hidden else out, all_steps),
            ("h_n", h_n, state_shape),
            ("c_n", c_n, state_shape),
        )
        inputs = _addresses(x, w, b, mask, resets, h0, c0)
        _cpu.forward(_instructions, c.number, _threads(T * B * w.numel()), T, B, H, reverse, *inputs, *outputs)
    else:
        h_n.copy_(h0)
        if c_n is not None and c0 is not None:
            c_n.copy_(c0)
    return Forward(out, hidden, cells, saved, (h_n,) if c_n is None else (h_n, c_n))


def backward(
    cell: str,
    d_hidden: Tensor,
    d_last: tuple[Tensor, ...],
    state: tuple[Tensor, ...],
    w: Tensor,
    mask: Tensor | None,
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
    c = CELLS[cell]
    T, B, H = check.sizes(d_hidden, w)
    w, d_hidden = check.float32("w", w, (c.gates * H, H)), check.float32("d_hidden", d_hidden, (T, B, H))
    hidden = check.float32("hidden", hidden, (T, B, H))
    mask, resets = check.mask("mask", mask, T, B), check.mask("resets", resets, T, B)
    h0, c0 = check.pair(state, c.states, (B, H), "h0", "c0")
    d_h_n, d_c_n = check.pair(d_last, c.states, (B, H), "d_h_n", "d_c_n")
    cells = check.float32("cells", cells, (T, B, H)) if c.states == 2 else None
    saved = check.float32("saved", saved, (T, B, c.saved, H)) if c.saved else None
    d_x = buffers.empty(T, B, c.gates * H)
    d_gates = buffers.empty(T, B, c.gates * H) if cell == "gru" else None
    d_h0, d_c0 = hidden.new_empty(B, H), None if c0 is None else hidden.new_empty(B, H)
    if hidden.numel():
        gates, state_shape = (T, B, c.gates * H), (B, H)
        outputs = check.written(
            ("d_x", d_x, gates), ("d_gates", d_gates, gates), ("d_h0", d_h0, state_shape), ("d_c0", d_c0, state_shape)
        )
        inputs = _addresses(w, mask, resets, h0, c0, hidden, cells, saved, d_hidden, d_h_n, d_c_n)
        _cpu.backward(_instructions, c.number, _threads(T * B * w.numel()), T, B, H, reverse, *inputs, *outputs)
    else:
        d_h0.copy_(d_h_n)
        if d_c0 is not None and d_c_n is not None:
            d_c0.copy_(d_c_n)
    return Gradients(d_x, d_x if d_gates is None else d_gates, (d_h0,) if d_c0 is None else (d_h0, d_c0))


def step_in_place(
    cell: str, x: Tensor | int, state: tuple[Tensor, ...], weights: tuple[Tensor, Tensor, Tensor | None, Tensor | None]
) -> None:
    """One step of one sequence: `state` becomes the state after it.

    x: [I], or a token id. state: (h,) or (h, c), each [H] and contiguous. weights: w_ih [G*H, I], w_hh [G*H, H], b_ih
    and b_hh [G*H] or None. All float32.

    Raises:
        as `forward`. IndexError: an id outside [0, I).
    """
    c = CELLS[cell]
    w_ih, w_hh, b_ih, b_hh = weights
    (rows, I), (_, H) = check.matrix("w_ih", w_ih), check.matrix("w_hh", w_hh)  # noqa: E741
    w_ih, w_hh = check.float32("w_ih", w_ih, (c.gates * H, I)), check.float32("w_hh", w_hh, (c.gates * H, H))
    b_ih, b_hh = (None if b is None else check.float32(n, b, (rows,)) for n, b in (("b_ih", b_ih), ("b_hh", b_hh)))
    if len(state) != c.states:
        raise RuntimeError(f"expected {c.states} states, got {len(state)}")
    for s in state:
        if check.float32("state", s, (H,)).data_ptr() != s.data_ptr():
            raise RuntimeError(f"a state that changes in place must be contiguous, got strides {s.stride()}")
    dense = None if isinstance(x, int) else check.float32("x", x, (I,))
    if isinstance(x, int) and not 0 <= x < I:
        raise IndexError(f"token id {x} is outside [0, {I})")
    if H == 0:
        return
    addresses = _addresses(w_ih, w_hh, b_ih, b_hh) + check.written(*(("state", s, (H,)) for s in state))
    _cpu.single(
        _instructions,
        c.number,
        _threads(w_hh.numel()),
        H,
        I,
        0 if dense is None else dense.data_ptr(),
        x if dense is None else -1,
        *addresses,
        *(0,) * (2 - c.states),
    )


def matvec(w: Tensor, x: Tensor, b: Tensor | None) -> Tensor:
    """`w @ x + b` for w [rows, columns], x [columns] and b [rows], float32, without autograd.

    Raises:
        as `forward`.
    """
    rows, columns = check.matrix("w", w)
    w, x = check.float32("w", w, (rows, columns)), check.float32("x", x, (columns,))
    b = None if b is None else check.float32("b", b, (rows,))
    out = w.new_empty(rows)
    addresses = _addresses(w, x, b) + check.written(("out", out, (rows,)))
    _cpu.matvec(_instructions, _threads(w.numel()), rows, columns, *addresses)
    return out


def linear(x: Tensor, w: Tensor, b: Tensor | None = None, *, transposed: bool = False) -> Tensor:
    """`x @ w.t() + b` for x [N, K], whose rows may lie apart, w [M, K] and b [M], float32, without autograd.

    transposed: w is [K, M], and the product `x @ w + b`.

    Raises:
        as `forward`.
    """
    (N, K), (rows, columns) = check.matrix("x", x), check.matrix("w", w)
    M = columns if transposed else rows
    x = check.float32("x", x, (N, K), rows_apart=True)
    w = check.float32("w", w, (K, M) if transposed else (M, K))
    b = None if b is None else check.float32("b", b, (M,))
    out = x.new_empty(N, M)
    if K == 0:
        return out.zero_() if b is None else out.copy_(b)
    if out.numel():
        addresses = _addresses(x, w, b) + check.written(("out", out, (N, M)))
        _cpu.linear(_instructions, _threads(N * K * M), N, K, M, x.stride(0), transposed, *addresses)
    return out


def weight_gradients(d: Tensor, *pieces: Tensor) -> tuple[Tensor, Tensor]:
    """`d.t() @ x` and `d.sum(0)` for d [N, rows], whose rows may lie apart, and x [N, columns], float32.

    pieces: x, or two tensors that are x when put below each other.

    Raises:
        as `forward`.
    """
    x, rest = pieces if len(pieces) == 2 else (pieces[0], None)
    (N, rows), (split, columns) = check.matrix("d", d), check.matrix("x", x)
    left = 0 if rest is None else check.matrix("the rest of x", rest)[0]
    if split + left != N:
        raise RuntimeError(f"d has {N} rows, and x {split + left}")
    x = check.float32("x", x, (split, columns))
    rest = None if rest is None else check.float32("the rest of x", rest, (left, columns))
    d = check.float32("d", d, (N, rows), rows_apart=True)
    out, sums = x.new_empty(rows, columns), x.new_empty(rows)
    if d.numel() == 0 or columns == 0:
        return out.zero_(), torch.sum(d.detach(), 0, out=sums)
    addresses = _addresses(d, x, rest) + check.written(("out", out, (rows, columns)), ("sums", sums, (rows,)))
    _cpu.weights(_instructions, _threads(N * rows * columns), N, rows, columns, d.stride(0), split, *addresses)
    return out, sums


def gather(ids: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
    """`one_hot(ids) @ w.t() + b` for integer ids [N], w [G, V] and b [G]: [N, G], float32.

    Raises:
        as `forward`. IndexError: an id outside [0, V).
    """
    ids, (G, V) = check.ids(ids), check.matrix("w", w)
    w, b = check.float32("w", w, (G, V)), None if b is None else check.float32("b", b, (G,))
    out = buffers.empty(len(ids), G)  # an input projection, which no user gets to see
    addresses = _addresses(ids, w, b) + check.written(("out", out, (len(ids), G)))
    check.inside(ids, V, _cpu.gather(_few_threads(out), len(ids), G, V, *addresses))
    return out


def scatter(ids: Tensor, d: Tensor, vocabulary: int) -> tuple[Tensor, Tensor]:
    """The adjoint of `gather` for d [N, G]: the gradients of w, [G, V], and of b, [G]. Sums in the order of the ids.

    Raises:
        as `gather`.
    """
    ids, (N, G) = check.ids(ids), check.matrix("d", d)
    d = check.float32("d", d, (len(ids), G))
    out, sums = d.new_empty(G, vocabulary), d.new_empty(G)
    addresses = _addresses(ids, d) + check.written(("out", out, (G, vocabulary)), ("sums", sums, (G,)))
    check.inside(ids, vocabulary, _cpu.scatter(_few_threads(d), N, G, vocabulary, *addresses))
    return out, sums


def _addresses(*tensors: Tensor | None) -> list[int]:
    """Of what C reads, which has been checked; 0 for None."""
    return [0 if t is None else t.data_ptr() for t in tensors]


def _few_threads(touched: Tensor) -> int:
    """For what moves memory: a thread for each 16,000 elements."""
    return _team_for(touched.numel(), 1 << 14)


def _threads(multiplications: int) -> int:
    """For what computes."""
    return _team_for(multiplications, WORK_OF_A_THREAD)


def _team_for(work: int, of_a_thread: int) -> int:
    """torch's number of threads, or fewer where there is less to do."""
    return max(1, min(torch.get_num_threads(), MOST_THREADS, work // of_a_thread))
