"""`auto` on a GPU that this machine need not have: its static choice, its candidates, its clock, its name."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fastcells.backends import BACKENDS
from fastcells.backends.base import Call
from fastcells.backends.gluon import backend as gluon
from fastcells.backends.triton import backend as triton
from fastcells.backends.triton import policy
from fastcells.kernels.triton.plan import Device
from fastcells.spec import SPECS
from fastcells.tuning import clock, machine, verdicts
from fastcells.tuning.kind import kind_of
from fastcells.tuning.trial import candidates

TRITON = BACKENDS["triton"]
CUDA = torch.device("cuda", 0)


@dataclass(frozen=True)
class OnCard:
    """A weight as a choice sees it."""

    shape: tuple[int, int]
    dtype: torch.dtype
    requires_grad: bool = True
    is_cuda = True
    is_cpu = False
    device = CUDA

    def numel(self) -> int:
        return self.shape[0] * self.shape[1]

    def __len__(self) -> int:
        return self.shape[0]


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> None:
    """An H100, and a Triton that compiles for it."""
    pytest.importorskip("triton")
    for module in (triton, gluon):
        monkeypatch.setattr(module, "gpu", lambda device: Device(90, 132))
    monkeypatch.setattr(gluon, "missing", lambda: None)
    monkeypatch.setattr(Call, "dtype", property(lambda call: call.w_hh.dtype))


def call(
    cell: str = "gru", H: int = 256, dtype: torch.dtype = torch.bfloat16, B: int = 32, T: int = 35, **more: Any
) -> Call:
    rows = SPECS[cell].num_gates * H
    training = more.pop("training", True)
    w_hh: Any = OnCard((rows, H), dtype, training)
    w_ih: Any = OnCard((rows, 100), dtype)
    return Call("auto", SPECS[cell], more.pop("ids", False), T, B, w_ih, w_hh, **more)


def test_where_nothing_was_measured_the_model_decides(card: None) -> None:
    reason = TRITON.advantage(call())
    assert reason is not None and reason.startswith("a model gives it 2.4 us a step and cuDNN 15.0; not measured")
    assert "cuDNN 6.0" in str(TRITON.advantage(call(training=False)))
    assert "cuDNN 8.0" in str(TRITON.advantage(call("rnn_tanh", 640, training=False)))


@pytest.mark.parametrize(
    ("what", "given"),
    [
        ("cuDNN keeps a small cell on the chip", {"H": 128}),
        ("so it does an RNN up to 384", {"cell": "rnn_tanh", "H": 384}),
        ("a float16 LSTM has a persistent kernel", {"cell": "lstm", "dtype": torch.float16}),
        ("a large batch takes the groups turn after turn", {"B": 4096}),
        ("few steps do not pay for the launch", {"T": 4}),
        ("there is no kernel for float64", {"dtype": torch.float64}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_where_the_model_does_not_say_so_torch_runs(card: None, what: str, given: dict[str, Any]) -> None:
    assert TRITON.advantage(call(**given)) is None
    assert TRITON.advantage(call()) is not None


@pytest.mark.parametrize(
    "given", [{"cell": "gru_reset_before"}, {"ids": True}, {"options": frozenset({"lengths"})}], ids=str
)
def test_what_torch_runs_as_a_loop_goes_to_triton_at_any_size(card: None, given: dict[str, Any]) -> None:
    for H in (16, 128, 512):
        assert "one launch instead of a dozen" in str(TRITON.advantage(call(H=H, **given)))


def test_only_cards_for_which_the_kernels_were_proven(card: None, monkeypatch: pytest.MonkeyPatch) -> None:
    for capability, taken in ((80, True), (86, False), (90, True), (120, False)):
        monkeypatch.setattr(triton, "gpu", lambda device, c=capability: Device(c, 132))
        assert (TRITON.advantage(call()) is not None) == taken
    assert policy.PROVEN == (80, 90, 100)
    monkeypatch.setattr(torch.version, "hip", "6.0")
    assert TRITON.advantage(call()) is None


def test_blocks_of_every_kind_and_both_families_are_candidates(card: None) -> None:
    names = [choice.name for choice in candidates(call())]
    assert names[0] == "torch"
    assert names[1:] == [
        "gluon resident 8x16x4 8x32x4",
        "triton split 8x8x1 8x16x2",
        "triton split 8x16x2 8x32x4",
        "triton split 8x32x4 8x8x1",
    ]
    small = [choice.name for choice in candidates(call(H=64))]
    assert "triton sequence 8x64x8 8x64x8" in small and any("split" in name for name in small)
    assert len(set(small)) == len(small) <= 8
    both = [choice.name for choice in candidates(call(directions=2))]
    assert "gluon resident at once 8x32x4 8x32x4" in both
    assert [choice.name for choice in candidates(call(dtype=torch.float64))] == ["torch"]


def test_no_candidate_runs_what_would_not_fit(card: None) -> None:
    """Both passes of a pair run along one path, and all programs of a split at once."""
    for H in (64, 200, 512):
        for choice in candidates(call(H=H))[1:]:
            if choice.impl == "triton":
                assert type(choice.plan.forward) is type(choice.plan.backward)
            if choice.path == "split":
                for plan in choice.plan[:2]:
                    assert plan.groups * -(-H // plan.blocks.hidden) <= 132


def test_a_kind_on_a_gpu_says_how_float32_is_multiplied(card: None, monkeypatch: pytest.MonkeyPatch) -> None:
    tf32 = kind_of(call(dtype=torch.float32))
    key = verdicts._key(call(dtype=torch.float32))
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        strict = kind_of(call(dtype=torch.float32))
        assert verdicts._key(call(dtype=torch.float32)) != key
    assert {tf32.precision, strict.precision} == {"tf32", "tf32x3"}
    assert " tf32 " in str(tf32)


class FakeEvent:
    """Records at what the stream has done: a millisecond a call."""

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing
        self.at = -1.0
        self.waited = False

    def record(self, stream: Any) -> None:
        self.at = stream.done

    def synchronize(self) -> None:
        self.waited = True

    def elapsed_time(self, end: FakeEvent) -> float:
        assert end.waited, "the device has not been waited for"
        return end.at - self.at


def test_the_clock_of_a_gpu_takes_events_on_the_stream_that_is_current(monkeypatch: pytest.MonkeyPatch) -> None:
    stream, asked = SimpleNamespace(done=0.0), []
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: asked.append(device) or stream)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: asked.append("waited"))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (7, 80))
    timer = clock.clock_of(CUDA)

    def run() -> None:
        stream.done += 1.0

    assert timer.microseconds(run, 4) == 1000.0
    timer.wait()
    assert asked == [CUDA, "waited"]
    slept: list[int] = []
    monkeypatch.setattr(torch.cuda, "_sleep", slept.append)
    assert timer.device_microseconds(run, 400.0) == 1000.0
    assert len(slept) == 3 and min(slept) >= 2 * 400 * 2000, "the device waits for what the host launches"
    assert timer.capturing() and timer.free_memory() == 7
    assert isinstance(clock.clock_of(torch.device("cpu")), clock.CpuClock)


def test_a_gpu_is_known_by_name_size_driver_and_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    properties = SimpleNamespace(name="NVIDIA H100", major=9, minor=0, multi_processor_count=132)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(machine, "_driver", lambda: 13000)
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91900)
    machine._gpu.cache_clear()
    found = machine.machine(CUDA, threads=4)
    machine._gpu.cache_clear()
    assert found.device == "NVIDIA H100; compute capability 9.0; 132 multiprocessors"
    assert found.versions == f"driver 13000, cuDNN 91900, {machine.versions()}"
    assert f"kernels {machine.kernels_hash()}" in found.versions


def test_the_driver_is_asked_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch has no name for it; where there is no driver that question has an answer, too."""

    def asked(version: Any) -> int:
        version._obj.value = 13000
        return 0

    monkeypatch.setattr(machine.ctypes, "CDLL", lambda name: SimpleNamespace(cuDriverGetVersion=asked))
    assert machine._driver() == 13000
    monkeypatch.setattr(machine.ctypes, "CDLL", lambda name: SimpleNamespace())
    assert machine._driver() == 0


def test_a_change_of_a_kernel_makes_verdicts_old(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    before = machine.kernels_hash()
    (tmp_path / "kernel.py").write_text("")
    files = machine._kernel_files()
    assert {"sequence.py", "backward.py", "plan.py"} <= {path.name for path in files}
    monkeypatch.setattr(machine, "_kernel_files", lambda: [*files, tmp_path / "kernel.py"])
    machine.kernels_hash.cache_clear()
    after = machine.kernels_hash()
    machine.kernels_hash.cache_clear()
    assert before != after


def test_nothing_is_measured_on_other_devices() -> None:
    meta = torch.empty(24, 8, device="meta")
    assert verdicts.measured(Call("auto", SPECS["gru"], False, 35, 32, meta, meta)) is None
