"""What C may be given: it believes what it is told, so that tensors are checked before.

Tensors come back as C reads them: contiguous and aligned to their elements. RuntimeError where one has another type,
shape, dtype or device than it must, or no memory at all; the message names it. What C writes is checked as strictly
as what it reads: `written`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastcells.tensor_memory import has_memory
from fastcells.token_ids import is_token_ids


def sizes(x: object, w: object) -> tuple[int, int, int]:
    """T, B and H, as x and w say; every other tensor has to agree."""
    for name, t, dim in (("x or d_hidden", x, 3), ("w", w, 2)):
        if not isinstance(t, Tensor) or t.dim() != dim:
            shown = f"shape {list(t.shape)}" if isinstance(t, Tensor) else type(t).__name__
            raise RuntimeError(f"{name} must be a tensor of {dim} dimensions, got {shown}")
    assert isinstance(x, Tensor) and isinstance(w, Tensor)
    return x.shape[0], x.shape[1], w.shape[1]


def matrix(name: str, t: Tensor) -> tuple[int, int]:
    """Rows and columns."""
    if not isinstance(t, Tensor) or t.dim() != 2:
        raise RuntimeError(f"{name} must be a matrix, got {getattr(t, 'shape', type(t).__name__)}")
    return t.shape[0], t.shape[1]


def float32(
    name: str,
    t: Tensor | None,
    shape: tuple[int, ...],
    *,
    rows_apart: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """A float32 tensor on the CPU, contiguous, or a matrix with contiguous rows that may lie apart; RuntimeError."""
    if not isinstance(t, Tensor):
        raise RuntimeError(f"{name} must be a tensor of shape {list(shape)}, got {type(t).__name__}")
    if not t.is_cpu or t.dtype is not dtype or t.shape != shape:
        wanted = f"{str(dtype).removeprefix('torch.')} {list(shape)}"
        raise RuntimeError(f"{name} must be {wanted} on the CPU, got {t.dtype} {list(t.shape)} on {t.device}")
    if t.is_neg():
        t = t.resolve_neg()
    if not (rows_apart and t.layout is torch.strided and t.stride(1) == 1 and t.stride(0) >= t.shape[1]):
        t = t.contiguous()  # raises for a layout that has no strides
    return in_memory(name, t)


def bfloat16(name: str, t: Tensor | None, shape: tuple[int, ...]) -> Tensor:
    """A bfloat16 tensor on the CPU, contiguous; RuntimeError."""
    return float32(name, t, shape, dtype=torch.bfloat16)


def in_memory(name: str, t: Tensor) -> Tensor:
    """A contiguous tensor as C reads it, aligned to its elements; RuntimeError for one that has no memory at all.

    Fake tensors, wrappers that keep their values elsewhere, and tensors whose storage was freed have none.
    """
    address = t.data_ptr()
    if t.numel() and not has_memory(t, address):
        if not t._is_zerotensor():
            raise RuntimeError(f"{name}, a {type(t).__name__}, has no memory that C could read")
        t = t.clone()  # the zeros, written out
    return t if address % t.element_size() == 0 else t.clone()


def written(
    *outputs: tuple[str, Tensor | None, tuple[int, ...]], rows_apart: bool = False, dtype: torch.dtype = torch.float32
) -> dict[str, int]:
    """The addresses of what C is to write, each a tensor of that shape and dtype, or None: 0. RuntimeError.

    They were allocated by this package, but what torch allocates depends on the state that a process is in.
    rows_apart: of matrices; their rows are contiguous.
    """
    addresses = {}
    for name, t, shape in outputs:
        if t is None:
            addresses[name] = 0
            continue
        address = t.data_ptr()
        if not (
            t.is_cpu
            and t.dtype is dtype
            and t.shape == shape
            and (t.is_contiguous() or (rows_apart and t.stride(1) == 1 and t.stride(0) >= shape[1]))
            and address % dtype.itemsize == 0
            and (address != 0 or t.numel() == 0)
        ):
            wanted = f"{str(dtype).removeprefix('torch.')} {list(shape)}"
            raise RuntimeError(
                f"{name}, to be written by C, must be {wanted} on the CPU and contiguous, got {t.dtype} "
                f"{list(t.shape)} on {t.device} with strides {t.stride()}"
            )
        addresses[name] = address
    return addresses


def flags(name: str, t: Tensor | None, shape: tuple[int, ...]) -> Tensor:
    """A bool tensor of a shape, or of that shape with a 1 at its end; RuntimeError."""
    if not isinstance(t, Tensor) or t.dtype != torch.bool or not t.is_cpu:
        shown = f"{t.dtype} on {t.device}" if isinstance(t, Tensor) else type(t).__name__
        raise RuntimeError(f"{name} must be bool on the CPU, got {shown}")
    if t.shape not in (shape, (*shape, 1)):
        raise RuntimeError(f"{name} must be {list(shape)}, got {list(t.shape)}")
    return in_memory(name, t.contiguous())


def lengths(name: str, t: Tensor | None, shape: tuple[int, ...]) -> Tensor:
    """Integers of a shape, as int64; RuntimeError."""
    if not isinstance(t, Tensor) or t.shape != shape or not t.is_cpu or not is_token_ids(t):
        shown = f"{t.dtype} {list(t.shape)} on {t.device}" if isinstance(t, Tensor) else type(t).__name__
        raise RuntimeError(f"{name} must be integers {list(shape)} on the CPU, got {shown}")
    return in_memory(name, t.long().contiguous())


def program(name: str, t: Tensor | None, shape: tuple[int, ...]) -> Tensor:
    """The words of a program, which C checks one by one; RuntimeError."""
    if not isinstance(t, Tensor) or t.shape != shape or t.dtype != torch.int32 or not t.is_cpu:
        raise RuntimeError(f"{name} must be int32 {list(shape)} on the CPU, got {t}")
    return in_memory(name, t.contiguous())


def pair(state: tuple[Tensor, ...], states: int, names: str = "") -> tuple[Tensor, Tensor | None]:
    """(h, c), c being None where a cell has but one state; RuntimeError for another number of them."""
    if len(state) != states:
        raise RuntimeError(f"expected {states} states{names and f' ({names})'}, got {len(state)}")
    return state[0], state[1] if states == 2 else None


def ids(ids: Tensor) -> Tensor:
    """Integers [N], as int64."""
    if not isinstance(ids, Tensor) or ids.dim() != 1 or not ids.is_cpu or not is_token_ids(ids):
        shown = f"{ids.dtype} {list(ids.shape)} on {ids.device}" if isinstance(ids, Tensor) else type(ids).__name__
        raise RuntimeError(f"ids must be a vector of integers on the CPU, got {shown}")
    return in_memory("ids", ids.long().contiguous())


def inside(ids: Tensor, vocabulary: int, position: int) -> None:
    """IndexError where `position`, at which C stopped, is not past the last id."""
    if position < len(ids):
        raise IndexError(f"token id {int(ids[position])} is outside [0, {vocabulary})")
