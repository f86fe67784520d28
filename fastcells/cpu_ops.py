"""The recurrence on the CPU in C (kernels/cpu): tensors are checked here, since C believes what it is told.

`forward` and `backward` run at once; `cpu_forward` and `cpu_backward` are the same as operators of torch.library, for
torch.compile. Without a C compiler at installation the module `_cpu` is missing; `obstacle` says so.
"""

from __future__ import annotations

import os
from typing import NamedTuple

import torch
from torch import Tensor

from fastcells import buffers
from fastcells.token_ids import is_token_ids
from fastcells.torch_impl.cell import Gradients

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
    hidden: Tensor  # [T, B, H]
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
    T, B, H = _sizes(c, x, w)
    x, w = _float32("x", x, (T, B, c.gates * H)), _float32("w", w, (c.gates * H, H))
    b = None if b is None else _float32("b", b, (c.gates * H,))
    mask, resets = _mask("mask", mask, T, B), _mask("resets", resets, T, B)
    h0, c0 = _pair(state, c, (B, H), "h0", "c0")
    hidden = x.new_empty(T, B, H)
    h_n, c_n = x.new_empty(B, H), None if c0 is None else x.new_empty(B, H)
    cells = buffers.empty(T, B, H) if save and c0 is not None else None
    saved = buffers.empty(T, B, c.saved, H) if save and c.saved else None
    if hidden.numel():
        outputs = (hidden, cells, saved, h_n, c_n)
        addresses = [0 if t is None else t.data_ptr() for t in (x, w, b, mask, resets, h0, c0, *outputs)]
        _cpu.forward(_instructions, c.number, _threads(T * B * w.numel()), T, B, H, reverse, *addresses)
    else:
        h_n.copy_(h0)
        if c_n is not None and c0 is not None:
            c_n.copy_(c0)
    return Forward(hidden, cells, saved, (h_n,) if c_n is None else (h_n, c_n))


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
    T, B, H = _sizes(c, d_hidden, w)
    w, d_hidden = _float32("w", w, (c.gates * H, H)), _float32("d_hidden", d_hidden, (T, B, H))
    hidden = _float32("hidden", hidden, (T, B, H))
    mask, resets = _mask("mask", mask, T, B), _mask("resets", resets, T, B)
    h0, c0 = _pair(state, c, (B, H), "h0", "c0")
    d_h_n, d_c_n = _pair(d_last, c, (B, H), "d_h_n", "d_c_n")
    cells = _float32("cells", cells, (T, B, H)) if c.states == 2 else None
    saved = _float32("saved", saved, (T, B, c.saved, H)) if c.saved else None
    d_x = buffers.empty(T, B, c.gates * H)
    d_gates = buffers.empty(T, B, c.gates * H) if cell == "gru" else None
    d_h0, d_c0 = hidden.new_empty(B, H), None if c0 is None else hidden.new_empty(B, H)
    if hidden.numel():
        tensors = (w, mask, resets, h0, c0, hidden, cells, saved, d_hidden, d_h_n, d_c_n, d_x, d_gates, d_h0, d_c0)
        addresses = [0 if t is None else t.data_ptr() for t in tensors]
        _cpu.backward(_instructions, c.number, _threads(T * B * w.numel()), T, B, H, reverse, *addresses)
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
    (rows, I), (_, H) = _matrix("w_ih", w_ih), _matrix("w_hh", w_hh)  # noqa: E741
    w_ih, w_hh = _float32("w_ih", w_ih, (c.gates * H, I)), _float32("w_hh", w_hh, (c.gates * H, H))
    b_ih, b_hh = (None if b is None else _float32(n, b, (rows,)) for n, b in (("b_ih", b_ih), ("b_hh", b_hh)))
    if len(state) != c.states:
        raise RuntimeError(f"expected {c.states} states, got {len(state)}")
    for s in state:
        if _float32("state", s, (H,)).data_ptr() != s.data_ptr():
            raise RuntimeError(f"a state that changes in place must be contiguous, got strides {s.stride()}")
    dense = None if isinstance(x, int) else _float32("x", x, (I,))
    if isinstance(x, int) and not 0 <= x < I:
        raise IndexError(f"token id {x} is outside [0, {I})")
    if H == 0:
        return
    addresses = [0 if t is None else t.data_ptr() for t in (w_ih, w_hh, b_ih, b_hh, state[0], *state[1:])]
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
    rows, columns = _matrix("w", w)
    w, x = _float32("w", w, (rows, columns)), _float32("x", x, (columns,))
    b = None if b is None else _float32("b", b, (rows,))
    out = w.new_empty(rows)
    addresses = (w.data_ptr(), x.data_ptr(), 0 if b is None else b.data_ptr(), out.data_ptr())
    _cpu.matvec(_instructions, _threads(w.numel()), rows, columns, *addresses)
    return out


def weight_gradients(d: Tensor, *pieces: Tensor) -> tuple[Tensor, Tensor]:
    """`d.t() @ x` and `d.sum(0)` for d [N, rows], whose rows may lie apart, and x [N, columns], float32.

    pieces: x, or two tensors that are x when put below each other.

    Raises:
        as `forward`.
    """
    x, rest = pieces if len(pieces) == 2 else (pieces[0], None)
    (N, rows), (split, columns) = _matrix("d", d), _matrix("x", x)
    left = 0 if rest is None else _matrix("the rest of x", rest)[0]
    if split + left != N:
        raise RuntimeError(f"d has {N} rows, and x {split + left}")
    x = _float32("x", x, (split, columns))
    rest = None if rest is None else _float32("the rest of x", rest, (left, columns))
    d = _float32("d", d, (N, rows), rows_apart=True)
    out, sums = x.new_empty(rows, columns), x.new_empty(rows)
    if d.numel() == 0 or columns == 0:
        return out.zero_(), torch.sum(d.detach(), 0, out=sums)
    addresses = [0 if t is None else t.data_ptr() for t in (d, x, rest, out, sums)]
    _cpu.weights(_instructions, _threads(N * rows * columns), N, rows, columns, d.stride(0), split, *addresses)
    return out, sums


def gather(ids: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
    """`one_hot(ids) @ w.t() + b` for integer ids [N], w [G, V] and b [G]: [N, G], float32.

    Raises:
        as `forward`. IndexError: an id outside [0, V).
    """
    ids, (G, V) = _ids(ids), _matrix("w", w)
    w, b = _float32("w", w, (G, V)), None if b is None else _float32("b", b, (G,))
    out = buffers.empty(len(ids), G)  # an input projection, which no user gets to see
    addresses = (ids.data_ptr(), w.data_ptr(), 0 if b is None else b.data_ptr(), out.data_ptr())
    _inside(ids, V, _cpu.gather(_few_threads(out), len(ids), G, V, *addresses))
    return out


def scatter(ids: Tensor, d: Tensor, vocabulary: int) -> tuple[Tensor, Tensor]:
    """The adjoint of `gather` for d [N, G]: the gradients of w, [G, V], and of b, [G]. Sums in the order of the ids.

    Raises:
        as `gather`.
    """
    ids, (N, G) = _ids(ids), _matrix("d", d)
    d = _float32("d", d, (len(ids), G))
    out, sums = d.new_empty(G, vocabulary), d.new_empty(G)
    addresses = (ids.data_ptr(), d.data_ptr(), out.data_ptr(), sums.data_ptr())
    _inside(ids, vocabulary, _cpu.scatter(_few_threads(d), N, G, vocabulary, *addresses))
    return out, sums


def _ids(ids: Tensor) -> Tensor:
    if not isinstance(ids, Tensor) or ids.dim() != 1 or ids.device.type != "cpu" or not is_token_ids(ids):
        shown = f"{ids.dtype} {list(ids.shape)} on {ids.device}" if isinstance(ids, Tensor) else type(ids).__name__
        raise RuntimeError(f"ids must be a vector of integers on the CPU, got {shown}")
    return _in_memory("ids", ids.long().contiguous())


def _inside(ids: Tensor, vocabulary: int, position: int) -> None:
    if position < len(ids):
        raise IndexError(f"token id {int(ids[position])} is outside [0, {vocabulary})")


def _matrix(name: str, t: Tensor) -> tuple[int, int]:
    if not isinstance(t, Tensor) or t.dim() != 2:
        raise RuntimeError(f"{name} must be a matrix, got {getattr(t, 'shape', type(t).__name__)}")
    return t.shape[0], t.shape[1]


def _few_threads(touched: Tensor) -> int:
    """For what moves memory: a thread for each 16,000 elements."""
    return _team_for(touched.numel(), 1 << 14)


def _sizes(cell: Cell, x: object, w: object) -> tuple[int, int, int]:
    """T, B and H, as x and w say; every other tensor has to agree."""
    for name, t, dim in (("x or d_hidden", x, 3), ("w", w, 2)):
        if not isinstance(t, Tensor) or t.dim() != dim:
            shown = f"shape {list(t.shape)}" if isinstance(t, Tensor) else type(t).__name__
            raise RuntimeError(f"{name} must be a tensor of {dim} dimensions, got {shown}")
    assert isinstance(x, Tensor) and isinstance(w, Tensor)
    return x.shape[0], x.shape[1], w.shape[1]


def _float32(name: str, t: Tensor | None, shape: tuple[int, ...], *, rows_apart: bool = False) -> Tensor:
    """A float32 tensor on the CPU, contiguous, or a matrix with contiguous rows that may lie apart; RuntimeError."""
    if not isinstance(t, Tensor):
        raise RuntimeError(f"{name} must be a tensor of shape {list(shape)}, got {type(t).__name__}")
    if t.shape != shape or t.dtype != torch.float32 or t.device.type != "cpu":
        raise RuntimeError(
            f"{name} must be float32 {list(shape)} on the CPU, got {t.dtype} {list(t.shape)} on {t.device}"
        )
    t = t.resolve_neg()
    if not (rows_apart and t.layout is torch.strided and t.stride(1) == 1 and t.stride(0) >= t.shape[1]):
        t = t.contiguous()  # raises for a layout that has no strides
    return _in_memory(name, t)


def _in_memory(name: str, t: Tensor) -> Tensor:
    """A contiguous tensor as C reads it, aligned to its elements; RuntimeError for one that has no memory at all.

    Fake tensors, wrappers that keep their values elsewhere, and tensors whose storage was freed have the address 0.
    """
    address = t.data_ptr()
    if address == 0 and t.numel():
        if not t._is_zerotensor():
            raise RuntimeError(f"{name}, a {type(t).__name__}, has no memory that C could read")
        t = t.clone()  # the zeros, written out
    return t if address % t.element_size() == 0 else t.clone()


def _mask(name: str, mask: Tensor | None, T: int, B: int) -> Tensor | None:
    if mask is None:
        return None
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.device.type != "cpu":
        shown = f"{mask.dtype} on {mask.device}" if isinstance(mask, Tensor) else type(mask).__name__
        raise RuntimeError(f"{name} must be bool on the CPU, got {shown}")
    if mask.shape not in ((T, B), (T, B, 1)):
        raise RuntimeError(f"{name} must be {[T, B]}, got {list(mask.shape)}")
    return _in_memory(name, mask.contiguous())


def _pair(
    state: tuple[Tensor, ...], cell: Cell, shape: tuple[int, int], h: str, c: str
) -> tuple[Tensor, Tensor | None]:
    """(h, c), c being None for a cell without."""
    if len(state) != cell.states:
        raise RuntimeError(f"expected {cell.states} states ({h}, {c}), got {len(state)}")
    return _float32(h, state[0], shape), _float32(c, state[1], shape) if cell.states == 2 else None


def _threads(multiplications: int) -> int:
    """For what computes."""
    return _team_for(multiplications, WORK_OF_A_THREAD)


def _team_for(work: int, of_a_thread: int) -> int:
    """torch's number of threads, or fewer where there is less to do."""
    return max(1, min(torch.get_num_threads(), MOST_THREADS, work // of_a_thread))


@torch.library.custom_op("fastcells::cpu_forward", mutates_args=())
def cpu_forward(
    x: Tensor,
    h0: Tensor,
    c0: Tensor | None,
    w: Tensor,
    b: Tensor | None,
    mask: Tensor | None,
    resets: Tensor | None,
    cell: str,
    reverse: bool,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """`forward` as an operator: hidden, cells, saved, h_n and c_n; an empty tensor stands for what a cell has not."""
    state = (h0,) if c0 is None else (h0, c0)
    out = forward(cell, x, state, w, b, mask, resets=resets, reverse=reverse, save=save)
    h_n, c_n = out.last[0], out.last[-1] if c0 is not None else None
    return out.hidden, _some(out.cells, x), _some(out.saved, x), h_n, _some(c_n, x)


@cpu_forward.register_fake
def _(
    x: Tensor,
    h0: Tensor,
    c0: Tensor | None,
    w: Tensor,
    b: Tensor | None,
    mask: Tensor | None,
    resets: Tensor | None,
    cell: str,
    reverse: bool,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    T, (B, H), width = x.shape[0], h0.shape, CELLS[cell].saved
    cells = x.new_empty(T, B, H) if save and c0 is not None else x.new_empty(0)
    saved = x.new_empty(T, B, width, H) if save and width else x.new_empty(0)
    c_n = x.new_empty(0) if c0 is None else x.new_empty(B, H)
    return x.new_empty(T, B, H), cells, saved, x.new_empty(B, H), c_n


@torch.library.custom_op("fastcells::cpu_backward", mutates_args=())
def cpu_backward(
    d_hidden: Tensor,
    d_h_n: Tensor,
    d_c_n: Tensor | None,
    h0: Tensor,
    c0: Tensor | None,
    w: Tensor,
    mask: Tensor | None,
    resets: Tensor | None,
    hidden: Tensor,
    cells: Tensor | None,
    saved: Tensor | None,
    cell: str,
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`backward` as an operator: d_x, d_gates (empty where it is the same as d_x), d_h0 and d_c0."""
    state, d_last = ((h0,), (d_h_n,)) if c0 is None or d_c_n is None else ((h0, c0), (d_h_n, d_c_n))
    given = (hidden, cells, saved)
    out = backward(cell, d_hidden, d_last, state, w, mask, *given, resets=resets, reverse=reverse)
    d_gates = None if out.d_gates is out.d_x else out.d_gates
    return out.d_x, _some(d_gates, w), out.d_state[0], _some(out.d_state[1] if c0 is not None else None, w)


@cpu_backward.register_fake
def _(
    d_hidden: Tensor,
    d_h_n: Tensor,
    d_c_n: Tensor | None,
    h0: Tensor,
    c0: Tensor | None,
    w: Tensor,
    mask: Tensor | None,
    resets: Tensor | None,
    hidden: Tensor,
    cells: Tensor | None,
    saved: Tensor | None,
    cell: str,
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    T, B, H = hidden.shape
    d_x = hidden.new_empty(T, B, CELLS[cell].gates * H)
    d_gates = torch.empty_like(d_x) if cell == "gru" else w.new_empty(0)
    return d_x, d_gates, hidden.new_empty(B, H), w.new_empty(0) if c0 is None else hidden.new_empty(B, H)


def _some(tensor: Tensor | None, like: Tensor) -> Tensor:
    """An operator returns tensors only: an empty one stands for None."""
    return like.new_empty(0) if tensor is None else tensor
