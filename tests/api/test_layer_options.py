"""`lengths=`, `resets=` and `reset_state=` of the layers, and every state of an LSTM: against rows that run alone."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastcells
from tests.support.layer_cases import KINDS

T, B, I, H = 6, 4, 3, 5  # noqa: E741
IMPLS = ("torch", "cpu", "auto")
LENGTHS = [6, 1, 4, 0]
EACH_IMPL = pytest.mark.parametrize("impl", IMPLS)
SHAPES = [{}, {"num_layers": 2}, {"bidirectional": True}, {"num_layers": 2, "bidirectional": True, "batch_first": True}]
EACH_SHAPE = pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "-".join(s) or "plain")
LAYERS = {
    **{name: (ours, options) for name, (_, ours, options) in KINDS.items()},
    "GRU-reset-before": (fastcells.GRU, {"reset_after": False}),
}
EACH_LAYER = pytest.mark.parametrize("name", LAYERS)


def layer(name: str, *sizes: int, **options: Any) -> Any:
    made, own = LAYERS[name]
    return made(*sizes, **own, **options)


def flat(results: Any) -> list[Tensor]:
    out, last = results[:2]
    return [out, *(last if isinstance(last, tuple) else (last,))]


def inputs(built: Any, ids: bool, B: int = B) -> Tensor:
    x = torch.randint(I, (T, B)) if ids else torch.randn(T, B, I, dtype=built.weight_hh_l0.dtype)
    return x.transpose(0, 1).contiguous() if built.batch_first else x


def time_first(built: Any, t: Tensor) -> Tensor:
    return t.transpose(0, 1) if built.batch_first else t


def one_row(built: Any, x: Tensor, row: int, start: int = 0, end: int = T, hx: Any = None) -> list[Tensor]:
    """A part of one row, alone, through torch.nn's twin or, where it has none, through ours."""
    part = time_first(built, time_first(built, x)[start:end, row : row + 1])
    return flat(built(part) if hx is None else built(part, hx))


@EACH_IMPL
@EACH_SHAPE
@pytest.mark.parametrize("ids", [False, True], ids=("dense", "ids"))
@EACH_LAYER
def test_lengths_are_rows_run_alone(name: str, ids: bool, shape: dict[str, Any], impl: str) -> None:
    built, plain = layer(name, I, H, **shape, impl=impl), layer(name, I, H, **shape, impl="torch")
    plain.load_state_dict(built.state_dict())
    x = inputs(built, ids)
    out, *last = flat(built(x, lengths=torch.tensor(LENGTHS)))
    assert out.shape == flat(built(x))[0].shape
    for row, n in enumerate(LENGTHS):
        own = time_first(built, out)[:, row]
        assert (own[n:] == 0).all()
        if n == 0:
            assert all((s[:, row] == 0).all() for s in last)
            continue
        alone, *ends = one_row(plain, x, row, 0, n)
        torch.testing.assert_close(own[:n], time_first(built, alone)[:, 0], atol=1e-6, rtol=1e-5)
        for s, e in zip(last, ends, strict=True):
            torch.testing.assert_close(s[:, row], e[:, 0], atol=1e-6, rtol=1e-5)


@EACH_IMPL
@EACH_SHAPE
@EACH_LAYER
def test_resets_cut_a_row_into_episodes_in_both_directions(name: str, shape: dict[str, Any], impl: str) -> None:
    built, plain = layer(name, I, H, **shape, impl=impl), layer(name, I, H, **shape, impl="torch")
    plain.load_state_dict(built.state_dict())
    x, resets = inputs(built, False), torch.zeros(T, B, dtype=torch.bool)
    episodes = [[0, 6], [0, 2, 6], [0, 1, 2, 5, 6], [0, 5, 6]]
    for row, bounds in enumerate(episodes):
        resets[bounds[1:-1], row] = True
    resets[0, 2] = True  # where it starts from zeros in any case
    out = time_first(built, flat(built(x, resets=time_first(built, resets)))[0])
    layers = shape.get("num_layers", 1)
    for row, bounds in enumerate(episodes):
        for start, end in itertools.pairwise(bounds):
            if layers == 1 or len(bounds) == 2:
                alone = time_first(built, one_row(plain, x, row, start, end)[0])[:, 0]
                torch.testing.assert_close(out[start:end, row], alone, atol=1e-6, rtol=1e-5)
    # A later layer reads nothing from other episodes either: no gradient from one reaches another's input.
    x = x.detach().requires_grad_()
    out = time_first(built, flat(built(x, resets=time_first(built, resets)))[0])
    out[2:, 1].backward(torch.randn_like(out[2:, 1]))
    grad = time_first(built, x.grad)
    assert (grad[:2, 1] == 0).all() and (grad[2:, 1] != 0).any()


@pytest.mark.parametrize("batched", [False, True], ids=("learned", "for each row"))
@pytest.mark.parametrize("name", ["GRU", "LSTM"])
def test_an_episode_may_start_from_a_given_state(name: str, batched: bool) -> None:
    built = layer(name, I, H, num_layers=2, dtype=torch.float64)
    states = 2 if name == "LSTM" else 1
    start = tuple(torch.randn(2, H, dtype=torch.float64, requires_grad=True) for _ in range(states))
    given = tuple(s.unsqueeze(1).expand(-1, B, -1) for s in start) if batched else start
    x, resets = inputs(built, False), torch.zeros(T, B, dtype=torch.bool)
    resets[3] = True
    hx: Any = given if states == 2 else given[0]
    out, *_ = flat(built(x, resets=resets, reset_state=hx))
    whole: Any = tuple(s.unsqueeze(1).expand(-1, B, -1).contiguous() for s in start)
    again = flat(built(x[3:], whole if states == 2 else whole[0]))[0]
    torch.testing.assert_close(out[3:], again)
    torch.testing.assert_close(out[:3], flat(built(x[:3]))[0])
    d = torch.randn_like(again)
    found, expected = (torch.autograd.grad(o, start, d) for o in (out[3:], again))
    for a, e in zip(found, expected, strict=True):
        torch.testing.assert_close(a, e)
    with pytest.raises(fastcells.CannotRun, match="there is no kernel for reset_state"):
        layer(name, I, H, impl="cpu")(x.float(), resets=resets, reset_state=_float(hx, 1))


def _float(hx: Any, layers: int) -> Any:
    return tuple(s[:layers].float() for s in hx) if isinstance(hx, tuple) else hx[:layers].float()


@pytest.mark.parametrize("batch_first", [False, True])
def test_a_mask_says_the_same_as_lengths(batch_first: bool) -> None:
    built = layer("GRU", I, H, batch_first=batch_first)
    x = inputs(built, False)
    mask = time_first(built, torch.arange(T).unsqueeze(1) < torch.tensor(LENGTHS))
    for a, e in zip(flat(built(x, mask=mask)), flat(built(x, lengths=LENGTHS)), strict=True):
        assert torch.equal(a, e)
    with pytest.raises(RuntimeError, match="give one of them"):
        built(x, mask=mask, lengths=LENGTHS)
    with pytest.raises(RuntimeError, match="must be the last ones of their row"):
        built(x, mask=~mask)
    with pytest.raises(RuntimeError, match=r"mask must be a bool tensor of 1 or 2 dimensions, got torch.int64 \[4\]"):
        built(x, mask=torch.tensor(LENGTHS))
    one = layer("LSTM", I, H)
    assert torch.equal(one(x[0], mask=torch.arange(len(x[0])) < 3)[0], one(x[0], lengths=3)[0])


def test_one_sequence_without_a_batch() -> None:
    built = layer("LSTM", I, H, bidirectional=True)
    x = torch.randn(T, I)
    resets = torch.tensor([False, False, True, False, True, False])
    out, (h, c) = built(x, lengths=4, resets=resets)
    expected, (eh, ec) = built(x.unsqueeze(1), lengths=[4], resets=resets.unsqueeze(1))
    for a, e in ((out, expected[:, 0]), (h, eh[:, 0]), (c, ec[:, 0])):
        assert torch.equal(a, e)


def test_what_does_not_fit_is_named() -> None:
    built, x, no_resets = layer("GRU", I, H), torch.randn(T, B, I), torch.zeros(T, B, dtype=torch.bool)
    for given, message in (
        ({"lengths": [1, 2]}, r"lengths must be an integer tensor of shape \[4\], got torch.int64 \[2\]"),
        ({"lengths": torch.ones(B)}, r"got torch.float32 \[4\]"),
        ({"resets": no_resets.t()}, r"resets must be a bool tensor of shape \[6, 4\], got torch.bool"),
        ({"resets": torch.zeros(T, B)}, r"got torch.float32 \[6, 4\]"),
        ({"reset_state": torch.zeros(1, H)}, "give both"),
        ({"resets": no_resets, "reset_state": torch.zeros(2, H)}, r"with 1 rows and B = 4, got \[2, 4, 5\]"),
    ):  # fmt: skip
        with pytest.raises(RuntimeError, match=message):
            built(x, **given)
    packed = nn.utils.rnn.pack_sequence([torch.randn(3, I), torch.randn(2, I)])
    with pytest.raises(ValueError, match="GRU: a PackedSequence has lengths of its own"):
        built(packed, lengths=[3, 2])
    lstm: Any = layer("LSTM", I, H)
    with pytest.raises(TypeError, match=r"LSTM: reset_state must be a tuple \(h, c\), got a tensor of shape \[1, 5\]"):
        lstm(x, resets=torch.zeros(T, B, dtype=torch.bool), reset_state=torch.zeros(1, H))


@EACH_IMPL
@EACH_SHAPE
@pytest.mark.parametrize("options", ["plain", "ids", "lengths", "resets", "packed"])
def test_every_cell_state_of_an_lstm_with_its_gradients(options: str, shape: dict[str, Any], impl: str) -> None:
    """Against c_n of the sequence cut off after each step; in reverse the walk begins at the cut."""
    built: Any = layer("LSTM", I, H, **shape, impl=impl, return_states=True)
    plain: Any = layer("LSTM", I, H, **shape, impl="torch")
    plain.load_state_dict(built.state_dict())
    x = inputs(built, options == "ids")
    given: dict[str, Any] = {}
    if options == "lengths":
        given["lengths"] = torch.tensor(LENGTHS)
    if options == "resets":
        given["resets"] = time_first(built, torch.rand(T, B) < 0.3)
    if options == "packed":
        packed = nn.utils.rnn.pack_padded_sequence(x, [6, 4, 4, 1], built.batch_first)
        _, (_, c_n), states = built(packed)
        assert torch.equal(states.batch_sizes, packed.batch_sizes)
        cells, n = nn.utils.rnn.pad_packed_sequence(states, built.batch_first)
        ends = torch.stack([time_first(built, cells)[k - 1, row, :H] for row, k in enumerate(n)])
        torch.testing.assert_close(ends, c_n[-len(built._all_weights) // built.num_layers], atol=1e-6, rtol=1e-5)
        return
    out, (h_n, c_n), states = built(x, **given)
    expected, (eh, ec) = plain(x, **given)
    for a, e in ((out, expected), (h_n, eh), (c_n, ec)):
        torch.testing.assert_close(a, e, atol=1e-6, rtol=1e-5)
    cells = time_first(built, states)
    assert cells.shape == (T, B, H * (2 if built.bidirectional else 1))
    if options == "lengths":
        ends = torch.stack([cells[max(n - 1, 0), row, :H] for row, n in enumerate(LENGTHS)])
        assert all((cells[n:, row] == 0).all() for row, n in enumerate(LENGTHS))
    else:
        ends = cells[-1, :, :H]
    last_layer = c_n.unflatten(0, (built.num_layers, -1))[-1]
    torch.testing.assert_close(ends, last_layer[0], atol=1e-6, rtol=1e-5)
    if built.bidirectional:
        torch.testing.assert_close(cells[0, :, H:], last_layer[1], atol=1e-6, rtol=1e-5)
    if options == "plain" and not built.bidirectional and built.num_layers == 1:
        for t in range(T):
            torch.testing.assert_close(cells[t], plain(x[: t + 1])[1][1][0], atol=1e-6, rtol=1e-5)
        d = torch.randn(T, B, H)
        found = torch.autograd.grad(cells, list(built.parameters()), d)
        exact = torch.stack([plain(x[: t + 1])[1][1][0] for t in range(T)])
        for a, e in zip(found, torch.autograd.grad(exact, list(plain.parameters()), d), strict=True):
            torch.testing.assert_close(a, e, atol=1e-5, rtol=1e-4)
    out.relu_()  # each is a tensor of its own
    states.detach_()


def test_gradients_of_every_state_by_finite_differences() -> None:
    built: Any = layer("LSTM", 2, 3, dtype=torch.float64, bidirectional=True, proj_size=2, return_states=True)
    x = torch.randn(4, 2, 2, dtype=torch.float64, requires_grad=True)
    resets = torch.rand(4, 2) < 0.3

    def run(x: Tensor, *_: Tensor) -> tuple[Tensor, ...]:
        out, (h, c), states = built(x, lengths=[3, 4], resets=resets)
        return out, h, c, states

    weights = list(built.parameters())
    assert torch.autograd.gradcheck(run, (x, *weights))
    assert torch.autograd.gradgradcheck(lambda x: run(x)[3], (x,))
