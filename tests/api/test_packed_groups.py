"""A packed batch runs in groups of similar lengths: the padding decides neither numbers, nor time, nor memory."""

from __future__ import annotations

import random
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence

import fastcells
from fastcells import packed
from fastcells.backends.cpu import native
from tests.support.accuracy import assert_equal_to_rounding, cotangents

pytestmark = pytest.mark.slow

V, H = 11, 7
# (layer, options): dense and ids of each are run by the implementations below.
LAYERS: dict[str, tuple[type[fastcells.layers.Layer], dict[str, Any]]] = {
    "RNN": (fastcells.RNN, {}),
    "GRU": (fastcells.GRU, {}),
    "GRU-before": (fastcells.GRU, {"reset_after": False}),
    "LSTM": (fastcells.LSTM, {}),
    "LSTM-proj": (fastcells.LSTM, {"proj_size": 3}),
    "GRU-deep": (fastcells.GRU, {"num_layers": 2, "bidirectional": True}),
}
LENGTHS = [(40, 39, 20, 3, 3, 2, 1, 1, 1), (50, 1, 1, 1), (9, 9, 8), (1, 1, 1), (30,)]


@pytest.fixture(autouse=True)
def divide(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few tokens of padding are enough for a further group."""
    monkeypatch.setattr(packed, "FEW", 4)


def batch_sizes(lengths: tuple[int, ...]) -> list[int]:
    return [sum(length > t for length in lengths) for t in range(max(lengths))]


def test_groups_hold_every_row_once_and_pad_little() -> None:
    rng = random.Random(0)
    for _ in range(300):
        lengths = tuple(sorted(rng.choice([1, 2, 7, 30, rng.randint(1, 200)]) for _ in range(rng.randint(1, 40))))[::-1]
        groups = packed.groups(batch_sizes(lengths))
        assert [row for first, end in groups for row in range(first, end)] == list(range(len(lengths)))
        assert all(first < end for first, end in groups)
        padded = sum(lengths[first] * (end - first) for first, end in groups)
        if len(groups) > 1:
            assert padded < 2 * sum(lengths) and sum(lengths[first] for first, _ in groups) <= 2 * lengths[0]
        else:
            assert padded <= 1.5 * sum(lengths) + packed.FEW


@pytest.mark.parametrize("impl", ["torch", "cpu", "triton-step"])
@pytest.mark.parametrize("kind", ["dense", "ids"])
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize("name", LAYERS)
def test_same_numbers_as_row_by_row(name: str, lengths: tuple[int, ...], kind: str, impl: str) -> None:
    cls, options = LAYERS[name]
    if impl == "cpu" and native.obstacle() is not None:
        pytest.skip(str(native.obstacle()))
    if impl == "triton-step" and (lengths is not LENGTHS[1] or name == "GRU-deep"):
        pytest.skip("the interpreter is slow; one batch of each cell shows the path")
    lengths = tuple(-(-n // 10) for n in lengths) if impl == "triton-step" else lengths
    layer = cls(V, H, **options, impl=impl)
    rows = [torch.randn(n, V) if kind == "dense" else torch.randint(V, (n,)) for n in lengths]
    D = layer.num_layers * (1 + layer.bidirectional)
    hx: Any = torch.randn(D, len(rows), layer.proj_size or H, requires_grad=True)
    hx = (hx, torch.randn(D, len(rows), H, requires_grad=True)) if layer.mode == "LSTM" else hx
    leaves = [*layer.parameters(), *(hx if isinstance(hx, tuple) else (hx,))]

    def flat(out: PackedSequence, last: Any) -> list[Tensor]:
        return [out.data, *(last if isinstance(last, tuple) else (last,))]

    actual = flat(*layer(pack_sequence(rows), hx))
    alone = []
    for i, row in enumerate(rows):
        own = tuple(s[:, i : i + 1] for s in hx) if isinstance(hx, tuple) else hx[:, i : i + 1]
        out, last = layer(row.unsqueeze(1), own)
        alone.append((out[:, 0], last))
    outs = pack_sequence([out for out, _ in alone])
    lasts = [last if isinstance(last, tuple) else (last,) for _, last in alone]
    expected = [outs.data, *(torch.cat(s, 1) for s in zip(*lasts, strict=True))]
    assert_equal_to_rounding(actual, expected)
    d = cotangents(expected)
    assert_equal_to_rounding(torch.autograd.grad(actual, leaves, d), torch.autograd.grad(expected, leaves, d))


def test_unsorted_batch_as_torch() -> None:
    theirs, ours = nn.GRU(V, H), fastcells.GRU(V, H)
    ours.load_state_dict(theirs.state_dict())
    ids = torch.randint(V, (60, 5))
    lengths = torch.tensor([2, 60, 1, 31, 1])
    dense = pack_padded_sequence(nn.functional.one_hot(ids, V).float(), lengths, enforce_sorted=False)
    h0 = torch.randn(1, 5, H)
    expected, h_n = theirs(dense, h0)
    actual, ours_h_n = ours(pack_padded_sequence(ids, lengths, enforce_sorted=False), h0)
    assert_equal_to_rounding([actual.data, ours_h_n], [expected.data, h_n])


RAGGED = """
import sys, torch, fastcells
from torch.nn.utils.rnn import pack_sequence
torch.set_num_threads(1)
layer = fastcells.GRU(64, 64, reset_after=sys.argv[1] != "before", impl=sys.argv[2])
rows = [torch.randint(64, (n,)) for n in [1000] + [1] * 499]
def backward(out):
    out.backward(torch.randn_like(out))
backward(layer(torch.randint(64, (5, 3)))[0])
def peak():  # not ru_maxrss, which begins with what the parent had
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
before = peak()
backward(layer(pack_sequence(rows))[0].data)
print((peak() - before) / 1024)
"""


@pytest.mark.parametrize("impl", ["auto", "torch"])
@pytest.mark.parametrize("variant", ["after", "before"])
def test_memory_follows_the_tokens(variant: str, impl: str) -> None:
    """1,000 and 499 times 1: 1,499 tokens, of which padding makes 500,000. They need 984 MB padded, and torch.nn 24."""
    done = subprocess.run([sys.executable, "-c", RAGGED, variant, impl], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 24 + 30
