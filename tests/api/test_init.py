"""`fastcells.init`: what each gate's block is afterwards, and that nothing else has changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import fastcells
from fastcells import init
from tests.support.accuracy import assert_equal_to_rounding

I, H = 24, 16  # noqa: E741
MODULES: dict[str, Callable[..., Any]] = {
    "RNN": lambda: fastcells.RNN(I, H, 2, bidirectional=True),
    "GRU": lambda: fastcells.GRU(I, H, reset_after=False),
    "LSTM": lambda: fastcells.LSTM(I, H, 2, learned_state=True),
    "LSTM-no-bias": lambda: fastcells.LSTM(I, H, bias=False),
    "LSTM-proj": lambda: fastcells.LSTM(I, H, proj_size=5),
    "GRUCell": lambda: fastcells.GRUCell(I, H),
    "LSTMCell": lambda: fastcells.LSTMCell(I, H),
    "torch-LSTM": lambda: nn.LSTM(I, H, 2),
    "torch-RNNCell": lambda: nn.RNNCell(I, H, bias=False),
}
EACH = pytest.mark.parametrize("kind", MODULES)
GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}


def gates_of(module: nn.Module) -> int:
    return GATES[type(module).__name__.removesuffix("Cell")]


def changed(module: nn.Module, fill: Callable[[Any], Any]) -> dict[str, Tensor]:
    """The parameters that an initialisation has written, by name, after it."""
    with torch.no_grad():
        for p in module.parameters():
            p.fill_(0.25)
    kept = dict(module.named_parameters())
    assert fill(module) is module
    assert all(kept[name] is p and p.requires_grad for name, p in module.named_parameters())
    return {name: p.detach() for name, p in module.named_parameters() if not (p == 0.25).all()}


@EACH
def test_orthogonal(kind: str) -> None:
    module = MODULES[kind]()
    written = changed(module, lambda m: init.orthogonal_(m, gain=2.0))
    assert set(written) == {name for name, _ in module.named_parameters() if name.startswith("weight_hh")}
    blocks = [block for w in written.values() for block in w.chunk(gates_of(module))]
    for block in blocks:  # [H, H], with a projection [H, P]
        assert_equal_to_rounding([block.T @ block], [4 * torch.eye(block.shape[1])])
    assert all(not torch.equal(a, b) for i, a in enumerate(blocks) for b in blocks[:i]), "drawn each by itself"


@EACH
def test_glorot(kind: str) -> None:
    module = MODULES[kind]()
    written = changed(module, init.glorot_)
    assert set(written) == {name for name, _ in module.named_parameters() if name.startswith("weight_ih")}
    for w in written.values():
        bound = (6 / (w.shape[1] + H)) ** 0.5
        # The largest of n uniform numbers is below 0.95 of the bound with probability 0.95 ** n, here under 1e-5.
        for block in w.chunk(gates_of(module)):
            assert 0.95 * bound < block.abs().max() <= bound and abs(block.mean()) < bound / 3


def test_forget_bias() -> None:
    for kind in ("LSTM", "LSTM-proj", "LSTMCell", "torch-LSTM"):
        module = MODULES[kind]()
        written = changed(module, lambda m: init.forget_bias_(m, 3.0))
        assert set(written) == {name for name, _ in module.named_parameters() if name.startswith("bias")}
        for name, b in written.items():
            i, f, g, o = b.chunk(4)
            assert (f == (3.0 if "bias_ih" in name else 0.0)).all()
            assert all((gate == 0.25).all() for gate in (i, g, o))
    for kind, message in (("GRU", "a forget gate is an LSTM's: got GRU"), ("LSTM-no-bias", "no bias to set: got LSTM")):
        with pytest.raises(ValueError, match=message):
            init.forget_bias_(MODULES[kind]())


@EACH
def test_keras(kind: str) -> None:
    """Keras takes the gates of a kernel as one matrix."""
    module = MODULES[kind]()
    written, gates = changed(module, init.keras_), gates_of(module)
    assert set(written) == {name for name, _ in module.named_parameters() if name not in ("h_0", "c_0")}
    for name, w in written.items():
        if "weight_hh" in name and not getattr(module, "proj_size", 0):
            assert_equal_to_rounding([w.T @ w], [torch.eye(H)])
            assert gates == 1 or (w[:H].T @ w[:H] - torch.eye(H)).abs().max() > 0.1, "no gate by itself"
        elif "weight_ih" in name:
            bound = (6 / sum(w.shape)) ** 0.5
            assert 0.95 * bound < w.abs().max() <= bound
        elif "bias" in name:
            expected = torch.zeros(gates, H)
            if gates == 4 and "bias_ih" in name:
                expected[1] = 1.0
            assert torch.equal(w, expected.flatten())


def test_generator_and_ambient_state() -> None:
    fills = (init.orthogonal_, init.glorot_, init.keras_)
    for fill in fills:
        before = torch.get_rng_state()
        a, b = (fill(nn.GRU(I, H), generator=torch.Generator().manual_seed(3)) for _ in range(2))
        same = {name for name, p in a.named_parameters() if torch.equal(p, b.get_parameter(name))}
        assert {n for n in same if "weight" in n} == {
            init.orthogonal_: {"weight_hh_l0"},
            init.glorot_: {"weight_ih_l0"},
            init.keras_: {"weight_ih_l0", "weight_hh_l0"},
        }[fill]
        torch.set_rng_state(before)
        layer = nn.GRU(I, H)
        after = torch.get_rng_state()
        fill(layer, generator=torch.Generator())
        assert torch.equal(torch.get_rng_state(), after)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_dtypes(dtype: torch.dtype) -> None:
    """LAPACK has no bfloat16: drawn in float32, rounded once."""
    w = init.orthogonal_(fastcells.GRU(I, H, dtype=dtype)).weight_hh_l0.detach()
    assert w.dtype == dtype
    block = w[:H].double()
    assert (block.T @ block - torch.eye(H)).abs().max() < 4 * torch.finfo(dtype).eps * H**0.5


def test_under_a_parametrization() -> None:
    """The values arrive through it; where there is no way, that is said, and not lost at the next call."""
    layer = parametrizations.weight_norm(fastcells.LSTM(I, H), "weight_hh_l0")
    init.orthogonal_(layer)
    block = layer.weight_hh_l0.detach()[:H]
    assert_equal_to_rounding([block.T @ block], [torch.eye(H)])
    with pytest.warns(FutureWarning, match="weight_norm"):
        old = nn.utils.weight_norm(fastcells.LSTM(I, H), "weight_hh_l0")
    with pytest.raises(ValueError, match="weight_hh_l0 is computed from other parameters"):
        init.orthogonal_(old)


@pytest.mark.parametrize("fill", [init.orthogonal_, init.glorot_, init.forget_bias_, init.keras_])
def test_other_modules(fill: Callable[[Any], Any]) -> None:
    with pytest.raises(TypeError, match=r"expected a recurrent layer or cell of fastcells or torch\.nn, got Linear"):
        fill(nn.Linear(3, 4))
