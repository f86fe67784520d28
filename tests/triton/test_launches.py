"""How many kernels a layer launches: as few for a long sequence as for a short one. And how many Triton compiles."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from triton import JITFunction
from triton.backends.compiler import GPUTarget
from triton.compiler import make_backend
from triton.runtime.jit import create_function_from_signature

import fastcells
from fastcells import one_direction, stack
from fastcells.backends.triton import operators
from fastcells.kernels.triton import fault, launch_sequence, launch_split, launch_step, plan

B, I, H = 20, 5, 24  # noqa: E741
NO_LAUNCH = {"empty", "new_empty", "empty_like", "empty_strided", "detach", "_unsafe_view", "lift_fresh", "set_"}
BLOCKS = plan.Blocks(16, 32, 32, 4, 1, "all columns in one program, which the interpreter can run")


class Launches(TorchDispatchMode):
    """Names of the operators that launch a kernel, and of our kernels, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.split("::")[1]
        if not func.is_view and name not in NO_LAUNCH:
            self.seen.append(name)
        return func(*args, **kwargs or {})


class Recorder:
    """Stands in a kernel's place, and runs it."""

    def __init__(self, kernel: Any, launches: Launches) -> None:
        self.kernel, self.launches = kernel, launches

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def run(**arguments: Any) -> None:
            self.launches.seen.append(self.kernel.fn.__name__)
            with torch.utils._python_dispatch._disable_current_modes():
                self.kernel[grid](**arguments)

        return run


def forward_launches(name: str, path: str, T: int, *, tokens: bool, given: bool, device: torch.device) -> list[str]:
    """Of a layer. given: whether it gets an initial state."""
    kind, options = ("GRU", {"reset_after": False}) if name == "ResetBefore" else (name, {})
    layer = getattr(fastcells, kind)(I, H, impl="triton", device=device, **options)
    x: Tensor = torch.randint(I, (T, B), device=device) if tokens else torch.randn(T, B, I, device=device)
    hx = torch.zeros(1, B, H, device=device) if given else None
    launches = Launches()
    fault.fault_word(x.device)  # made once for a device, not for a launch
    with pytest.MonkeyPatch.context() as patch:
        # What is within the operator counts.
        patch.setattr(operators, "recurrence_forward", operators.recurrence_forward._init_fn)
        for module, kernel in ((launch_sequence, "sequence_forward_kernel"), (launch_split, "split_forward_kernel")):
            patch.setattr(module, kernel, Recorder(getattr(module, kernel), launches))
        for module in (stack, one_direction):  # the check of the ids, which is the CPU's only
            patch.setattr(module, "check_range", lambda *_: None)
        if path != "sequence":
            split = plan.Split(BLOCKS, 1, path)  # one group of programs for two batch tiles
            patch.setattr(plan, "sequence_plan", lambda *_, **__: split)
        with launches:
            layer(x, (hx, hx) if given and name == "LSTM" else hx)
    # Last, what makes the results the caller's own: a copy of the outputs on a CPU, and one of each state, [B, H].
    own = ["clone"] * (device.type == "cpu") + ["stack"] * (2 if name == "LSTM" else 1)
    assert launches.seen[-len(own) :] == own
    return launches.seen[: -len(own)]


@pytest.mark.parametrize("tokens", [False, True], ids=["dense", "ids"])
@pytest.mark.parametrize("T", [2, 9])
@pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM"])
@pytest.mark.slow
def test_a_layers_forward(name: str, T: int, tokens: bool, device: torch.device) -> None:
    """At most three launches beyond the input projection's matmul, or W_ih's transposition; whatever T and B.

    One is the kernel, one prepares its mailboxes, and one makes the initial state where none is given.
    """
    projection = "clone" if tokens else "addmm"
    options: dict[str, Any] = {"tokens": tokens, "device": device}
    whole = forward_launches(name, "sequence", T, given=False, **options)
    assert whole == ["new_zeros", projection, "sequence_forward_kernel"]
    split = forward_launches(name, "poll", T, given=False, **options)
    assert split == ["new_zeros", projection, "fill_", "split_forward_kernel"]
    counted = forward_launches(name, "counter", T, given=True, **options)
    assert counted == [projection, "new_zeros", "split_forward_kernel"]


def test_the_second_mailbox_is_filled_with_the_first(device: torch.device) -> None:
    seen = forward_launches("ResetBefore", "poll", 3, tokens=False, given=True, device=device)
    assert seen == ["addmm", "fill_", "split_forward_kernel"]


@pytest.mark.parametrize("reset_after", [True, False])
@pytest.mark.parametrize("exchange", ["poll", "counter"])
def test_a_split_layers_output_may_be_changed_in_place(
    exchange: str, reset_after: bool, monkeypatch: pytest.MonkeyPatch, device: torch.device
) -> None:
    """The output is a mailbox, of which a view would be refused; one program a batch tile runs anywhere."""
    monkeypatch.setattr(plan, "sequence_plan", lambda *_, **__: plan.Split(BLOCKS, 2, exchange))
    gru = fastcells.GRU(I, H, impl="triton", reset_after=reset_after, device=device)
    x = torch.randn(3, B, I, device=device, requires_grad=True)
    out, h_n = gru(x)
    expected = 2 * out.detach(), h_n.clone()
    out.mul_(2.0)
    assert torch.equal(out, expected[0]) and torch.equal(h_n, expected[1])


KERNELS = {
    "sequence": (launch_sequence, ("sequence_forward_kernel", "sequence_backward_kernel")),
    "split": (launch_split, ("split_forward_kernel", "split_backward_kernel")),
    "step": (launch_step, ("reset_hidden_kernel", "step_forward_kernel", "step_backward_kernel")),
}
# The backward of a step has one kernel for the last step, one for the others, and one for what comes after the first;
# a second product splits each of the first two in two, of which the second ones are the same.
COMPILED = {("sequence", False): 2, ("split", False): 2, ("step", False): 4}
COMPILED |= {("sequence", True): 2, ("split", True): 2, ("step", True): 6}


class Variants:
    """Stands in a kernel's place and runs nothing, but notes what Triton would look a compiled kernel up by."""

    def __init__(self, kernel: Any, seen: set[tuple[object, ...]]) -> None:
        jit = kernel if isinstance(kernel, JITFunction) else JITFunction(kernel.fn, **kernel.kwargs)  # if interpreted
        backend = make_backend(GPUTarget("cuda", 90, 32))
        self.name, self.seen = kernel.fn.__name__, seen
        self.bind = create_function_from_signature(jit.signature, jit.params, backend)

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def note(**arguments: Any) -> None:
            _, specialization, options = self.bind(**arguments)
            self.seen.add((self.name, *specialization, *sorted(options.items())))

        return note


def compiled(layer: torch.nn.RNNBase, path: str, T: int, B: int, tokens: bool) -> set[tuple[object, ...]]:
    """What one forward and backward of a layer needs compiled."""
    seen: set[tuple[object, ...]] = set()
    w = layer.weight_hh_l0
    x = torch.randint(I, (T, B), device=w.device) if tokens else torch.randn(T, B, I, device=w.device, dtype=w.dtype)
    with pytest.MonkeyPatch.context() as patch:
        module, names = KERNELS[path]
        for name in names:
            patch.setattr(module, name, Variants(getattr(module, name), seen))
        if path == "split":
            patch.setattr(plan, "sequence_plan", lambda *_, **__: plan.Split(BLOCKS, 1, "poll"))
        out, last = layer(x)
        torch.autograd.backward((out, *last), (torch.ones_like(out), *(torch.ones_like(s) for s in last)))
    return seen


@pytest.mark.parametrize("tokens", [False, True], ids=["dense", "ids"])
@pytest.mark.parametrize("path", KERNELS)
@pytest.mark.parametrize("name", ["RNN", "GRU", "ResetBefore", "LSTM"])
def test_no_size_compiles_a_kernel_anew(name: str, path: str, tokens: bool, device: torch.device) -> None:
    """Whatever T and B, and whatever the step: also where 16 divides the bytes of a [B, H] plane for some B only."""
    kind, options = ("GRU", {"reset_after": False}) if name == "ResetBefore" else (name, {})
    impl = "triton-step" if path == "step" else "triton"
    layer = getattr(fastcells, kind)(
        I, 7, 1 if tokens else 2, impl=impl, device=device, dtype=torch.bfloat16, **options
    )
    known = compiled(layer, path, 9, 16, tokens)
    assert len(known) == COMPILED[path, name == "ResetBefore"]
    for T, B in ((2, 1), (9, 5), (16, 2), (17, 33), (33, 17), (1, 3)):
        assert compiled(layer, path, T, B, tokens) <= known, f"T={T}, B={B}"
