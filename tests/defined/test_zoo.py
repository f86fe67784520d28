"""The cells of `fastcells.zoo`: derivatives of both orders, sLSTM against its equations written plainly, their size."""

from __future__ import annotations

import ast
import inspect
import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fastcells import zoo
from fastcells.charlm import CharLM, Choosing, Config, Vocabulary, generate, generate_batch
from fastcells.defined.layer import DefinedLayer

EACH_CELL = pytest.mark.parametrize("name", sorted(set(zoo.CELLS) - {"UpdateGateRNN"}))


def layer_of(name: str, inputs: int, hidden: int, **options: int) -> DefinedLayer:
    """With weights as large as those of a trained layer."""
    made: DefinedLayer = getattr(zoo, name)(inputs, hidden, dtype=torch.float64, **options)
    for p in made.parameters():
        torch.nn.init.normal_(p, std=0.7)
    return made


def function_of(layer: DefinedLayer) -> tuple[Callable[..., tuple[Tensor, ...]], list[Tensor]]:
    """The layer as a function of its input, the initial states and its parameters."""
    names = [name for name, _ in layer.named_parameters()]
    count = layer._spec().num_states
    states = [torch.randn(1, 2, layer.hidden_size, dtype=torch.float64) for _ in range(count)]
    if "n" in layer._spec().states:
        states[layer._spec().states.index("n")].abs_().add_(0.5)  # a normaliser is positive
    given = [torch.randn(3, 2, layer.input_size, dtype=torch.float64), *states, *layer.parameters()]

    def run(x: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        hx = rest[:count] if count > 1 else rest[0]
        parameters = dict(zip(names, rest[count:], strict=True))
        out, last = torch.func.functional_call(layer, parameters, (x, hx))
        return (out, *last) if count > 1 else (out, last)

    return run, [t.detach().requires_grad_() for t in given]


@EACH_CELL
def test_gradients(name: str) -> None:
    torch.manual_seed(3)
    run, given = function_of(layer_of(name, 2, 3))
    assert torch.autograd.gradcheck(run, given)


@EACH_CELL
def test_second_derivatives(name: str) -> None:
    torch.manual_seed(3)
    run, given = function_of(layer_of(name, 2, 2))
    assert torch.autograd.gradgradcheck(run, given)


@EACH_CELL
def test_gradients_that_are_differentiated_again_are_the_same(name: str) -> None:
    torch.manual_seed(3)
    run, given = function_of(layer_of(name, 2, 3))
    outputs = run(*given)
    d = [torch.randn_like(t) for t in outputs]
    plain = torch.autograd.grad(outputs, given, d)
    again = torch.autograd.grad(run(*given), given, d, create_graph=True)
    torch.testing.assert_close(again, plain)


@EACH_CELL
def test_regularised(name: str) -> None:
    layer = getattr(zoo, name)(3, 4, zoneout=0.3, recurrent_dropout=0.3, weight_dropout=0.3)
    out, _ = layer(torch.randn(5, 2, 3))
    assert all(torch.isfinite(g).all() for g in torch.autograd.grad(out.sum(), list(layer.parameters())))


@pytest.mark.parametrize("heads", [1, 2])
def test_slstm_is_its_equations(heads: int) -> None:
    """Beck et al. 2024, equations 8 to 14, without the stabiliser, which changes c and n but not h."""
    torch.manual_seed(0)
    layer = layer_of("SLSTM", 3, 4, num_heads=heads)
    x = torch.randn(7, 2, 3, dtype=torch.float64)
    D = 4 // heads
    h = c = n = torch.zeros(2, 4, dtype=torch.float64)
    for t, x_t in enumerate(x):
        products = torch.zeros(2, 4, 4, dtype=torch.float64)  # [B, gates, H]
        for k, w in enumerate(layer.weight_hh_l0):
            products[:, :, k * D : (k + 1) * D] = (h[:, k * D : (k + 1) * D] @ w.t()).view(2, 4, D)
        gates = x_t @ layer.weight_ih_l0.t() + layer.bias_ih_l0 + layer.bias_hh_l0
        i, f, z, o = (gates.view(2, 4, 4) + products).unbind(1)
        i, f, z, o = torch.exp(i), torch.sigmoid(f), torch.tanh(z), torch.sigmoid(o)
        c = f * c + i * z
        n = f * n + i
        h = o * c / n
        torch.testing.assert_close(layer(x)[0][t], h)
    _, (_, c_n, n_n, m_n) = layer(x)
    torch.testing.assert_close(c_n[0] * torch.exp(m_n[0]), c)
    torch.testing.assert_close(n_n[0] * torch.exp(m_n[0]), n)


def test_slstm_survives_large_gates() -> None:
    layer = zoo.SLSTM(2, 4)
    for scales in itertools.product((300.0, 0.0, -300.0), repeat=2):
        for gate, scale in enumerate(scales):  # i and f
            torch.nn.init.constant_(layer.bias_ih_l0[4 * gate : 4 * gate + 4], scale)
        out, last = layer(torch.randn(5, 3, 2))
        grads = torch.autograd.grad((out, *last), list(layer.parameters()), [torch.ones_like(t) for t in (out, *last)])
        assert all(torch.isfinite(t).all() for t in (out, *last, *grads))


def test_slstm_past_a_length() -> None:
    """A row that has not begun has n = 0, and h = c / n is no gradient's business there."""
    layer = zoo.SLSTM(2, 4)
    out, last = layer(torch.randn(5, 3, 2), lengths=[0, 3, 5])
    d = [torch.ones_like(t) for t in (out, *last)]
    assert all(torch.isfinite(g).all() for g in torch.autograd.grad((out, *last), list(layer.parameters()), d))


def test_indrnn_has_no_product() -> None:
    layer = zoo.IndRNN(3, 5)
    assert layer.weight_hh_l0.shape == (5,)
    assert float(layer.weight_hh_l0.detach().min()) >= 0 and float(layer.weight_hh_l0.detach().max()) <= 1


def test_definitions_are_short() -> None:
    """At most 20 lines each, with the function of the step."""
    tree = ast.parse(inspect.getsource(zoo))
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    lengths = {}
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
            step = next(k.value for k in node.value.keywords if k.arg == "step")
            parts = [node, *([functions[step.id]] if isinstance(step, ast.Name) else [])]
            lengths[node.targets[0].id] = sum((p.end_lineno or 0) - p.lineno + 1 for p in parts)  # type: ignore[attr-defined]
    assert set(lengths) == set(zoo.CELLS) - {"UpdateGateRNN"}
    assert max(lengths.values()) <= 20


def test_generates_with_all_states() -> None:
    text = "what a cell reads it carries in its states "
    vocabulary = Vocabulary(text)
    model = CharLM(len(vocabulary), Config(cell="SLSTM", hidden=16))
    prefixes = ["what a", "reads it carries", "in"]
    each = [generate(model, vocabulary, prefix, 12) for prefix in prefixes]
    assert generate_batch(model, vocabulary, prefixes, 12, Choosing()) == each


@pytest.mark.parametrize("name", zoo.CELLS)
def test_trains_as_a_language_model(name: str) -> None:
    torch.manual_seed(0)
    model = CharLM(9, Config(cell=name, hidden=16))
    ids = torch.arange(40).view(2, 20) % 9
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    losses = []
    for _ in range(40):
        logits, _ = model(ids[:, :-1])
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.2 * losses[0]
