"""What looks through a module: torch.compile, torch.export, jit.trace, jit.script, vmap, jacobians, dispatch modes.

Each over layers, cells and input kinds, at a length where C would run and, where that is cheap, at a short one. A
tracer's result is compared with the module called as it is, a transform's with a loop over plain calls.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jacfwd, jacrev, jvp, stack_module_state, vmap
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils._pytree import tree_leaves

import fastcells
from fastcells import reference
from tests.support.accuracy import assert_equal_to_rounding, cotangents

pytestmark = pytest.mark.slow

TORCH = tuple(int(n) for n in torch.__version__.split(".")[:2])
B, I, H, LONG, SHORT = 3, 5, 6, 40, 3  # noqa: E741
LAYERS: dict[str, Callable[..., fastcells.layers.Layer]] = {
    "RNN": lambda **kw: fastcells.RNN(I, H, **kw),
    "RNN-relu": lambda **kw: fastcells.RNN(I, H, nonlinearity="relu", **kw),
    "GRU": lambda **kw: fastcells.GRU(I, H, **kw),
    "GRU-before": lambda **kw: fastcells.GRU(I, H, reset_after=False, **kw),
    "LSTM": lambda **kw: fastcells.LSTM(I, H, **kw),
    "LSTM-proj": lambda **kw: fastcells.LSTM(I, H, proj_size=2, **kw),
    "GRU-deep": lambda **kw: fastcells.GRU(I, H, 2, bidirectional=True, **kw),
}
CELLS: dict[str, Callable[..., Any]] = {
    "RNNCell": lambda **kw: fastcells.RNNCell(I, H, **kw),
    "GRUCell": lambda **kw: fastcells.GRUCell(I, H, **kw),
    "GRUCell-before": lambda **kw: fastcells.GRUCell(I, H, reset_after=False, **kw),
    "LSTMCell": lambda **kw: fastcells.LSTMCell(I, H, **kw),
}
EACH_LAYER = pytest.mark.parametrize("name", LAYERS)
EACH_CELL = pytest.mark.parametrize("name", CELLS)
EACH_INPUT = pytest.mark.parametrize("kind", ["dense", "ids"])
GRAD = pytest.mark.parametrize("training", [True, False], ids=["grad", "no_grad"])


@pytest.fixture(autouse=True)
def quiet() -> Any:
    """torch.jit is deprecated, and warns; people's exported models are not rewritten because of that."""
    torch._dynamo.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def some(kind: str, *sizes: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randint(I, sizes) if kind == "ids" else torch.randn(*sizes, I, dtype=dtype)


def same_results(module: nn.Module, actual: Callable[..., Any], training: bool, *args: Any) -> None:
    """Outputs, and gradients of the parameters, of `actual` and of the module itself."""
    results = []
    with torch.set_grad_enabled(training):
        for run in (module, actual):
            torch.manual_seed(1)
            outs = tree_leaves(run(*args))
            given = torch.autograd.grad(outs, list(module.parameters()), cotangents(outs)) if training else ()
            results.append([*outs, *given])
    assert_equal_to_rounding(results[1], results[0])


F32, F64 = torch.float32, torch.float64  # C runs the first, ATen or plain steps the other


@GRAD
@EACH_INPUT
@pytest.mark.parametrize(("name", "dtype"), [*((n, F32) for n in LAYERS), ("GRU", F64), ("LSTM", F64)], ids=str)
def test_compiled_layer(name: str, kind: str, dtype: torch.dtype, training: bool) -> None:
    layer = LAYERS[name](dtype=dtype)
    steps = LONG if dtype == torch.float32 and "deep" not in name and "proj" not in name else SHORT
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    same_results(layer, compiled, training, some(kind, steps, B, dtype=dtype))


@GRAD
@EACH_INPUT
@EACH_CELL
def test_compiled_cell(name: str, kind: str, training: bool) -> None:
    cell = CELLS[name]()
    same_results(cell, torch.compile(cell, fullgraph=True, backend="aot_eager"), training, some(kind, B))


@pytest.mark.parametrize("name", ["GRU", "LSTM"])
def test_compiled_by_inductor(name: str) -> None:
    layer = LAYERS[name]()
    same_results(layer, torch.compile(layer, fullgraph=True), True, some("dense", LONG, B))


class OnPacked(nn.Module):
    """A layer in a model that packs its input."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Any]:
        out, state = self.layer(pack_padded_sequence(x, lengths))
        return pad_packed_sequence(out)[0], state


LENGTHS = torch.tensor([LONG, 7, 2])


@EACH_INPUT
@pytest.mark.parametrize("name", ["RNN", "GRU", "GRU-before", "LSTM"])
@pytest.mark.skipif(TORCH < (2, 12), reason="torch.compile cannot trace torch's own pad_packed_sequence there")
def test_compiled_packed(name: str, kind: str) -> None:
    """With a break in the graph, as torch.nn's: torch's own packing cannot be part of one."""
    model = OnPacked(LAYERS[name]())
    same_results(model, torch.compile(model, backend="aot_eager"), True, some(kind, LONG, B), LENGTHS)


@EACH_INPUT
@EACH_LAYER
def test_exported_layer(name: str, kind: str) -> None:
    layer, x = LAYERS[name](), some(kind, SHORT, B)
    with torch.no_grad():
        assert_equal_to_rounding(tree_leaves(torch.export.export(layer, (x,)).module()(x)), tree_leaves(layer(x)))


@EACH_INPUT
@pytest.mark.parametrize("name", ["RNN", "GRU", "GRU-before", "LSTM"])
def test_exported_for_any_batch(name: str, kind: str) -> None:
    """A dynamic T is refused by torch.export, for torch.nn's layers as for ours."""
    layer = LAYERS[name]()
    size = torch.export.Dim("B", min=2, max=64)
    module = torch.export.export(layer, (some(kind, SHORT, B),), dynamic_shapes=({1: size},)).module()
    x = some(kind, SHORT, B + 4)
    with torch.no_grad():
        assert_equal_to_rounding(tree_leaves(module(x)), tree_leaves(layer(x)))
    steps = torch.export.Dim("T", min=2, max=64)
    for each, example in ((layer, some(kind, SHORT, B)), (nn.GRU(I, H), some("dense", SHORT, B))):
        with pytest.raises(Exception, match="Constraints violated"):
            torch.export.export(each, (example,), dynamic_shapes=({0: steps},))


@EACH_INPUT
@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@EACH_LAYER
def test_traced_layer_takes_any_length_and_batch(name: str, packed: bool, kind: str) -> None:
    """It once gave 20 steps for an input of 40, having been shown 20."""
    layer = LAYERS[name]()
    model = OnPacked(layer) if packed else layer
    args = (some(kind, 20, B), torch.tensor([20, 5, 1])) if packed else (some(kind, 20, B),)
    if name == "GRU-before":
        with pytest.raises(fastcells.CannotRun, match=r"torch\.jit\.trace would record it for as many steps"):
            torch.jit.trace(model, args)
        return
    traced = torch.jit.trace(model, args, check_trace=False)
    for steps, batch in ((LONG, 5), (1, 1)):
        x = some(kind, steps, batch)
        other = (x, torch.tensor([steps] + [1] * (batch - 1))) if packed else (x,)
        same_results(model, traced, True, *other)


@EACH_INPUT
@EACH_CELL
def test_traced_cell(name: str, kind: str) -> None:
    cell = CELLS[name]()
    same_results(cell, torch.jit.trace(cell, some(kind, B), check_trace=False), True, some(kind, B + 4))


@pytest.mark.parametrize("wrap", [False, True], ids=["itself", "in a model"])
@pytest.mark.parametrize("name", ["RNN", "GRU", "GRU-before", "LSTM", *CELLS])
def test_script_says_what_to_do(name: str, wrap: bool) -> None:
    """Nothing of the user's model is changed by the attempt, and its twin can be scripted."""
    layer = (LAYERS | CELLS)[name]()
    model = nn.Sequential(layer) if wrap else layer
    with pytest.raises(RuntimeError, match=rf"fastcells\.{type(layer).__name__}.*fastcells\.to_torch"):
        torch.jit.script(model)
    assert next(m for m in model.modules() if m is layer) is layer
    if "before" in name or wrap:
        return
    x = some("dense", B) if name in CELLS else some("dense", SHORT, B)
    wrapped = nn.Sequential(copy.deepcopy(layer))  # torch.nn's layers, being overloaded, run only within a module
    scripted = torch.jit.script(fastcells.to_torch(wrapped))
    assert_equal_to_rounding(tree_leaves(scripted(x)), tree_leaves(layer(x)))


def plain(layer: fastcells.layers.Layer, x: Tensor) -> Tensor:
    out: Tensor = reference.layer(layer, x)[0]
    return out


@GRAD
@EACH_INPUT
@EACH_LAYER
def test_vmap_over_inputs(name: str, kind: str, training: bool) -> None:
    layer, x = LAYERS[name](), some(kind, 4, LONG if "deep" not in name else SHORT, B)
    with torch.set_grad_enabled(training):
        assert_equal_to_rounding([vmap(lambda x: layer(x)[0])(x)], [torch.stack([plain(layer, each) for each in x])])


@GRAD
@EACH_INPUT
@EACH_LAYER
def test_vmap_over_an_ensemble(name: str, kind: str, training: bool) -> None:
    """pytorch#105982."""
    layers = [LAYERS[name]() for _ in range(3)]
    parameters, _ = stack_module_state(layers)
    x = some(kind, 3, SHORT, B)
    with torch.set_grad_enabled(training):
        out = vmap(lambda p, x: functional_call(layers[0], p, (x,))[0])(parameters, x)
        assert_equal_to_rounding([out], [torch.stack([plain(m, each) for m, each in zip(layers, x, strict=True)])])


@EACH_INPUT
@EACH_CELL
def test_vmap_over_cells(name: str, kind: str) -> None:
    cell, x = CELLS[name](), some(kind, 4, B)
    expected = [torch.stack(s) for s in zip(*(tree_leaves(cell(each)) for each in x), strict=True)]
    assert_equal_to_rounding(tree_leaves(vmap(cell)(x)), expected)


@EACH_INPUT
@EACH_LAYER
def test_gradients_of_each_sample(name: str, kind: str) -> None:
    layer = LAYERS[name](dtype=torch.float64)
    x = some(kind, SHORT, 4, dtype=torch.float64)
    p = {k: v.detach() for k, v in layer.named_parameters()}

    def loss(p: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(layer, p, (x.unsqueeze(1),))[0].square().sum()

    together = vmap(grad(loss), (None, 1))(p, x)
    for b in range(4):
        alone = torch.autograd.grad(plain(layer, x[:, b : b + 1]).square().sum(), list(layer.parameters()))
        assert_equal_to_rounding([g[b] for g in together.values()], alone)


@EACH_LAYER
def test_jacobians(name: str) -> None:
    layer = LAYERS[name](dtype=torch.float64)
    x = some("dense", 2, 1, dtype=torch.float64)

    def run(x: Tensor) -> Tensor:
        return layer(x)[0]

    expected = torch.autograd.functional.jacobian(lambda x: plain(layer, x), x)
    assert_equal_to_rounding([jacrev(run)(x), jacfwd(run)(x)], [expected] * 2)
    assert_equal_to_rounding([torch.autograd.functional.jacobian(run, x, vectorize=True)], [expected])
    direction = torch.randn_like(x)
    slope = (expected.flatten(3).flatten(0, 2) @ direction.flatten()).view_as(run(x))
    assert_equal_to_rounding([jvp(run, (x,), (direction,))[1]], [slope])


@EACH_INPUT
@EACH_LAYER
def test_batched_gradients(name: str, kind: str) -> None:
    layer = LAYERS[name](dtype=torch.float64)
    out = layer(some(kind, SHORT, B, dtype=torch.float64))[0]
    d, leaves = torch.randn(2, *out.shape, dtype=torch.float64), list(layer.parameters())
    together = torch.autograd.grad(out, leaves, d, is_grads_batched=True, retain_graph=True)
    for i in range(2):
        assert_equal_to_rounding([g[i] for g in together], torch.autograd.grad(out, leaves, d[i], retain_graph=True))


@EACH_INPUT
@pytest.mark.parametrize("name", ["RNN", "GRU", "GRU-before", "LSTM"])
def test_dispatch_modes(name: str, kind: str) -> None:
    """Fake tensors, a counter of operations and make_fx see operators, and C is given no tensor without memory."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx
    from torch.utils.flop_counter import FlopCounterMode

    layer, x = LAYERS[name](), some(kind, LONG, B)
    counts = []
    for each in (layer, layer if name == "GRU-before" or kind == "ids" else fastcells.to_torch(copy.deepcopy(layer))):
        with FlopCounterMode(display=False) as counter:
            each(x)
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1]
    with FakeTensorMode() as mode:
        assert LAYERS[name]()(mode.from_tensor(x))[0].shape == (LONG, B, H)
    recorded = make_fx(lambda x: layer(x)[0])(x)
    assert_equal_to_rounding([recorded(x)], [layer(x)[0]])
