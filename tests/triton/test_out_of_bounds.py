"""Every address that a kernel touches lies in the tensor that its pointer came from: checked in Triton's interpreter.

Within `bounds_checked()` a pointer carries the number of its tensor in the upper 16 bits of the address, which the
operating system leaves free. So an access that strays into another tensor of the launch is found too, and not only
one that leaves them all. On a GPU compute-sanitizer looks for such faults, without the first kind.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.runtime import interpreter
from triton.runtime.errors import InterpreterError

from fastcells.backends.triton.operators import recurrence_forward
from fastcells.kernels.triton import (
    exchange,
    launch_sequence,
    launch_split,
    launch_step,
    plan,
    sequence,
    split_forward,
    step,
)
from tests.support.shapes import CELLS, EACH_CELL, Case, Shape, gradients, in_turn, name_of

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(torch.cuda.is_available(), reason="no interpreter with a GPU: use compute-sanitizer"),
]

NUMBER = 48  # the bit of an address from which on the number of the tensor stands
STEPS = 3
# [T, B, ...]
PER_STEP = ("x_ptr", "ids_ptr", "resets_ptr", "h_ptr", "c_ptr", "saved_ptr", "d_out_ptr", "d_x_ptr", "d_gates_ptr")
SHAPES = [Shape(1, 1, 1, 2), Shape(3, 5, 7, 2), Shape(1, 17, 24, 2), Shape(3, 17, 7, 2)]
SHAPES += [Shape(3, 5, 40, 2)]  # several programs along H, and several tiles of a product
GRU, RESET_BEFORE, LSTM = CELLS[2:]
PATHS = {"triton": "sequence", "split": "split", "triton-step": "step"}  # what runs, and how its kernels' names begin
MODULES = {"triton": sequence, "split": split_forward, "triton-step": step}


@dataclass
class Checker:
    """What the pointers of the running launch belong to."""

    kernel: str = ""
    names: dict[int, str] = field(default_factory=dict)  # by id of the tensor that the interpreter passes
    tensors: list[tuple[str, int, int]] = field(default_factory=list)  # name, first address, bytes
    earlier: int = 0  # steps that a kernel is to believe before those that its tensors hold
    checked: Counter[str] = field(default_factory=Counter)  # lanes seen, by kernel

    def number(self, tensor: Tensor) -> int:
        """Of a tensor, from 1 on; it may be read and written from now on."""
        name = self.names[id(tensor)]
        assert tensor.is_contiguous(), f"{self.kernel}: {name} is not contiguous"
        self.tensors.append((name, tensor.data_ptr(), tensor.numel() * tensor.element_size()))
        return len(self.tensors)

    def before(self, tensor: Tensor) -> int:
        """Bytes between the address that the kernel is given, where an earlier step would lie, and the tensor's."""
        per_step = self.names[id(tensor)] in PER_STEP and len(tensor) == STEPS
        return self.earlier * tensor[0].numel() * tensor.element_size() if per_step else 0

    def real(self, pointers: Any, mask: Any, access: str) -> Any:
        """The pointers without the numbers. Raises if a lane whose mask is true lies outside of its tensor."""
        element = pointers.get_element_ty()
        size = element.primitive_bitwidth // 8
        addresses = pointers.data & ((1 << NUMBER) - 1)
        wanted = pointers.data[mask.data]
        self.checked[self.kernel] += wanted.size
        for number in set((wanted >> NUMBER).tolist()):
            assert 1 <= number <= len(self.tensors), f"{self.kernel}: no tensor has address {int(wanted[0]):#x}"
            name, first, held = self.tensors[number - 1]
            offsets = addresses[mask.data & (pointers.data >> NUMBER == number)].astype("int64") - first
            for offset in (int(offsets.min()), int(offsets.max())):
                if offset < 0 or offset + size > held:
                    what = f"{self.kernel}: out-of-bounds {access} of {size} bytes ({element})"
                    raise IndexError(f"{what} at byte {offset} of {name}, which has {held} bytes")
        return interpreter.TensorHandle(addresses, pointers.dtype)


@contextmanager
def bounds_checked(earlier: int = 0) -> Iterator[Checker]:
    """Loads and stores of the interpreter outside of their tensor raise; it wraps the IndexError."""
    checker = Checker(earlier=earlier)
    builder, executor = interpreter.InterpreterBuilder, interpreter.GridExecutor
    load, store, convert = builder.create_masked_load, builder.create_masked_store, interpreter._implicit_cvt
    to_host = executor._init_args_hst

    def register(self: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        assert not args, "the launchers pass everything by keyword"
        hosts = to_host(self, args, kwargs)  # copies, where the tensors are not on the host
        checker.kernel, checker.tensors = self.fn.__name__, []
        checker.names = {id(value): name for name, value in hosts[1].items()}
        return hosts

    def number(argument: Any) -> Any:
        converted = convert(argument)
        if isinstance(argument, Tensor):
            number = checker.number(argument) << NUMBER
            converted.handle.data = converted.handle.data + number - checker.before(argument)
        return converted

    def checked_load(self: Any, pointers: Any, mask: Any, *rest: Any, **options: Any) -> Any:
        return load(self, checker.real(pointers, mask, "load"), mask, *rest, **options)

    def checked_store(self: Any, pointers: Any, value: Any, mask: Any, *rest: Any, **options: Any) -> Any:
        return store(self, checker.real(pointers, mask, "store"), value, mask, *rest, **options)

    with pytest.MonkeyPatch.context() as patch:  # a load or store without a mask goes through these two as well
        patch.setattr(builder, "create_masked_load", checked_load)
        patch.setattr(builder, "create_masked_store", checked_store)
        patch.setattr(executor, "_init_args_hst", register)
        patch.setattr(interpreter, "_implicit_cvt", number)
        yield checker


@triton.jit
def gather_at_once(pointers, masks, published, patience, fault_ptr):
    return exchange.poll_gather(pointers, masks, False, patience, fault_ptr)


@contextmanager
def split_without_waiting() -> Iterator[None]:
    """impl="triton" runs the split kernels, one program after another: the numbers are wrong, the addresses right."""
    blocks = plan.Blocks(batch=16, hidden=16, inner=32, warps=4, stages=1, reason="several of each, for small shapes")
    impatient = replace(exchange.POLL, gather=gather_at_once)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(exchange.EXCHANGES, "impatient", impatient)
        patch.setattr(plan, "sequence_plan", lambda *_, **__: plan.Split(blocks, 1, "impatient"))
        yield


def run(case: Case, shape: Shape, impl: str, dtype: torch.dtype = torch.float32, **options: Any) -> Counter[str]:
    """Forward and backward under the checker: how many lanes of each kernel it saw."""
    leaves = case.arguments(shape, dtype)
    with bounds_checked() as checker, split_without_waiting() if impl == "split" else nullcontext():
        outputs = case.ours(*leaves, impl="triton" if impl == "split" else impl, **options)
        gradients(outputs, leaves, [torch.randn_like(o) for o in outputs])
    return checker.checked


# Neither of them changes an address that the other does: together or not at all, but for one shape.
@pytest.mark.parametrize(
    ("case", "impl", "shape", "ragged", "reverse"),
    [
        *((*each, both, both) for *each, both in in_turn(CELLS, [*PATHS], SHAPES, [False, True])),
        *((*each, ragged, not ragged) for *each, ragged in in_turn(CELLS, [*PATHS], SHAPES[3:4], [False, True])),
    ],
    ids=name_of,
)
def test_nothing_is_out_of_bounds(case: Case, shape: Shape, impl: str, ragged: bool, reverse: bool) -> None:
    lengths = torch.randint(shape.T + 1, (shape.B,)) if ragged else None
    dtype = torch.float32 if shape.H == 7 else torch.bfloat16  # words of one element, and of two
    resets = torch.rand(shape.T, shape.B) < 0.3 if ragged else None
    checked = run(case, shape, impl, dtype, lengths=lengths, resets=resets, reverse=reverse)
    kernels = {f"{PATHS[impl]}_{way}_kernel" for way in ("forward", "backward")}
    second_product = {"reset_hidden_kernel"} if (case.spec.name, impl) == ("gru_reset_before", "triton-step") else set()
    assert set(checked) == kernels | second_product and all(checked.values())


IDS = torch.tensor([[6, -1, 0, 7, -(2**31)], [1, 2, 3, 2**31 - 1, 4], [5, 6, 0, 0, 1]])  # not all in [0, 7)
GATHERING = ["sequence_forward_kernel", "split_forward_kernel", "step_forward_kernel", "reset_hidden_kernel"]


def run_on_ids(impl: str) -> Counter[str]:
    """The forward on ids. The operator is called itself: layers on the CPU refuse ids that are none."""
    table, b_ih, w, h0 = torch.randn(7, 21), torch.randn(21), torch.randn(21, 7), torch.randn(5, 7)
    options = ("gru_reset_before", PATHS[impl], False, True, IDS, b_ih)
    with bounds_checked() as checker, split_without_waiting() if impl == "split" else nullcontext():
        recurrence_forward(table, h0, None, w, None, None, *options)
    return checker.checked


@pytest.mark.parametrize("impl", PATHS)
def test_no_id_reads_out_of_bounds(impl: str) -> None:
    assert run_on_ids(impl)[f"{PATHS[impl]}_forward_kernel"] > 0


@pytest.mark.parametrize("kernel", GATHERING)
def test_a_vocabulary_too_large_is_found(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ids hold a 7, which is then taken for a row."""
    plant(monkeypatch, kernel, lambda arguments: {"V": 8})
    with pytest.raises(InterpreterError, match=rf"{kernel}: out-of-bounds load .* of x_ptr"):
        run_on_ids(impl_of(kernel))


def plant(patch: pytest.MonkeyPatch, kernel: str, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Have the launchers pass other arguments to a kernel: what `change` makes of theirs."""
    launchers = launch_sequence if kernel in SEQUENCE else launch_split if kernel in SPLIT else launch_step
    right = getattr(launchers, kernel)

    class Wrong:
        def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., object]:
            return lambda **arguments: right[grid](**arguments | change(arguments))

    patch.setattr(launchers, kernel, Wrong())


SEQUENCE, SPLIT, STEP = ([f"{path}_{way}_kernel" for way in ("forward", "backward")] for path in PATHS.values())


def impl_of(kernel: str) -> str:
    return "triton" if kernel in SEQUENCE else "split" if kernel in SPLIT else "triton-step"


@pytest.mark.parametrize("size", ["B", "H", "T"])
@pytest.mark.parametrize("kernel", [*SEQUENCE, *SPLIT, *STEP, "reset_hidden_kernel"])
def test_a_size_too_large_is_found(kernel: str, size: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if size == "T" and kernel not in SEQUENCE + SPLIT:
        pytest.skip("a step's kernel is not told T")
    names = (size, f"KNOWN_{size}")  # H is a constant of the split kernels where rows are not aligned
    plant(monkeypatch, kernel, lambda arguments: {name: arguments[name] + 1 for name in names if name in arguments})
    with pytest.raises(InterpreterError, match=rf"{kernel}: out-of-bounds (load|store) of 4 bytes \(fp32\) at byte"):
        run(RESET_BEFORE, Shape(3, 5, 7, 2), impl_of(kernel))


@pytest.mark.parametrize(
    ("kernel", "name", "by"),
    [
        *((kernel, "t", by) for kernel in ("reset_hidden_kernel", *STEP) for by in (1, -1)),
        *((kernel, "before", 1) for kernel in ("reset_hidden_kernel", *STEP)),
        ("step_backward_kernel", "later", 1),
    ],
)
def test_a_step_off_by_one_is_found(kernel: str, name: str, by: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the last step, or the first: at others it leads to another step of the same tensor, and wrong numbers."""
    plant(monkeypatch, kernel, lambda arguments: {name: arguments[name] + by})
    with pytest.raises(InterpreterError, match=rf"{kernel}: out-of-bounds load of 4 bytes \(fp32\) at byte"):
        run(RESET_BEFORE, Shape(3, 5, 7, 2), "triton-step", reverse=name == "before")


def run_steps(case: Case, leaves: list[Tensor], d: list[Tensor], earlier: int, **options: Any) -> list[Tensor]:
    """Outputs and gradients of step kernels that are told of as many earlier steps."""

    def moved(arguments: dict[str, Any]) -> dict[str, Any]:
        steps = {name: step + earlier for name, step in arguments.items() if name in ("t", "before", "later")}
        steps = {name: step for name, step in steps.items() if step >= earlier}  # the others stand for no step
        if arguments.get("lengths_ptr") is not None:
            steps["lengths_ptr"] = arguments["lengths_ptr"] + earlier
        return steps

    with bounds_checked(earlier), pytest.MonkeyPatch.context() as patch:
        for kernel in (*STEP, "reset_hidden_kernel"):
            plant(patch, kernel, moved)
        outputs = case.ours(*leaves, impl="triton-step", **options)
        return [*outputs, *gradients(outputs, [leaf for leaf in leaves if leaf.requires_grad], d)]


@pytest.mark.parametrize("ids", [False, True], ids=["dense", "ids"])
@pytest.mark.parametrize("reverse", [False, True], ids=["onward", "reverse"])
@EACH_CELL
def test_offsets_of_a_step_may_need_more_than_32_bits(case: Case, reverse: bool, ids: bool) -> None:
    """A step t with t * B beyond 2^31, and tensors of as many elements, of which only the last steps are there."""
    shape = Shape(STEPS, 5, 7, 2)
    leaves = case.arguments(shape, torch.float32)
    if ids:
        leaves[0] = torch.randint(shape.I, (shape.T, shape.B), dtype=torch.int32)
    d = [torch.randn(shape.T, shape.B, shape.H), *(torch.randn(shape.B, shape.H) for _ in range(case.states))]
    options: dict[str, Any] = {"reverse": reverse, "lengths": torch.tensor([3, 0, 1, 2, 3])}
    options["resets"] = torch.rand(shape.T, shape.B) < 0.3
    far = run_steps(case, leaves, d, 2**31 // shape.B + 1, **options)
    for a, b in zip(run_steps(case, leaves, d, 0, **options), far, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("kernel", "name"),
    [
        ("sequence_forward_kernel", "h_n_ptr"),
        ("sequence_forward_kernel", "saved_ptr"),
        ("sequence_backward_kernel", "d_c0_ptr"),
        ("split_forward_kernel", "h_ptr"),
        ("split_forward_kernel", "c_n_ptr"),
        ("split_backward_kernel", "d_gates_ptr"),
        ("split_backward_kernel", "d_h0_ptr"),
        ("step_forward_kernel", "carry_new_ptr"),
        ("step_forward_kernel", "c_ptr"),
        ("step_backward_kernel", "d_gates_ptr"),
        ("step_backward_kernel", "lengths_ptr"),
        *((f"{path}_{way}_kernel", "resets_ptr") for path in PATHS.values() for way in ("forward", "backward")),
    ],
)
def test_a_tensor_one_element_too_small_is_found(kernel: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, kernel, lambda arguments: {name: arguments[name].flatten()[:-1]})
    access = "load" if name in ("lengths_ptr", "resets_ptr") else "store"
    resets = torch.zeros(3, 5, dtype=torch.bool)
    with pytest.raises(InterpreterError, match=f"{kernel}: out-of-bounds {access} .* of {name}, which has"):
        run(LSTM, Shape(3, 5, 7, 2), impl_of(kernel), lengths=torch.tensor([3, 0, 1, 2, 3]), resets=resets)


@triton.jit
def store_tiles_unmasked(ptr, stride, tile, mask, tiles):
    for i in tl.static_range(len(tiles)):
        tl.store(ptr + i * stride + tile, tiles[i].to(ptr.dtype.element_ty))


@pytest.mark.parametrize("impl", PATHS)
def test_a_dropped_mask_is_found(impl: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run(GRU, Shape(1, 32, 32, 2), impl)  # fills its blocks
    monkeypatch.setattr(MODULES[impl], "store_tiles", store_tiles_unmasked)
    run(GRU, Shape(1, 32, 32, 2), impl)
    with pytest.raises(InterpreterError, match=rf"{PATHS[impl]}_forward_kernel: out-of-bounds store"):
        run(GRU, Shape(1, 31, 32, 2), impl)


@triton.jit
def load_kernel(x_ptr, out_ptr, at, N: tl.constexpr):
    x = tl.load(x_ptr.to(tl.pointer_type(tl.float16)) + at, mask=at < N)
    tl.store(out_ptr, x)


def test_the_size_of_an_element_and_the_pointers_own_tensor_count() -> None:
    whole = torch.zeros(8, dtype=torch.uint8)
    x, out = whole[2:7], whole[6:].view(torch.float16)  # 5 bytes, and what two bytes at byte 4 of them would be
    with bounds_checked() as checker:
        for at in (0, 1, 3):  # the last is masked
            load_kernel[(1,)](x_ptr=x, out_ptr=out, at=at, N=3)
        assert checker.checked == {"load_kernel": 2 + 3}
        for at in (2, -1):
            with pytest.raises(InterpreterError, match=f"load of 2 bytes .* at byte {2 * at} of x_ptr, which has 5"):
                load_kernel[(1,)](x_ptr=x, out_ptr=out, at=at, N=3)
    load_kernel[(1,)](x_ptr=x, out_ptr=out, at=2, N=3)  # within the storage; nothing is wrapped any more
