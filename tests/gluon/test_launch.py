"""What the launchers hand their kernels: mailboxes filled with the sentinel, and no view of them to a user."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from fastcells.kernels.gluon import launch
from fastcells.kernels.gluon.plan import Resident
from fastcells.kernels.triton import fault
from fastcells.kernels.triton.launch import Backward, BackwardPass, Forward, ForwardPass, StepInput
from fastcells.kernels.triton.rules import RULES

T, B = 3, 5
PLAN = Resident(8, 16, 2, 64, 1, 3, "test")  # mailboxes of 128 columns


class Recorder:
    """Stands in a kernel's place."""

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        self.grid = grid
        return self.record

    def record(self, **arguments: Any) -> None:
        self.arguments = arguments


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> tuple[Recorder, Recorder]:
    recorders = Recorder(), Recorder()
    monkeypatch.setattr(launch, "forward_kernel", recorders[0])
    monkeypatch.setattr(launch, "backward_kernel", recorders[1])
    return recorders


def forward_pass(H: int, rule: str, dtype: torch.dtype) -> ForwardPass:
    spec = RULES[rule].spec
    rows = spec.num_gates * H
    state = tuple(torch.randn(B, H, dtype=dtype) for _ in spec.states)
    x, w = torch.zeros(T, B, rows, dtype=dtype), torch.zeros(rows, H, dtype=dtype)
    return ForwardPass(RULES[rule], state, w, None, False, "tf32", StepInput(x), None, True)


def backward_pass(given: ForwardPass, out: Forward) -> BackwardPass:
    d = torch.zeros_like(out.hidden)
    common = (given.rule, given.state, given.w, None, False, "tf32")
    return BackwardPass(*common, out._replace(last=()), d, given.state)


def bits(t: Tensor) -> Tensor:
    return t.view(torch.int16 if t.element_size() == 2 else torch.int32)


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "f32"])
@pytest.mark.parametrize("rule", ["gru", "gru_reset_before", "lstm", "rnn_relu"])
@pytest.mark.parametrize("H", [128, 107, 1])
def test_mailboxes(kernels: tuple[Recorder, Recorder], H: int, rule: str, dtype: torch.dtype) -> None:
    given = forward_pass(H, rule, dtype)
    out = launch.gluon_forward(given, PLAN)
    d = launch.gluon_backward(backward_pass(given, out), PLAN)
    there = kernels[0].arguments
    boxes = [there["mailbox_ptr"], there["reset_hidden_ptr"], kernels[1].arguments["mailbox_ptr"]]
    assert (boxes[1] is not None) == (rule == "gru_reset_before")
    for box in boxes:
        if box is not None:
            assert box.shape[-1] == 128
            assert box.data_ptr() % 16 == 0
            assert (bits(box)[..., :H] == -1).all()
            assert (bits(box)[..., H:] == 0).all()
    for kernel, own, results in ((kernels[0], "h_ptr", out.hidden), (kernels[1], "d_gates_ptr", d.d_gates)):
        mailbox, result = kernel.arguments["mailbox_ptr"], kernel.arguments[own]
        assert kernel.arguments["given_up_ptr"][0].item() == -1
        assert kernel.arguments["launch_cooperative_grid"] is True
        if H == 128:
            assert result is None
            assert results.data_ptr() == mailbox.data_ptr()
        else:
            assert result is results
            assert results.isnan().all(), "the kernel writes it all"
    first = there["first_ptr"]
    assert first.shape == (B, 128)
    assert torch.equal(first[:, :H], given.state[0])
    assert (first[:, H:] == 0).all()
    for t in (*results_of(out), *results_of(d)):
        assert t._base is None, "a view of the mailboxes may not be changed in place"


def results_of(out: Forward | Backward) -> list[Tensor]:
    return [t for part in out for t in (part if isinstance(part, tuple) else (part,)) if t is not None]


@pytest.mark.parametrize(("rows", "groups"), [(5, 1), (17, 3), (1000, 3)])
def test_no_more_groups_than_batch_tiles(
    kernels: tuple[Recorder, Recorder], rows: int, groups: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"{__name__}.B", rows)
    launch.gluon_forward(forward_pass(107, "gru", torch.bfloat16), PLAN)
    assert kernels[0].grid == (7, groups, 1)


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("H", [128, 107])
def test_both_directions(kernels: tuple[Recorder, Recorder], H: int) -> None:
    """One memory for both directions' mailboxes, each with rows of its own; and results of the same form."""
    one = forward_pass(H, "lstm", torch.bfloat16)
    given = replace(one, state=tuple(_twice(s) for s in one.state), w=_twice(one.w), x=StepInput(_twice(one.x.x)))
    at_once = replace(PLAN, directions=2)
    out = launch.gluon_forward(given, at_once)
    back = BackwardPass(given.rule, given.state, given.w, None, False, "tf32", out, _zeros(out.hidden), given.state)
    d = launch.gluon_backward(back, at_once)
    assert [kernel.grid for kernel in kernels] == [((H + 15) // 16, 1, 2)] * 2
    mailboxes = [kernel.arguments["mailbox_ptr"] for kernel in kernels]
    assert [list(box.shape) for box in mailboxes] == [[2, T, B, 128], [2, T, B, 4, 128]]
    for box in mailboxes:
        assert (bits(box)[..., :H] == -1).all()
    assert kernels[0].arguments["first_ptr"].shape == (2, B, 128)
    assert [list(s.shape) for s in (*out.last, *d.d_state)] == [[2, B, H]] * 4
    assert list(out.hidden.shape) == [2, T, B, H]
    assert list(d.d_x.shape) == [2, T, B, 4, H]
    for kernel in kernels:
        assert kernel.arguments["T"] == T
        assert kernel.arguments["DIRECTIONS"] == 2
    with pytest.raises(AssertionError, match="at once"):
        launch.gluon_forward(given, PLAN)


def _twice(t: Tensor) -> Tensor:
    return torch.stack([t, t])


def _zeros(t: Tensor) -> Tensor:
    return torch.zeros(t.shape, dtype=t.dtype)


def test_a_fault_is_raised(kernels: tuple[Recorder, Recorder], monkeypatch: pytest.MonkeyPatch) -> None:
    def give_up(**arguments: Any) -> None:
        arguments["fault_ptr"].fill_(1)

    monkeypatch.setattr(kernels[0], "record", give_up)
    monkeypatch.setattr(fault, "PATIENCE", 7)
    with pytest.raises(fault.KernelFault, match="gluon_forward of gru"):
        launch.gluon_forward(forward_pass(128, "gru", torch.bfloat16), PLAN)
