"""Tensors without memory, and modes that record or replace operators: C neither crashes on them nor hides from them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional as F
from torch.testing._internal.two_tensor import TwoTensor
from torch.utils.flop_counter import FlopCounterMode

import fastcells
from fastcells.backends.cpu import native, products
from tests.support.accuracy import assert_equal_to_rounding

pytestmark = pytest.mark.skipif(native.obstacle() is not None, reason=str(native.obstacle()))
LAYERS = pytest.mark.parametrize("layer", [fastcells.RNN, fastcells.GRU, fastcells.LSTM])
IN_C = pytest.mark.parametrize("impl", ["auto", "cpu"])


STRIDED = {
    "every second": lambda t: torch.stack([t, t], -1)[..., 0],
    "expanded": lambda t: t[:1].expand_as(t),
    "turned": lambda t: t.movedim(0, -1).contiguous().movedim(-1, 0),
    "negative": lambda t: torch._neg_view(-t),
    "from another address": lambda t: torch.cat([t.flatten()[:1], t.flatten()])[1:].view_as(t),
    "without memory": lambda t: torch._efficientzerotensor(t.shape),
    "the second without memory": lambda t: torch._efficientzerotensor((2, *t.shape))[1],
}


@pytest.mark.parametrize("strides", STRIDED)
@pytest.mark.parametrize("name", ["a", "w", "b"])
def test_products_of_tensors_that_lie_elsewhere(name: str, strides: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "LARGE_PRODUCT", 1)
    monkeypatch.setattr(products, "MANY_ROWS", 1)
    factors = {"a": torch.randn(40, 24), "w": torch.randn(17, 24), "b": torch.randn(17)}
    factors[name] = STRIDED[strides](factors[name])
    exact = F.linear(*(t.clone().double() for t in factors.values()))
    assert_equal_to_rounding([products.matmul(**factors)], [exact.float()])
    factors["w"] = STRIDED[strides](factors["w"].t().contiguous()).t()  # as for the gradient of the input
    exact = F.linear(*(t.clone().double() for t in factors.values()))
    assert_equal_to_rounding([products.matmul(**factors)], [exact.float()])


@LAYERS
@IN_C
def test_fake_tensors(layer: Any, impl: str) -> None:
    with FakeTensorMode():
        module = layer(4, 16, 2, impl=impl)
        out, _ = module(torch.randn(5, 3, 4))
        assert out.shape == (5, 3, 16)
        out.backward(torch.randn_like(out))
        assert module.weight_hh_l0.grad.shape == module.weight_hh_l0.shape


@LAYERS
@IN_C
@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
def test_a_traced_graph_computes_the_layer(layer: Any, impl: str, mode: str) -> None:
    """And not what happened to be in memory when it was traced."""
    module = layer(4, 16, impl=impl).requires_grad_(False)
    graph = make_fx(lambda x: module(x)[0], tracing_mode=mode, _allow_non_fake_inputs=True)(torch.randn(5, 3, 4))
    x = torch.randn(5, 3, 4)
    torch.testing.assert_close(graph(x), module(x)[0])


@LAYERS
def test_the_flop_counter_sees_what_auto_computes(layer: Any) -> None:
    def flops(module: torch.nn.Module) -> int:
        x = torch.randint(4, (5, 3))
        with FlopCounterMode(display=False) as counter:
            module(x)
        return int(counter.get_total_flops())

    assert flops(layer(4, 16)) == flops(layer(4, 16, impl="torch")) > 0


def with_weights(module: Any, change: Any) -> Any:
    for name, p in list(module.named_parameters()):
        setattr(module, name, torch.nn.Parameter(change(p.detach())))
    return module


@LAYERS
def test_weights_that_wrap_others(layer: Any) -> None:
    module, x = layer(4, 16), torch.randn(5, 3, 4)
    expected = module(x)[0]
    found = with_weights(module, lambda p: TwoTensor(p, p.clone()))(x)[0]
    torch.testing.assert_close(found.a, expected)
    module.impl = "cpu"
    with pytest.raises(RuntimeError, match="TwoTensor, has no memory"):
        module(x)


@LAYERS
def test_weights_whose_storage_was_freed(layer: Any) -> None:
    module = layer(4, 16, impl="cpu")
    module.weight_hh_l0.untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match="has no memory"):
        module(torch.randn(5, 3, 4))


@LAYERS
@pytest.mark.parametrize("T", [1, 5])
@pytest.mark.parametrize("grad", [True, False])
def test_weights_that_were_views_of_a_freed_storage(layer: Any, T: int, grad: bool) -> None:
    """As FSDP frees its flat parameter: the views' addresses are then what lay before them."""
    module, flat = layer(4, 16, impl="cpu"), torch.randn(5000)
    with_weights(module, lambda p: flat[100 : 100 + p.numel()].view_as(p))
    flat.untyped_storage().resize_(0)
    with torch.set_grad_enabled(grad), pytest.raises(RuntimeError, match=r"has no memory|storage of size 0"):
        module(torch.randn(T, 3, 4))


@LAYERS
def test_states_of_zeros_without_memory(layer: Any) -> None:
    module, x = layer(4, 16, 2, bidirectional=True, impl="cpu"), torch.randn(5, 3, 4)
    zeros = torch._efficientzerotensor((4, 3, 16))
    with torch.no_grad():
        assert torch.equal(module(x, (zeros, zeros) if layer is fastcells.LSTM else zeros)[0], module(x)[0])


@LAYERS
def test_a_gradient_of_zeros_without_memory(layer: Any) -> None:
    x = torch.randn(5, 3, 4, requires_grad=True)
    out, _ = layer(4, 16, impl="cpu")(x)
    out.backward(torch._efficientzerotensor(out.shape))
    assert x.grad is not None and not x.grad.any()


def test_lengths_of_zero_without_memory_are_lengths() -> None:
    x, h0, w = torch.randn(3, 2, 8), torch.randn(2, 8), torch.randn(8, 8)
    lengths: Tensor = torch._efficientzerotensor((2,), dtype=torch.int64)
    assert torch.equal(native.forward("rnn_tanh", x, (h0,), w, None, lengths).last[0], h0)
