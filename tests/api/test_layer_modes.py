"""What PyTorch does with a module: transforms, compilation, autocast, the meta device, low precision."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from fastcells import reference
from tests.support.accuracy import assert_equal_to_rounding, cotangents, rms_error
from tests.support.layer_cases import (
    EACH,
    EACH_OWN,
    KINDS,
    OWN,
    B,
    H,
    I,
    T,
    assert_identical,
    own_case,
    pair,
    some,
    some_hx,
)
from tests.support.shapes import gradients


@pytest.mark.parametrize("own", ["dense", *OWN])
def test_transforms(own: str) -> None:
    """Per-sample gradients, forward mode, Hessian."""
    module, x = own_case(own, num_layers=2) if own in OWN else (pair("GRU", num_layers=2)[1], some(T, B, I).detach())
    p = {k: v.detach() for k, v in module.named_parameters()}
    v = torch.randn(T, B, H, dtype=torch.float64)

    def loss(p: dict[str, Tensor], x: Tensor, v: Tensor) -> Tensor:
        return (torch.func.functional_call(module, p, x)[0] * v).sum()

    together = torch.func.vmap(torch.func.grad(loss), (None, 1, 1))(p, x, v)
    for b in range(B):
        alone = torch.func.grad(loss)(p, x[:, b], v[:, b])
        assert_equal_to_rounding([g[b] for g in together.values()], alone.values())
    direction = {k: torch.randn_like(w) for k, w in p.items()}
    slope = torch.func.jvp(lambda p: loss(p, x, v), (p,), (direction,))[1]
    full = torch.func.grad(loss)(p, x, v)
    assert_equal_to_rounding([slope], [sum((full[k] * direction[k]).sum() for k in p)])
    leaves = {k: w.clone().requires_grad_() for k, w in p.items()}
    assert_equal_to_rounding(full.values(), torch.autograd.grad(loss(leaves, x, v), list(leaves.values())))

    def of_bias(bias: Tensor) -> Tensor:
        return loss({**p, "bias_hh_l0": bias}, x, v)

    hessian = torch.func.hessian(of_bias)(p["bias_hh_l0"])
    assert hessian.any()
    assert_equal_to_rounding([hessian], [torch.autograd.functional.hessian(of_bias, p["bias_hh_l0"])])


@pytest.mark.parametrize(
    ("own", "backend"), [*itertools.product(["dense", *OWN], ["eager", "aot_eager"]), ("reset_before", "inductor")]
)
@pytest.mark.slow
def test_compile(own: str, backend: str) -> None:
    torch._dynamo.reset()
    module, x = own_case(own) if own in OWN else (pair("GRU")[1], some(T, B, I))
    x = x[:2]
    compiled = torch.compile(module, fullgraph=True, backend=backend)
    results = []
    for run in (module, compiled):
        torch.manual_seed(0)
        out = run(x)
        results.append([*out, *gradients(out, list(module.parameters()), cotangents(out))])
    assert_equal_to_rounding(*results)


@pytest.mark.parametrize("given", [True, False], ids=["hx", "zero_hx"])
@EACH
def test_autocast(kind: str, given: bool) -> None:
    """Ours have torch's dtypes, and ids those of the one-hot vectors."""
    theirs, ours = pair(kind, torch.float32)
    ids = torch.randint(I, (T, B))
    x, hx = nn.functional.one_hot(ids, I).float(), tree_map(Tensor.float, some_hx(ours, B)) if given else None
    with torch.autocast("cpu", torch.bfloat16):
        try:
            theirs(x, hx)
        except RuntimeError as error:  # a processor that oneDNN has no bfloat16 LSTM for
            with pytest.raises(RuntimeError, match=str(error)):
                ours(x, hx)
            pytest.skip(f"torch.nn's own layer raises here: {error}")
        dtypes = [[t.dtype for t in tree_leaves(out)] for out in (theirs(x, hx), ours(x, hx), ours(ids, hx))]
    assert dtypes[0] == dtypes[1] == dtypes[2]


@EACH_OWN
def test_autocast_leaves_float64_alone(own: str) -> None:
    module, x = own_case(own)
    with torch.autocast("cpu", torch.bfloat16):
        assert nn.GRU(I, H).double()(some(T, B, I))[0].dtype == torch.float64
        out = module(x)
    assert_identical(out, module(x))


@EACH_OWN
def test_meta_device(own: str) -> None:
    """Shapes without numbers, as torch's layers give them."""
    module, x = own_case(own, num_layers=2)
    out, h_n = module.to("meta")(x.to("meta"))
    assert out.shape == (T, B, H) and h_n.shape == (2, B, H)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("kind", "own"), [*itertools.product(KINDS, ("dense", "ids")), ("GRU", "reset_before")], ids=lambda case: case
)
def test_low_precision(kind: str, own: str, dtype: torch.dtype) -> None:
    """err(ours) <= 2 * err(torch's layer in the same dtype) + eps, against float64."""
    theirs, ours = pair(kind, dtype, num_layers=2)
    ours.reset_after = own != "reset_before"
    ids = torch.randint(I, (16, B))
    x = nn.functional.one_hot(ids, I).to(dtype) if own == "ids" else torch.randn(16, B, I).to(dtype)
    exact = copy.deepcopy(ours).double()
    runs = [(exact, reference.layer(exact, x.double())), (ours, ours(ids if own == "ids" else x))]
    runs.append((ours, reference.layer(ours, x)) if own == "reset_before" else (theirs, theirs(x)))
    d = [torch.randn_like(o).to(dtype) for o in tree_leaves(runs[0][1])]
    results = []
    for module, out in runs:
        outs = tuple(tree_leaves(out))
        given = [c.to(o.dtype) for c, o in zip(d, outs, strict=True)]
        results.append([*outs, *gradients(outs, list(module.parameters()), given)])
    for truth, mine, base in zip(*results, strict=True):
        assert mine.dtype == base.dtype == dtype
        assert rms_error(mine, truth) <= 2 * rms_error(base, truth) + torch.finfo(dtype).eps
