"""Variational dropout, zoneout and dropped weights: their equations, gradients, statistics, and that they are off."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor

import fastcells
from fastcells.call_options import Masks
from tests.support.layer_cases import assert_identical

T, B, I, H = 5, 4, 3, 6  # noqa: E741
RATES = {"recurrent_dropout": 0.3, "zoneout": 0.2, "weight_dropout": 0.4}
LAYERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "RNN": (fastcells.RNN, {}),
    "RNN-relu": (fastcells.RNN, {"nonlinearity": "relu"}),
    "GRU": (fastcells.GRU, {}),
    "GRU-reset-before": (fastcells.GRU, {"reset_after": False}),
    "LSTM": (fastcells.LSTM, {"zoneout_cell": 0.5}),
    "LSTM-proj": (fastcells.LSTM, {"zoneout_cell": 0.5, "proj_size": 2}),
}
EACH_LAYER = pytest.mark.parametrize("name", LAYERS)


def layer(name: str, **options: Any) -> Any:
    made, own = LAYERS[name]
    return made(I, H, **{**RATES, **own, "dtype": torch.float64, **options})


def by_hand(built: Any, x: Tensor, masks: Masks) -> list[Tensor]:
    """The equations as the papers have them, gate by gate, for one layer and direction; out and the final state."""
    w_ih, w_hh = built.weight_ih_l0, built.weight_hh_l0
    b_ih, b_hh = built.bias_ih_l0, built.bias_hh_l0
    if masks.weight_dropout is not None:
        w_hh = w_hh * masks.weight_dropout[0]
    h, c = x.new_zeros(B, built.proj_size or H), x.new_zeros(B, H)
    out = []
    for t in range(T):
        dropped = h if masks.recurrent_dropout is None else h * masks.recurrent_dropout[0]
        a, r = x[t] @ w_ih.t() + b_ih, dropped @ w_hh.t() + b_hh
        if built.mode == "LSTM":
            i, f, g, o = (a + r).chunk(4, 1)
            new_c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            new = o.sigmoid() * new_c.tanh()
            new = new @ built.weight_hr_l0.t() if built.proj_size else new
            if masks.zoneout_cell is not None:
                keep = masks.zoneout_cell[0, t].to(x.dtype)
                new_c = keep * c + (1 - keep) * new_c
            c = new_c
        elif built.mode == "GRU":
            (a_r, a_z, a_n), (r_r, r_z, r_n) = a.chunk(3, 1), r.chunk(3, 1)
            reset, z = (a_r + r_r).sigmoid(), (a_z + r_z).sigmoid()
            if not built.reset_after:
                r_n = (reset * dropped) @ w_hh[2 * H :].t() + b_hh[2 * H :]
            n = (a_n + (reset * r_n if built.reset_after else r_n)).tanh()
            new = (1 - z) * n + z * h  # what is carried on is not dropped
        else:
            new = (a + r).tanh() if built.nonlinearity == "tanh" else (a + r).relu()
        if masks.zoneout is not None:
            keep = masks.zoneout[0, t].to(x.dtype)
            new = keep * h + (1 - keep) * new
        h = new
        out.append(h)
    return [torch.stack(out), h, *([c] if built.mode == "LSTM" else [])]


def flat(results: Any) -> list[Tensor]:
    out, last = results
    return [out, *(s[0] for s in (last if isinstance(last, tuple) else (last,)))]


@pytest.mark.parametrize("only", [*RATES, "zoneout_cell", "all"])
@EACH_LAYER
def test_given_masks_act_as_the_papers_say_with_their_gradients(name: str, only: str) -> None:
    built = layer(name).eval()
    masks = built.draw_masks(T, B)
    if only != "all":
        masks = Masks()._replace(**{only: getattr(masks, only)})
    x = torch.randn(T, B, I, dtype=torch.float64, requires_grad=True)
    ours, expected = flat(built(x, masks=masks)), by_hand(built, x, masks)
    d = [torch.randn_like(e) for e in expected]
    leaves = [x, *built.parameters()]
    for a, e in zip(ours, expected, strict=True):
        torch.testing.assert_close(a, e)
    pairs = (torch.autograd.grad(outs, leaves, d, allow_unused=True) for outs in (ours, expected))
    for a, e in zip(*pairs, strict=True):
        torch.testing.assert_close(a, e)


@EACH_LAYER
def test_second_derivatives_for_fixed_masks(name: str) -> None:
    built = layer(name)
    masks = built.draw_masks(3, 2)
    x = torch.randn(3, 2, I, dtype=torch.float64, requires_grad=True)
    if name == "RNN-relu":
        built.weight_hh_l0.data.abs_()  # away from the kink
        built.bias_ih_l0.data.fill_(5.0)
    weights = list(built.parameters())

    def run(x: Tensor, *_: Tensor) -> tuple[Tensor, ...]:
        return tuple(flat(built(x, masks=masks)))

    assert torch.autograd.gradcheck(run, (x, *weights))
    assert torch.autograd.gradgradcheck(lambda x, w: run(x)[0], (x, built.weight_hh_l0))


def test_a_number_for_a_mask_mixes_both_states() -> None:
    """The expectation of zoneout, as its paper has it outside of training."""
    built = layer("LSTM", **dict.fromkeys(RATES, 0.0), zoneout_cell=0.0).eval()
    half, some = (torch.full((1, T, B, H), p, dtype=torch.float64) for p in (0.5, 0.1))
    x = torch.randn(T, B, I, dtype=torch.float64)
    masks = Masks(zoneout=half, zoneout_cell=some)
    for a, e in zip(flat(built(x, masks=masks)), by_hand(built, x, masks), strict=True):
        torch.testing.assert_close(a, e)


@EACH_LAYER
def test_in_eval_nothing_happens_and_in_training_a_seed_repeats_it(name: str) -> None:
    built = layer(name, num_layers=2, bidirectional=True)
    plain = layer(name, num_layers=2, bidirectional=True, **dict.fromkeys(RATES, 0.0), zoneout_cell=0.0) \
        if "LSTM" in name else layer(name, num_layers=2, bidirectional=True, **dict.fromkeys(RATES, 0.0))  # fmt: skip
    plain.load_state_dict(built.state_dict())
    x = torch.randn(T, B, I, dtype=torch.float64)
    state = torch.get_rng_state()
    assert_identical(built.eval()(x), plain(x))
    assert torch.equal(state, torch.get_rng_state())
    built.train()
    torch.manual_seed(1)
    first = built(x)[0]
    torch.manual_seed(1)
    masks = built.draw_masks(T, B)
    assert torch.equal(first, built.eval()(x, masks=masks)[0])
    torch.manual_seed(2)
    assert not torch.equal(first, built.train()(x)[0])
    assert not torch.allclose(first, plain(x)[0])


def test_rates_are_probabilities_of_units_and_weights() -> None:
    built = layer("LSTM", num_layers=2, bidirectional=True)
    masks = built.draw_masks(50, 60)
    shapes = {"recurrent_dropout": (4, 60, H), "zoneout": (4, 50, 60, H), "zoneout_cell": (4, 50, 60, H)}
    for name, shape in shapes.items():
        drawn = getattr(masks, name)
        assert tuple(drawn.shape) == shape
        share = (drawn == 0 if name == "recurrent_dropout" else drawn).double().mean().item()
        assert abs(share - getattr(built, name)) < 0.05, name
    torch.testing.assert_close(masks.recurrent_dropout.unique(), torch.tensor([0, 1 / 0.7], dtype=torch.float64))
    assert [list(w.shape) for w in masks.weight_dropout] == [[4 * H, H]] * 4
    weights = torch.cat([w.flatten() for w in masks.weight_dropout])
    assert abs((weights == 0).double().mean().item() - 0.4) < 0.05
    assert abs(weights.mean().item() - 1) < 0.1
    assert built.draw_masks(3, 2)[0].dtype == torch.float64
    assert fastcells.GRU(I, H).draw_masks(3, 2) == Masks()


def test_dropped_weights_run_by_any_implementation_and_the_others_by_torch() -> None:
    x = torch.randn(T, B, I)
    only_weights = fastcells.GRU(I, H, weight_dropout=0.5, impl="cpu")
    masks = only_weights.draw_masks(T, B)
    again = fastcells.GRU(I, H, impl="torch")
    again.load_state_dict(only_weights.state_dict())
    torch.testing.assert_close(only_weights(x, masks=masks)[0], again(x, masks=masks)[0])
    only_weights(x)[0].backward(torch.randn(T, B, H))
    assert only_weights.weight_hh_l0.grad.abs().sum() > 0
    for option in ("recurrent_dropout", "zoneout"):
        c = fastcells.GRU(I, H, impl="cpu", **{option: 0.5})
        with pytest.raises(fastcells.CannotRun, match=f"there is no kernel for {option}"):
            c(x)
        c.eval()(x)
        auto = fastcells.GRU(I, H, **{option: 0.5})
        assert fastcells.explain(auto, x).impl == "torch"
        assert option in fastcells.explain(auto, x).reason or "drop units" in fastcells.explain(auto, x).reason


def test_every_layout_and_other_options_beside_them() -> None:
    built = layer("LSTM", num_layers=2, bidirectional=True, batch_first=True, return_states=True)
    x = torch.randn(B, T, I, dtype=torch.float64)
    lengths = [5, 4, 2, 1]
    masks = built.draw_masks(T, B)
    out, (h, c), cells = built(x, lengths=lengths, masks=masks)
    packed = torch.nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True)
    p_out, (p_h, p_c), p_cells = built(packed, masks=masks)
    for a, e in ((p_out, out), (p_cells, cells)):
        torch.testing.assert_close(torch.nn.utils.rnn.pad_packed_sequence(a, batch_first=True)[0], e)
    torch.testing.assert_close((p_h, p_c), (h, c))
    ends = torch.stack([cells[row, n - 1, :H] for row, n in enumerate(lengths)])
    torch.testing.assert_close(ends, c[-2])
    ids = torch.randint(I, (B, T))
    one_hot = torch.nn.functional.one_hot(ids, I).double()
    torch.testing.assert_close(built(ids, masks=masks)[0], built(one_hot, masks=masks)[0])
    alone = built(x[0], masks=built.draw_masks(T, 1))[0]
    assert alone.shape == (T, 2 * H)
    compiled = torch.compile(built, backend="eager")
    torch.testing.assert_close(compiled(x, masks=masks)[0], built(x, masks=masks)[0])


@pytest.mark.parametrize("bad", [-0.1, 1.5, "a", True])
@pytest.mark.parametrize("name", [*RATES, "zoneout_cell"])
def test_what_is_no_probability_is_refused(name: str, bad: Any) -> None:
    with pytest.raises(ValueError, match=rf"{name} should be a number in range \[0, 1\].*got {bad!r}"):
        fastcells.LSTM(I, H, **{name: bad})


def test_masks_that_do_not_fit_are_named() -> None:
    built = layer("GRU", num_layers=2)
    x, masks = torch.randn(T, B, I, dtype=torch.float64), built.draw_masks(T, B)
    with pytest.raises(RuntimeError, match=r"masks.recurrent_dropout must be \[2, 3, 6\], got \[2, 4, 6\]"):
        built(x[:, :3], masks=masks)
    with pytest.raises(RuntimeError, match=r"masks.zoneout must be \[2, 3, 4, 6\], got \[2, 5, 4, 6\]"):
        built(x[:3], masks=masks)
    with pytest.raises(RuntimeError, match="this cell has no c"):
        built(x, masks=masks._replace(zoneout_cell=masks.zoneout))
    with pytest.raises(
        RuntimeError, match=r"weight_dropout must have the shapes \[\[18, 6\], \[18, 6\]\], got \[\[18, 6\]\]"
    ):
        built(x, masks=masks._replace(weight_dropout=masks.weight_dropout[:1]))


def test_they_are_attributes_that_travel_and_can_be_changed() -> None:
    built = layer("LSTM", num_layers=2)
    for twin in (copy.deepcopy(built), pickle.loads(pickle.dumps(built))):
        assert repr(twin) == repr(built)
        assert (twin.zoneout, twin.zoneout_cell, twin.recurrent_dropout, twin.weight_dropout) == (0.2, 0.5, 0.3, 0.4)
    assert repr(fastcells.GRU(3, 4, zoneout=0.1)) == "GRU(3, 4, zoneout=0.1)"
    assert built.state_dict().keys() == torch.nn.LSTM(I, H, 2).state_dict().keys()
    built.zoneout = built.zoneout_cell = built.recurrent_dropout = built.weight_dropout = 0.0
    x = torch.randn(T, B, I, dtype=torch.float64)
    assert torch.equal(built(x)[0], built.eval()(x)[0])
    with pytest.raises(ValueError, match=r"torch\.nn has no.*zoneout"):
        fastcells.to_torch(torch.nn.Sequential(layer("GRU")))
    with pytest.raises(ValueError, match=r"torch\.nn has no.*return_states"):
        fastcells.to_torch(fastcells.LSTM(3, 4, return_states=True))
    fastcells.to_torch(fastcells.GRU(3, 4))
