"""Defined cells with further parameters, more states than two, diagonal weights or heads, by the Triton kernels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from fastcells import zoo
from fastcells.accuracy import ROUGH_KINKED, TWICE
from fastcells.backends.triton import cells
from fastcells.kernels.triton import launch_diagonal, launch_sequence, launch_step
from fastcells.kernels.triton.exchange import EXCHANGES
from fastcells.kernels.triton.rules import rule_of
from fastcells.spec import RecurrentWeights
from fastcells.spec.recurrent import DIAGONAL
from tests.support.accuracy import assert_equal_to_rounding, cotangents, error
from tests.support.defined_cases import KINDS, DefinedCase
from tests.support.edited_kernels import edited
from tests.support.resets import some_resets
from tests.support.rule_twins import twin
from tests.support.split_programs import arguments, largest_excess, run, split

pytestmark = pytest.mark.usefixtures("poisoned_memory", "strict_float32")

FIRST = "w_ptr - tl.program_id(1) * (GATES * UNITS * UNITS)"  # the first head's weights
EACH_IMPL = pytest.mark.parametrize("impl", ["triton", "triton-step"])
EACH_KIND = pytest.mark.parametrize("case", KINDS.values(), ids=KINDS)


def excess(
    case: DefinedCase, T: int, B: int, H: int, dtype: torch.dtype, device: torch.device, **options: Any
) -> float:
    """By how much outputs and gradients are further from float64 than they may be."""
    impl = options.pop("impl", "triton")
    args = [a.to(device) for a in arguments(case, T, B, H, dtype, ids=options.pop("ids", False))]
    d = [torch.randn(size).to(device, dtype) for size in ((T, B, H), *[(B, H)] * case.states)]
    times = ROUGH_KINKED if case.spec.kinked and dtype != torch.float32 else TWICE
    return largest_excess(case, args, run(case, args, dtype, d, impl=impl, **options), d, times=times, **options)


@EACH_IMPL
@EACH_KIND
def test_accuracy(case: DefinedCase, impl: str, device: torch.device) -> None:
    """Ragged, with lengths and resets, over two batch tiles."""
    if impl == "triton-step" and case.spec.recurrent is DIAGONAL:
        pytest.skip("it runs in one launch")
    options = {"lengths": torch.randint(6, (18,), device=device), "resets": some_resets(5, 18).to(device)}
    assert excess(case, 5, 18, 6, torch.float32, device, impl=impl, **options) <= 0


@EACH_KIND
def test_16_bit_on_ids_in_reverse(case: DefinedCase, device: torch.device) -> None:
    assert excess(case, 3, 5, 8, torch.bfloat16, device, ids=True, reverse=True) <= 0


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="no interpreter with a GPU")
@pytest.mark.parametrize("exchange", EXCHANGES)
@pytest.mark.parametrize("name", ["PeepholeLSTM", "FourStates", "SLSTM/2"])
def test_split(name: str, exchange: str) -> None:
    options: dict[str, Any] = {"lengths": torch.randint(4, (20,)), "resets": some_resets(3, 20)}
    with split(exchange, 1, columns=16) as (forward, backward):
        assert excess(KINDS[name], 3, 20, 40 if "/" in name else 23, torch.float32, torch.device("cpu"), **options) <= 0
        assert forward.programs == backward.programs == [2 * (2 if "/" in name else 1)]


@pytest.mark.parametrize(
    "case", ["SLSTM/2", *(pytest.param(name, marks=pytest.mark.slow) for name in ("PeepholeLSTM", "IndRNN"))]
)
def test_compile_fullgraph(case: str, device: torch.device) -> None:
    """A layer as a graph, beside itself without one and torch's operators."""
    torch.compiler.reset()
    name, _, heads = case.partition("/")
    layers = [getattr(zoo, name)(6, 16, impl=impl, num_heads=int(heads or 1)) for impl in ("triton", "torch")]
    layers[1].load_state_dict(layers[0].to(device).state_dict())
    x, results = torch.randn(3, 5, 6, device=device), []
    for layer in (*layers, torch.compile(layers[0], fullgraph=True, backend="aot_eager")):
        out, _ = layer.to(device)(x)
        torch.manual_seed(0)
        results.append([out, *torch.autograd.grad(out, list(layer.parameters()), cotangents([out]))])
    assert_equal_to_rounding(results[0], results[2])
    for ours, theirs in zip(results[0], results[1], strict=True):
        assert error(ours, theirs) <= 64 * torch.finfo(torch.float32).eps * max(1.0, theirs.abs().max().item())


def test_final_states_are_the_callers(device: torch.device) -> None:
    """A change of one in place is no change of another, nor one that the backward would refuse."""
    layer = zoo.SLSTM(3, 8, impl="triton").to(device)
    out, (h_n, c_n, n_n, m_n) = layer(torch.randn(2, 4, 3, device=device))
    kept, loss = n_n.detach().clone(), out.sum() + (n_n * m_n).sum()
    c_n.mul_(2)
    h_n.add_(1)
    loss.backward()
    assert torch.equal(n_n, kept)


def test_gluon_says_what_it_lacks() -> None:
    reasons = {name: cells.gluon_obstacle(case.spec) or "" for name, case in KINDS.items()}
    assert "extra parameters, p_i, p_f, p_o" in reasons["PeepholeLSTM"]
    four = replace(KINDS["FourStates"].spec, extra=())
    assert "4 states, which are more than 2" in (cells.gluon_obstacle(four) or "")
    assert all("not dense" in reasons[name] for name in ("SLSTM", "SLSTM/2", "IndRNN", "DiagonalFour"))
    assert all(cells.obstacle(case.spec) is None for case in KINDS.values())


def test_a_rule_reads_the_parameters_behind_the_states() -> None:
    """In float64, beside autograd through the cell's step."""
    spec, rule = KINDS["PeepholeLSTM"].spec, rule_of(KINDS["PeepholeLSTM"].spec.key)
    x, b = (torch.randn(5, 4 * 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    known = [torch.randn(5, 3, dtype=torch.float64, requires_grad=True) for _ in range(5)]
    w = torch.zeros(12, 3, dtype=torch.float64)
    expected = spec.step(x, tuple(known[:2]), RecurrentWeights(w, b, extra=tuple(known[2:])))
    d_new = cotangents(expected)
    wanted = torch.autograd.grad(expected, [x, *known], d_new, materialize_grads=True)
    with torch.no_grad():
        new, saved = twin(rule.forward)(x.chunk(4, 1), b.chunk(4, 1), known)
        d_x, _, d_prev = twin(rule.backward)(d_new, saved, known, new)
    for found, exact in zip((*new, torch.cat(d_x, 1), *d_prev), (*expected, *wanted), strict=True):
        torch.testing.assert_close(found, exact.detach())


@pytest.mark.parametrize(
    ("launchers", "file", "old", "new", "name"),
    [
        (launch_sequence, "sequence.py", "[STATES:], counted, EXTRA)", "[STATES:], mask, EXTRA)", "FourStates"),
        (
            launch_sequence,
            "sequence.py",
            "load_weights(w_ptr, unit[None",
            f"load_weights({FIRST}, unit[None",
            "SLSTM/2",
        ),
        (launch_step, "step_backward.py", "tl.where(mask, tiles[i], 0.0)", "tiles[i]", "FourStates"),
        (launch_diagonal, "diagonal.py", "through += d_h[g] * w[g]", "through += d_h[g]", "IndRNN"),
        (launch_diagonal, "diagonal.py", "(d_h[g] * prev[0],)", "(d_h[g] * before[0],)", "IndRNN"),
        (launch_diagonal, "diagonal.py", "add_tiles(d_w, by_weight, active, GATES)", "d_w", "IndRNN"),
    ],
    ids=["finished rows", "heads", "masked rows", "adjoint", "resets", "sum"],
)
@pytest.mark.slow
def test_a_broken_kernel_is_noticed(
    launchers: ModuleType, file: str, old: str, new: str, name: str, device: torch.device, tmp_path: Path
) -> None:
    impl = "triton-step" if launchers is launch_step else "triton"
    options = {"lengths": torch.randint(6, (18,), device=device), "resets": some_resets(5, 18).to(device)}
    with edited(launchers, file, old, new, tmp_path):
        assert not excess(KINDS[name], 5, 18, 6, torch.float32, device, impl=impl, **options) <= 1e-4
