"""The benchmarks' own honesty: the guards fire, ratios are right, and no row goes without its origin."""

from __future__ import annotations

import gc
import time
import weakref
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import fastcells
from bench.cases import contenders, task
from bench.cases.case import CELLS, SELECTIONS, Case, lesson, smoke
from bench.cases.model import Model, Skipped
from bench.measure import duel, limit, profile, provenance
from bench.measure.guard import GuardError, must_agree, must_be, must_differ
from bench.measure.limit import GATES, by_mm, by_onednn, fastest, matmuls
from bench.measure.program import graphed
from bench.measure.timing import calls_per_measurement, compare, ratio
from fastcells.backends.cpu import native
from fastcells.backends.torch.backend import ATEN, TOKEN_IDS

CPU = torch.device("cpu")
ORIGIN = {"device": "a processor", "torch": "2", "triton": "3", "commit": "abc", "date": "2026-11-21"}
TINY = Case("GRU", "forward+backward", T=3, B=2, I=5, H=4)
LESSON = replace(lesson("GRU"), T=3, B=2, I=11, H=4)


def test_guard_fires_where_auto_would_run_the_operator_of_torch() -> None:
    must_differ(TOKEN_IDS, {"aten::mm"})
    with pytest.raises(GuardError, match="claims an implementation of ours"):
        must_differ(ATEN, {"aten::gru"})


@pytest.mark.parametrize(
    ("choice", "ran"), [(TOKEN_IDS, "aten::gru"), (TOKEN_IDS, "aten::_cudnn_rnn"), (ATEN, "aten::mm")]
)
def test_guard_fires_where_something_else_ran_than_was_said(choice: fastcells.Choice, ran: str) -> None:
    with pytest.raises(GuardError, match="should run"):
        must_be(choice, {ran})


def test_a_silent_fallback_is_caught_by_what_ran(monkeypatch: pytest.MonkeyPatch) -> None:
    """`explain` claims ours, and the layer calls ATen on the one-hots: the numbers agree, the profiler does not."""

    class Fallback(fastcells.GRU):
        def forward(self, input: Tensor, hx: Tensor | None = None) -> tuple[Tensor, Tensor]:
            return super().forward(nn.functional.one_hot(input, self.input_size).float(), hx)

    duel.prepare(LESSON, "fastcells-auto", CPU)
    monkeypatch.setattr(fastcells, "GRU", Fallback)
    with pytest.raises(GuardError, match="aten::gru"):
        duel.prepare(LESSON, "fastcells-auto", CPU)


def test_token_ids_fail_on_an_open_fallback(monkeypatch: pytest.MonkeyPatch) -> None:
    """`auto` itself says that it would run ATen on the one-hots: nothing is hidden, and there is nothing to publish."""

    class Fallback(fastcells.GRU):
        def _explain(self, input: Tensor) -> fastcells.dispatch.Explanation:  # type: ignore[override]
            return fastcells.dispatch.Explanation(l0=ATEN)

        def forward(self, input: Tensor, hx: Tensor | None = None) -> tuple[Tensor, Tensor]:
            return super().forward(nn.functional.one_hot(input, self.input_size).float(), hx)

    monkeypatch.setattr(fastcells, "GRU", Fallback)
    with pytest.raises(GuardError, match="claims an implementation of ours"):
        duel.prepare(LESSON, "fastcells-auto", CPU)


def test_a_row_that_claims_a_kernel_fails_on_a_fallback(monkeypatch: pytest.MonkeyPatch) -> None:
    """`impl="triton"` that quietly became "auto", and says so."""

    class Fallback(fastcells.GRU):
        def __init__(self, *args: int, impl: str, **options: object) -> None:
            super().__init__(*args, impl="auto", **options)

    duel.prepare(TINY, "fastcells-auto", CPU)  # claims nothing
    monkeypatch.setattr(fastcells, "GRU", Fallback)
    with pytest.raises(GuardError, match="claims an implementation of ours"):
        duel.prepare(TINY, "fastcells-triton", CPU)


@pytest.mark.parametrize(
    ("ours", "message"),
    [
        ([torch.tensor([1.0, 2.1])], "relative error"),
        ([torch.tensor([1.0, float("nan")])], "relative error nan"),
        ([torch.tensor([1.0])], "shape"),
        ([], "0 tensors against 1"),
    ],
)
def test_guard_fires_on_other_numbers(ours: list[Tensor], message: str) -> None:
    theirs = [torch.tensor([1.0, 2.0])]
    must_agree(theirs, theirs, 0.0)
    with pytest.raises(GuardError, match=message):
        must_agree(ours, theirs, 1e-3)


@pytest.mark.parametrize("case", [*smoke()], ids=str)
def test_every_case_refuses_a_contender_that_computes_something_else(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One weight is off by a thousandth: no mode may let that through."""

    def wrong(given: task.Task) -> Model:
        model = contenders.torch_nn(given)
        with torch.no_grad():
            for p in model.parameters:
                p.mul_(1.001 if case.mode != "generate" else -20)  # a text changes in whole characters
        return model

    monkeypatch.setattr(duel, "contenders", lambda: {"wrong": wrong, "right": contenders.torch_nn})
    duel.prepare(case, "right", CPU)
    with pytest.raises(GuardError, match="relative error"):
        duel.prepare(case, "wrong", CPU)


def test_backward_alone_refuses_wrong_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """A forward that is right, and a gradient in another order."""

    def wrong(given: task.Task) -> Model:
        return replace(contenders.torch_nn(given), to_torch=lambda gradients: [g * 1.001 for g in gradients])

    monkeypatch.setattr(duel, "contenders", lambda: {"wrong": wrong})
    for mode in ("backward", "forward+backward"):
        with pytest.raises(GuardError, match="relative error"):
            duel.prepare(replace(TINY, mode=mode), "wrong", CPU)


def test_a_row_says_what_it_measured() -> None:
    row = duel.measure(LESSON, "fastcells-auto", CPU, rounds=3)
    path = "cpu" if native.obstacle() is None else "recurrence"  # where there was no C compiler
    assert (row["cell"], row["T"], row["ids"], row["path"], row["rounds"]) == ("GRU", 3, True, path, 3)
    assert all(float(str(row[name])) > 0 for name in ("ms", "nn_ms", "ratio", "limit_ms", "limit_ratio", "peak_mb"))
    assert row["lower_ms"] <= row["ms"] <= row["upper_ms"]  # type: ignore[operator]


def test_long_cases_get_fewer_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    assert duel.measure(TINY, "reference", CPU, rounds=9)["rounds"] == 9
    monkeypatch.setattr(duel, "calls_per_measurement", lambda runs: 1)
    monkeypatch.setattr(duel, "LONG", 1e-9)
    assert duel.measure(TINY, "reference", CPU, rounds=9)["rounds"] == duel.FEWEST < 9


def test_contenders_that_cannot_run_say_why() -> None:
    for peer in ("flashrnn", "torchrl-triton", "haste"):
        with pytest.raises(Skipped, match=r"import|GPU"):
            duel.prepare(TINY, peer, CPU)
    with pytest.raises(Skipped, match="one layer"):
        duel.prepare(replace(TINY, layers=2), "cell-loop", CPU)
    with pytest.raises(Skipped, match="CUDA graphs need a GPU"):
        duel.prepare(replace(TINY, graph=True), "reference", CPU)


def test_an_implementation_that_cannot_run_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(Skipped, match="impl='triton' cannot run"):
        duel.prepare(TINY, "fastcells-triton", CPU)


@pytest.mark.parametrize("precision", ["tf32", "strict", ""])
def test_precision_holds_for_every_library_and_is_put_back(precision: str) -> None:
    def switches() -> tuple[bool, bool, bool]:
        tf32_in_rnns = torch.backends.cudnn.rnn.fp32_precision == "tf32"  # what cuDNN and Triton's kernels look at
        return torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32, tf32_in_rnns

    before = switches()
    from torch.testing._internal import common_utils  # noqa: F401 it forbids to set cuDNN's switches for good

    with task.matmul_precision(replace(TINY, precision=precision)):
        assert switches() == {"tf32": (True,) * 3, "strict": (False,) * 3, "": before}[precision]
    assert switches() == before


def test_ratio_of_a_contender_that_takes_twice_as_long() -> None:
    samples = compare({"slow": lambda: time.sleep(0.02), "fast": lambda: time.sleep(0.01)}, rounds=5, warmup=1)
    assert min(samples["slow"]) >= 20 and len(samples["slow"]) == 5
    # sleep may overrun; 1 would be a broken ratio
    assert ratio(samples["slow"], samples["fast"]) == pytest.approx(2, rel=0.3)
    assert ratio(samples["fast"], samples["slow"]) == pytest.approx(0.5, rel=0.3)


def test_a_replayed_graph_keeps_what_it_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    """An optimizer's state, say, that nobody else holds: freed, it would be written all the same."""

    class Graph:
        def replay(self) -> None:
            pass

    class Held:
        pass

    stream = SimpleNamespace(wait_stream=lambda other: None)
    monkeypatch.setattr(torch.cuda, "Stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    for name in ("stream", "graph"):
        monkeypatch.setattr(torch.cuda, name, lambda _: nullcontext())
    held = Held()
    alive = weakref.ref(held)
    replayed = graphed(partial(id, held), torch.device("cuda"))
    del held
    gc.collect()
    replayed()
    assert alive() is not None


def test_short_calls_are_measured_many_at_a_time() -> None:
    assert calls_per_measurement([lambda: None]) > 50
    assert calls_per_measurement([lambda: time.sleep(0.005)]) == 1


def test_memory_of_a_known_allocation() -> None:
    megabytes = 96  # both more than 32 MB, from where on glibc's heap keeps nothing of what is freed

    def run() -> None:
        torch.empty(megabytes << 18).fill_(1)  # float32
        torch.empty(megabytes << 17).fill_(1)  # after the first is gone

    run()
    found = profile.peak_memory(run, CPU)
    assert found.allocated == megabytes
    # The heap may keep the first while it hands out the second; other pages of the process come and go.
    assert found.resident is None or megabytes - 4 < found.resident < 1.5 * megabytes + 4


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("mode", ["forward", "backward", "forward+backward", "training step", "generate"])
@pytest.mark.parametrize("ids", [False, True])
def test_the_limit_counts_every_matmul(cell: str, mode: str, ids: bool) -> None:
    T, B, I, H = (4, 1, 7, 5) if mode == "generate" else (4, 3, 7, 5)  # noqa: E741
    run = matmuls(Case(cell, mode, T=T, B=B, I=I, H=H, ids=ids), CPU, by_mm)
    assert run is not None
    counter = FlopCounterMode(display=False)
    with counter:
        run()
    recurrence, projection, output = (2 * T * B * n for n in (H * GATES[cell] * H, H * GATES[cell] * I, H * I))
    projection = 0 if ids else projection
    passes = {"forward": 1, "generate": 1, "backward": 2}.get(mode, 3)  # a backward is two matmuls for each forward
    expected = passes * (recurrence + projection)
    expected += passes * output if mode in ("training step", "generate") else 0
    assert counter.get_total_flops() == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_limit_multiplies_right_either_way(dtype: torch.dtype) -> None:
    a, b = torch.randn(7, 20, dtype=dtype), torch.randn(20, 9, dtype=dtype)
    exact = a.double() @ b.double()
    runs = [by_mm(a, b), by_onednn(a, b), fastest(a, b)]
    for run in filter(None, runs):
        product = run()
        assert isinstance(product, Tensor)
        # 20 terms, each rounded once, and the sum stored once: a dozen roundings lie well above.
        assert (product.double() - exact).abs().max() < 12 * torch.finfo(dtype).eps * exact.abs().max()


def test_the_limit_takes_the_faster_library(monkeypatch: pytest.MonkeyPatch) -> None:
    def takes(milliseconds: float) -> Callable[[Tensor, Tensor], Callable[[], object]]:
        run = partial(time.sleep, milliseconds / 1e3)
        return lambda a, b: run

    a = torch.ones(2, 2)
    for mm, onednn in ((3.0, 9.0), (9.0, 3.0)):
        monkeypatch.setattr(limit, "by_mm", takes(mm))
        monkeypatch.setattr(limit, "by_onednn", takes(onednn))
        assert fastest(a, a).args == (0.003,)  # type: ignore[attr-defined]
    monkeypatch.setattr(limit, "by_onednn", lambda a, b: None)
    assert fastest(a, a).args == (0.009,)  # type: ignore[attr-defined]


def test_no_limit_where_there_is_none_to_speak_of() -> None:
    assert matmuls(replace(TINY, packed=True), CPU) is None


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("selection", SELECTIONS)
def test_selections_hold_no_case_twice(selection: str, device: str) -> None:
    cases = list(SELECTIONS[selection](device))
    names = [str(case) for case in cases]
    assert len(set(names)) == len(names) == len(set(cases))
    if selection != "smoke":
        assert replace(cases[0], precision="") == lesson("GRU")  # the lesson comes first
        assert any(case.graph for case in cases) == (device == "cuda")


def test_full_covers_what_was_asked_for() -> None:
    cases = list(SELECTIONS["full"]("cuda"))

    def values(name: str) -> set[object]:
        return {getattr(case, name) for case in cases}

    assert {64, 2048} <= values("H") and {1, 256} <= values("B") and {1, 1024} <= values("T")
    assert values("dtype") == {"float32", "bfloat16", "float16"} and {"tf32", "strict"} <= values("precision")
    assert {1, 2, 6} == values("layers") and {True} < values("bidirectional") | {None} | values("packed")
    assert values("mode") == {"forward", "backward", "forward+backward", "training step", "cell step", "generate"}


@pytest.mark.parametrize("missing", [*ORIGIN, "driver"])
def test_no_row_without_provenance(missing: str, tmp_path: Path) -> None:
    whole = {**ORIGIN, "kind": "cuda", "driver": "570"}
    with pytest.raises(ValueError, match=f"missing: {missing}"):
        provenance.write_csv("x", [{"a": 1}], {**whole, missing: ""}, tmp_path)
    with pytest.raises(ValueError, match="needs rows"):
        provenance.write_csv("x", [], whole, tmp_path)
    assert not list(tmp_path.iterdir())
    path = provenance.write_csv("x", [{"a": 1.23456789}], ORIGIN, tmp_path)
    assert path.read_text() == "a,device,torch,triton,commit,date\n1.2346,a processor,2,3,abc,2026-11-21\n"


def test_provenance_of_this_machine() -> None:
    origin = provenance.provenance(CPU)
    provenance.require(origin)
    assert origin["torch"] == torch.__version__ and origin["kind"] == "cpu"


def test_a_copy_without_git_has_a_commit_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench/a.py").write_text("one")
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    one = provenance.provenance(CPU)["commit"]
    assert one.startswith("sha256-") and one == provenance.provenance(CPU)["commit"]
    (tmp_path / "bench/a.py").write_text("two")
    assert provenance.provenance(CPU)["commit"] != one


def test_interpreted_kernels_are_called_so(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert "interpreted" in provenance.provenance(CPU)["triton"]
    monkeypatch.delenv("TRITON_INTERPRET")
    assert "interpreted" not in provenance.provenance(CPU)["triton"]
