"""Which calls impl="auto" gives to C, and which instructions C uses."""

from __future__ import annotations

import copy
import os
import subprocess
import sys

import pytest
import torch
from torch import nn

import fastcells
from fastcells import functional
from fastcells.backends.cpu import native
from tests.support.accuracy import EPS, error
from tests.support.runs import INPUT

if native.obstacle() is not None and os.environ.get("CI") != "true":
    pytest.skip(native.obstacle() or "", allow_module_level=True)

pytestmark = pytest.mark.usefixtures("poisoned_memory")


def test_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """auto goes on in torch's operators; whoever asks for C is told why there is none."""
    ids = torch.zeros(5, 3, dtype=torch.long)
    assert fastcells.explain(fastcells.GRU(INPUT, 7), ids).impl == "cpu"
    monkeypatch.setattr(native, "_cpu", None)
    assert fastcells.explain(fastcells.GRU(INPUT, 7), ids).impl == "torch"
    assert fastcells.GRU(INPUT, 7)(ids)[0].shape == (5, 3, 7)
    with pytest.raises(RuntimeError, match="impl='cpu' cannot run: the C module was not built"):
        fastcells.GRU(INPUT, 7, impl="cpu")(ids)


@pytest.mark.parametrize("wanted", ["portable", "nonsense"])
def test_instructions_by_environment(wanted: str) -> None:
    code = "from fastcells.backends.cpu import native; print(native.instruction_set())"
    environment = {**os.environ, "FASTCELLS_CPU": wanted}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    if wanted == "portable":
        assert done.stdout == "portable\n", done.stderr
    else:
        assert "FASTCELLS_CPU='nonsense', but this machine has" in done.stderr


@pytest.mark.parametrize("wanted", ["portable", "avx512", *native.BF16_INSTRUCTIONS])
def test_instructions_for_bfloat16_by_environment(wanted: str) -> None:
    """Those that are named with what stands beside them, or the best beside those for float32."""
    if not {**native.INSTRUCTIONS, **native.BF16_INSTRUCTIONS}.get(wanted):
        pytest.skip(f"this machine has no {wanted}")
    code = "from fastcells.backends.cpu import native; print(native.instruction_set(), native.bf16_instruction_set())"
    environment = {**os.environ, "FASTCELLS_CPU": wanted}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    beside = native.BESIDE.get(wanted, wanted)
    best = next((name for name, here in native.BF16_INSTRUCTIONS.items() if here and native.BESIDE[name] == beside), "")
    assert done.stdout == f"{beside} {wanted if wanted in native.BF16_INSTRUCTIONS else best}\n", done.stderr


AUTO = [  # layer, sequence length, batch, what auto runs in float32 with AVX-512
    ("GRU", 35, 32, 256, "cpu"),
    ("GRU", 16, 1, 64, "cpu"),
    ("GRU", 4, 8, 64, "torch"),
    ("GRU", 1, 128, 256, "torch"),
    ("RNN", 35, 32, 256, "cpu"),
    ("RNN", 8, 8, 256, "torch"),
    ("LSTM", 35, 32, 256, "torch"),
    ("LSTM", 35, 8, 1024, "cpu"),
    ("LSTM", 35, 32, 1024, "torch"),
    ("LSTM", 128, 32, 1024, "torch"),
    ("LSTM", 128, 1, 64, "cpu"),
    ("LSTM", 128, 2, 64, "cpu"),
    ("LSTM", 127, 2, 64, "torch"),
]


@pytest.mark.parametrize(("name", "T", "B", "H", "impl"), AUTO, ids=[f"{a[0]}-T{a[1]}-B{a[2]}-H{a[3]}" for a in AUTO])
def test_what_auto_runs(name: str, T: int, B: int, H: int, impl: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = getattr(fastcells, name)(4, H), torch.zeros(T, B, 4)
    monkeypatch.setattr(native, "instruction_set", lambda: "avx512")
    assert fastcells.explain(layer, x).impl == impl
    assert fastcells.explain(copy.deepcopy(layer).double(), x.double()).impl == "torch"
    with torch.no_grad():
        assert fastcells.explain(layer, x).path == "layer"  # one call of C for a layer and direction
    batch_first = getattr(fastcells, name)(4, H, batch_first=True)
    assert fastcells.explain(batch_first, x.transpose(0, 1)).impl == impl
    monkeypatch.setattr(native, "instruction_set", lambda: "portable")
    assert fastcells.explain(layer, x).impl == "torch"


PROJECTED = [  # steps, batch, H, P, what auto runs
    (35, 32, 256, 64, "cpu"),
    (35, 1, 64, 8, "cpu"),
    (35, 1, 256, 64, "torch"),
    (35, 8, 512, 256, "torch"),
    (35, 32, 512, 256, "cpu"),
    (35, 32, 512, 128, "torch"),
    (35, 32, 1024, 768, "torch"),
    (4, 32, 256, 64, "torch"),
]


@pytest.mark.parametrize(("T", "B", "H", "P", "impl"), PROJECTED)
@pytest.mark.parametrize("ids", [False, True], ids=["dense", "ids"])
def test_a_projection(T: int, B: int, H: int, P: int, impl: str, ids: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where C has none, it is folded into the weights; ids leave ATen's recurrence out as well."""
    layer = fastcells.LSTM(4, H, proj_size=P)
    x = torch.zeros(T, B, dtype=torch.long) if ids else torch.zeros(T, B, 4)
    monkeypatch.setattr(native, "instruction_set", lambda: "avx512")
    assert fastcells.explain(layer, x).impl == impl
    monkeypatch.setattr(native, "instruction_set", lambda: "avx2")
    assert fastcells.explain(layer, x).impl == "torch"


def test_auto_leaves_a_batch_of_mostly_padding_to_aten() -> None:
    gru, ids = fastcells.GRU(INPUT, 16), fastcells.GRU(INPUT, 16)
    full = nn.utils.rnn.pack_sequence([torch.randn(n, INPUT) for n in (40, 40, 35, 30)])
    ragged = nn.utils.rnn.pack_sequence([torch.randn(n, INPUT) for n in (40, 2, 1, 1)])
    assert fastcells.explain(gru, full).impl == "cpu" and fastcells.explain(gru, ragged).path == "aten"
    ragged_ids = nn.utils.rnn.pack_sequence([torch.zeros(n, dtype=torch.long) for n in (40, 2, 1, 1)])
    assert fastcells.explain(ids, ragged_ids).impl == "cpu"  # torch's operators would run padded as well


def test_auto_leaves_the_operators_to_who_looks_at_them() -> None:
    """Transforms, tracing and compilation see plain operators, where eager code would run C."""
    gru, x = fastcells.GRU(INPUT, 16), torch.randn(20, 3, INPUT)
    assert fastcells.explain(gru, x).impl == "cpu"
    expected = gru(x)[0]
    mapped = torch.func.vmap(lambda v: functional.gru(v, None, *gru.parameters(), reset_after=False)[0])(x[None])
    assert mapped.shape == (1, 20, 3, 16)
    with torch.autocast("cpu", torch.float16):
        assert fastcells.explain(gru, x).impl == "torch"
    torch._dynamo.reset()
    assert error(torch.compile(gru, fullgraph=True, backend="eager")(x)[0], expected) <= 16 * EPS


def test_a_barrier_costs_more_than_few_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """One thread takes a row or two whose packed weights stay in a core's first caches, however many steps follow."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    for B, expected in ((1, [1, 1, 1, 2]), (2, [1, 1, 2, 2]), (3, [2, 2, 2, 2])):
        sizes = [(gates * H, H) for gates, H in ((1, 64), (3, 64), (4, 64), (3, 128))]
        assert [native.layer_threads(True, 256, B, H, rows, H) for rows, H in sizes] == expected
