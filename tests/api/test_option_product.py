"""Every option of a layer with every other: outputs, states and all gradients against a reference of its own.

The options of PyTorch's own test of CPU against cuDNN, and ours. Each pair of values meets in a selection; with
FASTCELLS_PRODUCT=N one in N of all 200,448 that go together runs as well (`make product`: one in 40, minutes).
"""

from __future__ import annotations

import itertools
import os
import zlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import fastcells
from fastcells.call_options import Masks
from tests.support.stack_reference import Stack

T, B, I, H = 5, 3, 4, 6  # noqa: E741
VALUES: dict[str, tuple[Any, ...]] = {
    "cell": ("rnn_tanh", "rnn_relu", "gru", "gru_reset_before", "lstm", "lstm_projected"),
    "impl": ("auto", "torch", "cpu"),
    "lengths": (None, "lengths", "packed", "unsorted"),
    "option": ("", "resets", "reset_state", "recurrent_dropout", "zoneout", "weight_dropout", "states", "all"),
    "ids": (False, True),
    "bias": (True, False),
    "bidirectional": (False, True),
    "batch_first": (False, True),
    "contiguous": (True, False),
    "state": ("given", "none"),
    "layers": (1, 2),
    "dropout": (0.0, 1.0),
    "used": ("all", "out", "last"),  # what has a gradient
}
ONLY_TORCH = ("reset_state", "recurrent_dropout", "zoneout", "all")
Choice = dict[str, Any]


def possible(c: Choice) -> bool:
    """Whether these go together."""
    packed = c["lengths"] in ("packed", "unsorted")
    kernel = c["impl"] == "cpu"
    return not (
        (packed and c["option"] in ("resets", "reset_state", "all"))
        or (kernel and c["option"] in ONLY_TORCH)
        or (c["option"] == "states" and not c["cell"].startswith("lstm"))
        or (c["dropout"] == 1.0 and c["layers"] == 1)
    )


def everything() -> Iterator[Choice]:
    return (
        c for values in itertools.product(*VALUES.values()) if possible(c := dict(zip(VALUES, values, strict=True)))
    )


def pairs(c: Choice) -> set[tuple[tuple[str, Any], ...]]:
    return set(itertools.combinations(c.items(), 2))


def pairwise() -> list[Choice]:
    """A few in which each pair of values that goes together meets: greedily the best of some random ones."""
    generator = torch.Generator().manual_seed(0)
    every = list(everything())
    order = torch.randperm(len(every), generator=generator).tolist()
    missing = set().union(*(pairs(every[i]) for i in order[:20_000]))
    found: list[Choice] = []
    while missing:
        some = torch.randint(len(every), (60,), generator=generator).tolist()
        best = max((every[i] for i in some), key=lambda c: len(pairs(c) & missing))
        if not pairs(best) & missing:
            best = next(every[i] for i in order if pairs(every[i]) & missing)
        found.append(best)
        missing -= pairs(best)
    return found


EVERY = int(os.environ.get("FASTCELLS_PRODUCT", "0"))
CASES = pairwise() + (list(everything())[::EVERY] if EVERY else [])


def built(c: Choice) -> Any:
    made = {"rnn": fastcells.RNN, "gru": fastcells.GRU, "lstm": fastcells.LSTM}[c["cell"][:4].rstrip("_")]
    own: dict[str, Any] = {"rnn_relu": {"nonlinearity": "relu"}, "lstm_projected": {"proj_size": 2}}.get(c["cell"], {})
    own |= {"reset_after": False} if c["cell"] == "gru_reset_before" else {}
    own |= {"return_states": True} if c["option"] in ("states", "all") and c["cell"].startswith("lstm") else {}
    names = ("bias", "bidirectional", "batch_first", "dropout", "impl")
    dtype = torch.float32 if c["impl"] == "cpu" else torch.float64
    return made(I, H, c["layers"], **own, **{name: c[name] for name in names}, dtype=dtype)


def masks_of(layer: Any, option: str) -> Masks:
    """Of one kind, or all."""
    wanted = {
        "recurrent_dropout": ("recurrent_dropout",),
        "zoneout": ("zoneout", "zoneout_cell"),
        "weight_dropout": ("weight_dropout",),
        "all": Masks._fields,
    }.get(option, ())
    rates = {name: 0.5 for name in wanted if name != "zoneout_cell" or layer.mode == "LSTM"}
    for name, p in rates.items():
        setattr(layer, name, p)
    drawn: Masks = layer.draw_masks(T, B)
    for name in rates:
        setattr(layer, name, 0.0)
    return drawn


@pytest.mark.parametrize("c", CASES, ids=lambda c: "-".join(str(v) for v in c.values()))
def test_options_together(c: Choice) -> None:
    torch.manual_seed(zlib.crc32(repr(c).encode()))
    layer = built(c)
    dtype, rows = layer.weight_hh_l0.dtype, len(layer._all_weights)
    ids = torch.randint(I, (T, B))
    dense = torch.randn(T, B, I, dtype=dtype)
    x = (ids if c["ids"] else dense).transpose(0, 1).contiguous() if c["batch_first"] else ids if c["ids"] else dense
    if not c["contiguous"]:
        x = torch.stack([x, x], -1)[..., 0]
    x = x if c["ids"] else x.requires_grad_()
    widths = [layer.proj_size or H, H] if layer.mode == "LSTM" else [H]
    state = [torch.randn(rows, B, w, dtype=dtype, requires_grad=True) for w in widths]
    lengths = {None: None, "unsorted": [2, 5, 1]}.get(c["lengths"], [5, 3, 1])
    given: dict[str, Any] = {}
    resets, start = torch.rand(T, B) < 0.4, [torch.randn(rows, w, dtype=dtype, requires_grad=True) for w in widths]
    if c["option"] in ("resets", "reset_state", "all"):
        given["resets"] = resets.t() if c["batch_first"] else resets
    if c["option"] in ("reset_state", "all"):
        given["reset_state"] = tuple(start) if layer.mode == "LSTM" else start[0]
    masks = masks_of(layer, c["option"])
    if masks != Masks():
        given["masks"] = masks
    hx = (tuple(state) if layer.mode == "LSTM" else state[0]) if c["state"] == "given" else None
    packed = c["lengths"] in ("packed", "unsorted")
    if c["lengths"] == "lengths":
        given["lengths"] = torch.tensor(lengths)
    input: Any = x
    if packed:
        input = pack_padded_sequence(x, lengths, c["batch_first"], enforce_sorted=c["lengths"] == "packed")
    out, last, *cells = layer(input, hx, **given)
    ours = [out, *(last if isinstance(last, tuple) else (last,)), *cells]
    for i in (0, -1) if cells else (0,):
        if packed:
            ours[i] = pad_packed_sequence(ours[i], c["batch_first"], total_length=T)[0]
        if c["batch_first"]:
            ours[i] = ours[i].transpose(0, 1)
    exact, leaves = expected(c, layer, x, state if hx is not None else None, start, resets, masks, lengths)
    exact = exact[: len(ours)]
    for a, e in zip(ours, exact, strict=True):
        close(a, e)
    d = [torch.randn_like(e) for e in exact]
    chosen = {"all": range(len(ours)), "out": [0], "last": [1]}[c["used"]]
    own = [x, *(state if hx is not None else []), *(start if "reset_state" in given else []), *layer.parameters()]
    own = [t for t in own if t.requires_grad]
    found = torch.autograd.grad([ours[i] for i in chosen], own, [d[i].to(dtype) for i in chosen], allow_unused=True)
    wanted = torch.autograd.grad([exact[i] for i in chosen], leaves, [d[i] for i in chosen], allow_unused=True)
    for a, e, leaf in zip(found, wanted, own, strict=True):
        close(torch.zeros_like(leaf) if a is None else a, torch.zeros_like(leaf).double() if e is None else e)


def expected(
    c: Choice,
    layer: Any,
    x: Tensor,
    state: list[Tensor] | None,
    start: list[Tensor],
    resets: Tensor,
    masks: Masks,
    lengths: list[int] | None,
) -> tuple[list[Tensor], list[Tensor]]:
    """The reference in float64, and its leaves in the order of the test's."""

    def leaf(t: Tensor) -> Tensor:
        return t.detach().double().requires_grad_()

    rows = len(layer._all_weights)
    widths = [layer.proj_size or H, H] if layer.mode == "LSTM" else [H]
    weights = {name: leaf(p) for name, p in layer.named_parameters()}
    begin = [leaf(s) for s in state] if state else [torch.zeros(rows, B, w, dtype=torch.float64) for w in widths]
    again = [leaf(s) for s in start] if c["option"] in ("reset_state", "all") else []
    inputs = torch.nn.functional.one_hot(x, I).double() if c["ids"] else leaf(x)
    stack = Stack(
        cell={"lstm_projected": "lstm"}.get(c["cell"], c["cell"]),
        layers=c["layers"],
        directions=2 if c["bidirectional"] else 1,
        weights=weights,
        drop_all=c["dropout"] == 1.0,
        lengths=lengths,
        resets=resets if c["option"] in ("resets", "reset_state", "all") else None,
        reset_state=again,
        recurrent=None if masks.recurrent_dropout is None else masks.recurrent_dropout.double(),
        keep=masks.zoneout,
        keep_cell=masks.zoneout_cell,
        without=None if masks.weight_dropout is None else [w.double() for w in masks.weight_dropout],
    )
    exact = stack.run(inputs.transpose(0, 1) if c["batch_first"] else inputs, begin)
    leaves = [*([] if c["ids"] else [inputs]), *(begin if state else []), *again, *weights.values()]
    return exact, leaves


def close(actual: Tensor, exact: Tensor) -> None:
    tolerance = 1e-9 if actual.dtype == torch.float64 else 2e-5
    scale = max(1.0, exact.abs().max().item())
    assert actual.shape == exact.shape
    assert (actual.double() - exact).abs().max().item() <= tolerance * scale


def test_the_selection_has_every_pair() -> None:
    wanted = {pair for c in itertools.islice(everything(), 0, None, 11) for pair in pairs(c)}
    assert wanted <= set().union(*(pairs(c) for c in pairwise()))
    assert len(pairwise()) < 150
