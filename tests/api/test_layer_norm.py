"""`LayerNormGRU` and `LayerNormLSTM` against the paper's equations, written once more."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor

import fastcells

T, B, I, H = 5, 3, 4, 6  # noqa: E741
EACH = pytest.mark.parametrize("name", ["LayerNormGRU", "LayerNormLSTM"])


def layer(name: str, **options: Any) -> Any:
    built = getattr(fastcells, name)(I, H, **{"dtype": torch.float64, **options})
    for parameter, p in built.named_parameters():
        if parameter.startswith("norm_"):  # or gains and biases would not be seen
            p.data.add_(torch.randn_like(p) / 4)
    return built


def ln(a: Tensor, gain: Tensor, bias: Tensor) -> Tensor:
    centred = a - a.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * gain + bias


def by_hand(built: Any, x: Tensor, suffix: str = "l0", reverse: bool = False) -> tuple[Tensor, list[Tensor]]:
    p = {name.removesuffix(f"_{suffix}"): v for name, v in built.named_parameters() if name.endswith(f"_{suffix}")}
    h = x.new_zeros(B, H)
    c = h
    outs: list[Tensor] = [h] * T
    for t in range(T - 1, -1, -1) if reverse else range(T):
        a, r = x[t] @ p["weight_ih"].t(), h @ p["weight_hh"].t()
        gains = [(p[f"norm_{which}_weight"], p[f"norm_{which}_bias"]) for which in ("ih", "hh")]
        if built.mode == "LSTM":
            i, f, g, o = (ln(a, *gains[0]) + ln(r, *gains[1])).chunk(4, 1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * ln(c, p["norm_c_weight"], p["norm_c_bias"]).tanh()
        else:
            n = slice(2 * H, None)
            rz = ln(a[:, : 2 * H], *(g[: 2 * H] for g in gains[0])) + ln(r[:, : 2 * H], *(g[: 2 * H] for g in gains[1]))
            reset, z = rz.sigmoid().chunk(2, 1)
            new = (ln(a[:, n], *(g[n] for g in gains[0])) + reset * ln(r[:, n], *(g[n] for g in gains[1]))).tanh()
            h = (1 - z) * new + z * h
        outs[t] = h
    return torch.stack(outs), [h, c] if built.mode == "LSTM" else [h]


@pytest.mark.parametrize("ids", [False, True], ids=("dense", "ids"))
@EACH
def test_the_equations_and_all_gradients(name: str, ids: bool) -> None:
    built = layer(name, bidirectional=True, num_layers=2)
    x = torch.randn(T, B, I, dtype=torch.float64, requires_grad=True)
    given: Any = x
    if ids:
        given = torch.randint(I, (T, B))
        x = torch.nn.functional.one_hot(given, I).double()
    out, last = built(given)
    layer_in, ends = x, []
    for i in (0, 1):
        both = [by_hand(built, layer_in, f"l{i}{'_reverse' * r}", bool(r)) for r in (0, 1)]
        layer_in = torch.cat([b[0] for b in both], -1)
        ends += [b[1] for b in both]
    states = [torch.stack(s) for s in zip(*ends, strict=True)]
    ours = [out, *(last if isinstance(last, tuple) else (last,))]
    d = [torch.randn_like(o) for o in ours]
    leaves = [*([] if ids else [x]), *built.parameters()]
    for a, e in zip(ours, [layer_in, *states], strict=True):
        torch.testing.assert_close(a, e)
    pairs = (torch.autograd.grad(outs, leaves, d) for outs in (ours, [layer_in, *states]))
    for a, e in zip(*pairs, strict=True):
        torch.testing.assert_close(a, e)


@EACH
def test_derivatives_by_finite_differences(name: str) -> None:
    built = layer(name)
    x = torch.randn(3, 2, I, dtype=torch.float64, requires_grad=True)
    weights = list(built.parameters())
    assert torch.autograd.gradcheck(lambda x, *_: built(x)[0], (x, *weights))
    assert torch.autograd.gradgradcheck(lambda x, *_: built(x)[0], (x, built.weight_hh_l0, built.norm_hh_weight_l0))


@EACH
def test_options_of_the_other_layers(name: str) -> None:
    built = layer(name, num_layers=2, zoneout=0.3, recurrent_dropout=0.3)
    x = torch.randn(T, B, I, dtype=torch.float64)
    masks = built.draw_masks(T, B)
    out = built(x, lengths=[5, 3, 1], masks=masks)[0]
    assert (out[3:, 1] == 0).all() and (out[1:, 2] == 0).all()
    packed = torch.nn.utils.rnn.pack_padded_sequence(x, [5, 3, 1])
    torch.testing.assert_close(torch.nn.utils.rnn.pad_packed_sequence(built(packed, masks=masks)[0])[0], out)
    built.eval()
    expected, _ = built(x)
    resets = torch.zeros(T, B, dtype=torch.bool)
    resets[2] = True
    torch.testing.assert_close(built(x, resets=resets)[0][:2], expected[:2])
    torch.testing.assert_close(built(x[2:])[0][0], built(x, resets=resets)[0][2])
    hx = None
    for t in range(T):
        step, hx = built.step(x[t], hx)
        torch.testing.assert_close(step, expected[t])


@EACH
def test_parameters_travel_and_reset(name: str) -> None:
    built = layer(name, num_layers=2, bidirectional=True)
    norms = 6 if "LSTM" in name else 4
    assert len(built.state_dict()) == 4 * (2 + norms)
    assert repr(built) == f"{name}(4, 6, num_layers=2, bias=False, bidirectional=True)"
    x = torch.randn(T, B, I, dtype=torch.float64)
    for twin in (copy.deepcopy(built), pickle.loads(pickle.dumps(built))):
        assert torch.equal(twin(x)[0], built(x)[0])
    other = layer(name, num_layers=2, bidirectional=True)
    other.load_state_dict(built.state_dict())
    assert torch.equal(other(x)[0], built(x)[0])
    assert built.float()(x.float())[0].dtype == torch.float32
    built.reset_parameters()
    assert all((p == float("weight" in n)).all() for n, p in built.named_parameters() if n.startswith("norm_"))
    torch._dynamo.reset()
    compiled = torch.compile(other, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x)[0], other(x)[0])


@EACH
def test_kernels_decline_and_auto_runs_torch(name: str) -> None:
    x = torch.randn(T, B, I)
    with pytest.raises(fastcells.CannotRun, match="there is no kernel for layer_norm"):
        layer(name, dtype=torch.float32, impl="cpu")(x)
    assert fastcells.explain(layer(name, dtype=torch.float32), x).impl == "torch"
