"""README, "Where code asks for nn.LSTM": the recipes for tools that look for torch.nn's classes."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

import fastcells
from tests.support.accuracy import assert_equal_to_rounding

I, H, T, B = 5, 7, 40, 3  # noqa: E741
KINDS = ("RNN", "GRU", "LSTM")
EACH = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """torch.jit and torch.ao.quantization are deprecated, and warn."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


class Tagger(nn.Module):
    """A model as people write it."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer, self.scores = layer, nn.Linear(H, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.scores(self.layer(x)[0])


def ours(kind: str) -> Tagger:
    return Tagger(getattr(fastcells, kind)(I, H))


@EACH
def test_instances(kind: str) -> None:
    """Dynamo refuses every instance of torch's classes, so that ours cannot be any; their base class they share."""
    layer, cell = getattr(fastcells, kind)(I, H), getattr(fastcells, f"{kind}Cell")(I, H)
    assert not isinstance(layer, (nn.RNN, nn.GRU, nn.LSTM)) and isinstance(layer, nn.RNNBase)
    assert not isinstance(cell, (nn.RNNCell, nn.GRUCell, nn.LSTMCell)) and isinstance(cell, nn.RNNCellBase)


def initialise(model: nn.Module, *classes: type[nn.Module]) -> None:
    """The loop that many models have."""
    for module in model.modules():
        if isinstance(module, classes):
            for name, p in module.named_parameters():
                if "weight_hh" in name:
                    nn.init.orthogonal_(p)
                elif "bias" in name:
                    nn.init.constant_(p, 0.5)


@EACH
def test_initialisation_that_asks_for_the_base(kind: str) -> None:
    model = ours(kind)
    initialise(model, nn.RNNBase)
    assert (model.layer.bias_ih_l0 == 0.5).all()


@EACH
def test_initialisation_with_torch_then_convert(kind: str) -> None:
    """The loop asks for nn.LSTM: it runs before `convert`, which keeps its values and the Parameters themselves."""
    model = Tagger(getattr(nn, kind)(I, H))
    initialise(model, nn.RNN, nn.GRU, nn.LSTM)
    before = {name: (p, p.detach().clone()) for name, p in model.named_parameters()}
    fastcells.convert(model)
    assert isinstance(model.layer, getattr(fastcells, kind)) and (model.layer.bias_ih_l0 == 0.5).all()
    after = dict(model.named_parameters())
    assert list(after) == list(before)
    assert all(after[name] is p and torch.equal(p, value) for name, (p, value) in before.items())


@EACH
def test_script(kind: str) -> None:
    model, x = ours(kind), torch.randn(T, B, I)
    scripted = torch.jit.script(fastcells.to_torch(copy.deepcopy(model)))
    assert_equal_to_rounding([scripted(x)], [model(x)])
    assert isinstance(model.layer, getattr(fastcells, kind)), "the user's own model is as it was"


@pytest.mark.parametrize("kind", ["GRU", "LSTM"])
def test_quantize_dynamic(kind: str) -> None:
    model, x = ours(kind), torch.randn(T, B, I)
    try:
        quantized = torch.ao.quantization.quantize_dynamic(fastcells.to_torch(copy.deepcopy(model)))
    except (AttributeError, RuntimeError) as error:  # a torch without it, or a build without a quantized engine
        pytest.skip(f"quantize_dynamic: {error}")
    assert "quantized" in type(quantized.layer).__module__
    coarse, exact = quantized(x), model(x)
    assert (coarse - exact).square().mean() < 0.01 * exact.square().mean(), "8 bits: errors of a few per cent"


@EACH
def test_flops_are_counted(kind: str) -> None:
    """A counter sees the recurrence of GRU and RNN as torch's operators; an LSTM's is one of oneDNN's."""
    x, counts = torch.randn(T, B, I), []
    for model in (ours(kind).double(), fastcells.to_torch(ours(kind).double())):
        with FlopCounterMode(display=False) as counter:
            model(x.double())
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0


@EACH
def test_export(kind: str) -> None:
    model, x = ours(kind), torch.randn(3, B, I)
    for each in (model, fastcells.to_torch(copy.deepcopy(model))):
        with torch.no_grad():
            assert_equal_to_rounding(tree_leaves(torch.export.export(each, (x,)).module()(x)), [model(x)])


@EACH
def test_validator_by_class(kind: str) -> None:
    """A tool with a table of classes, as those for differential privacy have: `to_torch` gives it what it knows."""
    known = {nn.Linear, nn.RNN, nn.GRU, nn.LSTM}

    def unknown(model: nn.Module) -> list[str]:
        return [name for name, m in model.named_modules() if list(m.parameters(recurse=False)) and type(m) not in known]

    model = ours(kind)
    assert unknown(model) == ["layer"] and unknown(fastcells.to_torch(model)) == []
