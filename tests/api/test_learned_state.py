"""`learned_state=True`: the state that a call without hx starts from is a Parameter; off, nothing is different."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.nn.utils.rnn import PackedSequence, pack_sequence

import fastcells
from tests.support.accuracy import assert_equal_to_rounding
from tests.support.layer_cases import EACH, KINDS, B, H, I, T, assert_identical

STACKS = ({}, {"num_layers": 2, "bidirectional": True}, {"batch_first": True, "bias": False})
STACK = pytest.mark.parametrize("stack", STACKS, ids=["one", "deep", "batch-first"])


def learned(kind: str, **options: Any) -> Any:
    """A layer whose initial state is no longer zeros."""
    _, cls, own = KINDS[kind]
    layer = cls(I, H, **own, **options, learned_state=True)
    for name in ("h_0", "c_0"):
        if hasattr(layer, name):
            nn.init.normal_(getattr(layer, name))
    return layer


def state_of(layer: Any, batch: int) -> Any:
    """As hx, by the same Parameters."""
    state = [p.unsqueeze(1).repeat(1, batch, 1) for name, p in layer.named_parameters() if name in ("h_0", "c_0")]
    return tuple(state) if len(state) == 2 else state[0]


@EACH
@STACK
def test_off_changes_nothing_and_on_starts_from_zeros(kind: str, stack: dict[str, Any]) -> None:
    theirs, cls, own = KINDS[kind]
    made = []
    for make in (lambda: theirs(I, H, **own, **stack), lambda: cls(I, H, **own, **stack, learned_state=True)):
        torch.manual_seed(0)
        made.append(make())
    off, on = made
    states = ["h_0", "c_0"] if "LSTM" in kind else ["h_0"]
    assert list(on.state_dict()) == [*off.state_dict(), *states]
    assert list(cls(I, H, **own, **stack).state_dict()) == list(off.state_dict())
    assert all(torch.equal(on.state_dict()[name], value) for name, value in off.state_dict().items())
    rows = on.num_layers * (1 + on.bidirectional)
    assert on.h_0.shape == (rows, on.proj_size or H)
    assert ("LSTM" in kind) == hasattr(on, "c_0") and getattr(on, "c_0", torch.empty(rows, H)).shape == (rows, H)
    x = torch.randn(T, B, I)
    assert_equal_to_rounding([on(x)[0]], [off(x)[0]])


def inputs(layer: Any) -> dict[str, Any]:
    ids = torch.randint(I, (B, T) if layer.batch_first else (T, B))
    return {
        "dense": torch.randn(*ids.shape, I),
        "ids": ids,
        "unbatched": torch.randn(T, I),
        "packed": pack_sequence([torch.randn(n, I) for n in (2, 4, 1)], enforce_sorted=False),
    }


@EACH
@STACK
@pytest.mark.parametrize("given", ["dense", "ids", "unbatched", "packed"])
def test_as_if_it_were_given(kind: str, stack: dict[str, Any], given: str) -> None:
    layer = learned(kind, **stack)
    x = inputs(layer)[given]
    batch = 3 if given == "packed" else 1 if given == "unbatched" else B
    hx = state_of(layer, batch)
    if given == "unbatched":
        hx = tuple(s[:, 0] for s in hx) if isinstance(hx, tuple) else hx[:, 0]
    grads, outs = [], []
    for each in ((x,), (x, hx)):
        layer.zero_grad()
        out, last = layer(*each)
        data = out.data if isinstance(out, PackedSequence) else out
        flat = [data, *(last if isinstance(last, tuple) else (last,))]
        generator = torch.Generator().manual_seed(1)
        torch.autograd.backward(flat, [torch.randn(t.shape, generator=generator) for t in flat])
        outs.append(flat)
        grads.append([p.grad.clone() for p in layer.parameters()])
    assert_identical(*outs)
    assert_equal_to_rounding(*grads)
    assert all(layer.get_parameter(name).grad.abs().sum() > 0 for name in ("h_0", "c_0") if hasattr(layer, name))


@pytest.mark.parametrize("stack", STACKS[:2], ids=["one", "deep"])
def test_episodes_begin_from_it_too(stack: dict[str, Any]) -> None:
    layer, x, resets = learned("LSTM", **stack), torch.randn(T, B, I), torch.rand(T, B) < 0.3
    start = (layer.h_0, layer.c_0)
    assert resets[1:].any()
    expected = layer(x, state_of(layer, B), resets=resets, reset_state=start)
    assert_identical(layer(x, resets=resets), expected)
    zeros = tuple(torch.zeros_like(s) for s in start)
    from_zeros = layer(x, resets=resets, reset_state=zeros)[0]
    assert not torch.equal(from_zeros, expected[0]), "a given one goes before"


def test_a_step() -> None:
    layer, x = learned("LSTM", num_layers=2), torch.randn(T, 1, I)
    for no_grad in (True, False):
        with torch.set_grad_enabled(not no_grad):
            assert_equal_to_rounding([layer.step(x[0])[0]], [layer(x)[0][0]])


@pytest.mark.parametrize("cls", [fastcells.LayerNormGRU, fastcells.LayerNormLSTM])
def test_layer_norm(cls: Any) -> None:
    layer = cls(I, H, 2, learned_state=True)
    nn.init.normal_(layer.h_0)
    x = torch.randn(T, B, I)
    assert_identical(layer(x), layer(x, state_of(layer, B)))


def test_gradcheck() -> None:
    layer = learned("LSTM", dtype=torch.float64)
    x = torch.randn(3, 2, I, dtype=torch.float64)

    def f(h: Tensor, c: Tensor) -> Tensor:
        return torch.func.functional_call(layer, {"h_0": h, "c_0": c}, (x,))[0]

    assert torch.autograd.gradcheck(f, (layer.h_0, layer.c_0))
    assert torch.autograd.gradgradcheck(f, (layer.h_0, layer.c_0))


def test_a_given_state_goes_before() -> None:
    layer = learned("GRU")
    x, hx = torch.randn(T, B, I), torch.zeros(1, B, H)
    assert torch.equal(layer(x, hx)[0], fastcells.to_torch(without(layer))(x, hx)[0])
    layer(x, hx)[0].sum().backward()
    assert layer.h_0.grad is None


def without(layer: Any) -> Any:
    """The same layer, but what it starts from."""
    plain = fastcells.GRU(I, H)
    plain.load_state_dict({name: p for name, p in layer.state_dict().items() if name != "h_0"})
    return plain


@EACH
def test_copies_files_and_text(kind: str) -> None:
    layer, x = learned(kind, num_layers=2), torch.randn(T, B, I)
    buffer = io.BytesIO()
    torch.save(layer, buffer)
    buffer.seek(0)
    fresh = type(layer)(I, H, 2, **KINDS[kind][2], learned_state=True)
    fresh.load_state_dict(layer.state_dict())
    copies = [copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), torch.load(buffer, weights_only=False), fresh]
    for each in copies:
        assert_identical(each(x), layer(x))
        assert each.learned_state and "learned_state=True" in repr(each)
    assert "learned_state" not in repr(type(layer)(I, H))
    assert fastcells.convert(layer) is layer and layer.learned_state


def test_reset_parameters() -> None:
    layer = learned("LSTM")
    before = layer.weight_hh_l0.detach().clone()
    layer.reset_parameters()
    assert not layer.h_0.any() and not layer.c_0.any() and not torch.equal(layer.weight_hh_l0, before)


def test_to_torch_refuses() -> None:
    model = nn.Sequential(fastcells.GRU(I, H), learned("LSTM"))
    with pytest.raises(ValueError, match=r"'1' is LSTM\(.*learned_state=True\): torch\.nn has no learned_state"):
        fastcells.to_torch(model)
    assert isinstance(model[0], fastcells.GRU)
    twin = fastcells.to_torch(nn.Sequential(fastcells.GRU(I, H)))[0]
    assert type(twin) is nn.GRU and not hasattr(twin, "learned_state")


def test_compiled_traced_and_under_func() -> None:
    layer, x, y = learned("GRU", num_layers=2), torch.randn(T, B, I), torch.randn(T + 2, B + 1, I)
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    assert_equal_to_rounding([compiled(x)[0], compiled(y)[0]], [layer(x)[0], layer(y)[0]])
    traced = torch.jit.trace(layer, (x,), check_trace=False)
    assert_equal_to_rounding([traced(y)[0]], [layer(y)[0]])
    params = dict(layer.named_parameters())

    def loss(p: dict[str, Tensor], one: Tensor) -> Tensor:
        return torch.func.functional_call(layer, p, (one,))[0].square().sum()

    each = torch.func.vmap(torch.func.grad(loss), (None, 1))(params, x)
    loss(params, x).backward()
    assert_equal_to_rounding([each["h_0"].sum(0)], [layer.h_0.grad])


@pytest.mark.parametrize("reset_after", [True, False])
def test_under_autocast(reset_after: bool) -> None:
    """As the zeros that it stands for, it has the input's dtype."""
    layer = fastcells.GRU(I, H, reset_after=reset_after, learned_state=True)
    nn.init.normal_(layer.h_0)
    x = torch.randn(T, B, I).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        assert_identical(layer(x), layer(x, state_of(layer, B).bfloat16()))


def test_parametrized() -> None:
    layer = learned("GRU", num_layers=3)
    parametrizations.orthogonal(layer, "h_0")
    x = torch.randn(T, B, I)
    hx = layer.h_0.unsqueeze(1).repeat(1, B, 1)
    assert_equal_to_rounding([layer(x)[0]], [layer(x, hx)[0]])


@pytest.mark.parametrize("impl", ["torch", "cpu", "triton"])
def test_each_implementation(impl: str) -> None:
    layer = learned("GRU", bidirectional=True)
    x = torch.randn(T, B, I)
    expected = layer(x)[0]
    layer.impl = impl
    try:
        got = layer(x)[0]
    except fastcells.CannotRun as error:
        pytest.skip(str(error))
    assert_equal_to_rounding([got], [expected])
    got.backward(torch.randn_like(got))
    assert layer.h_0.grad.abs().sum() > 0
