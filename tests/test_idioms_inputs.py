"""What callers pass to a recurrent module: strides, sizes, dtypes, devices, wrong things, and torch's ambient state."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from idiom_cases import (
    ALL, CELLS, DENSE, IMPLS, TRITON, Given, Raised, assert_same, call, check, each, grads, outcome, weigh,
)  # fmt: skip
from torch import Tensor, nn
from torch.utils._pytree import tree_map

# One subject of each layer, implementation and kind of input that a stride, a size or an ambient state can matter to.
MODULES = [s for s in [*ALL, *CELLS] if s.dtype == torch.float32 and not s.layout.startswith("packed") and not s.options]
FLOATS = [s for s in MODULES if "ids" not in s.layout]


def _strided(how: Callable[[Tensor], Tensor]) -> Callable[..., Any]:
    def idiom(module: Any, given: Given) -> Any:
        x = how(given.x.detach())
        x = x.requires_grad_() if x.is_floating_point() and given.x.requires_grad else x
        hx = tree_map(lambda h: how(h.detach()).requires_grad_(), given.hx)
        outs = call(module, given, x, hx)
        weigh(outs).backward()
        states = hx if isinstance(hx, tuple) else (hx,)
        return outs, {k: p.grad for k, p in module.named_parameters()}, [h.grad for h in states]

    return idiom


def _every_second(t: Tensor) -> Tensor:
    return torch.stack([t, t + 1], -1)[..., 0]


def _negative(t: Tensor) -> Tensor:
    """A tensor whose minus sign is only noted: the imaginary part of a conjugate."""
    return torch.complex(torch.zeros_like(t), -t).conj().imag if t.is_floating_point() else t


STRIDES: dict[str, Callable[[Tensor], Tensor]] = {
    "transposed": lambda t: t.transpose(0, -1).contiguous().transpose(0, -1),
    "every_second": _every_second,
    "expanded": lambda t: t[:1].expand(t.shape),
    "expanded_features": lambda t: t[..., :1].expand(t.shape),
    "offset": lambda t: torch.cat([t.flatten(), t.flatten()])[t.numel() :].view(t.shape),
    "narrowed": lambda t: torch.cat([t, t], 0)[: t.shape[0]] if t.dim() else t,
    "negative": _negative,
    "flipped": lambda t: t.flip(0) if t.dim() else t,
}


@pytest.mark.parametrize("how", STRIDES)
@each(s for s in MODULES if "unbatched_ids" not in s.layout)
def test_strides(subject: Any, how: str) -> None:
    if "expanded" in how and "ids" in subject.layout:
        pytest.skip("an expanded one-hot is not the one-hot of expanded ids")
    check(_strided(STRIDES[how]), subject)


def _trained(module: Any, given: Given) -> Any:
    outs = call(module, given)
    weigh(outs).backward()
    return outs, grads(module, given)


SIZES = {"B0": {"B": 0}, "T1": {"T": 1}, "H1": {"H": 1}, "I1": {"I": 1}, "B1": {"B": 1}, "T0": {"T": 0}, "all1": {
    "T": 1, "B": 1, "H": 1, "I": 1}}  # fmt: skip


@pytest.mark.parametrize("size", SIZES)
@each(s for s in [*MODULES, *(t for t in TRITON if t.kind in ("GRU", "LSTM"))] if s.kind != "LSTM-proj")
def test_sizes(subject: Any, size: str) -> None:
    check(_trained, replace(subject, **SIZES[size]))


def _wrong(change: Callable[[Any, Given], Any]) -> Callable[..., Any]:
    return lambda module, given: call(module, given, *change(module, given))


def _state(change: Callable[[Tensor], Any]) -> Callable[..., Any]:
    return _wrong(lambda m, g: (g.x, tree_map(change, g.hx)))


def _x(change: Callable[[Tensor], Any]) -> Callable[..., Any]:
    return _wrong(lambda m, g: (change(g.x), g.hx))


# What is passed, and the size that the message has to name.
WRONG: dict[str, tuple[Callable[..., Any], str]] = {
    "input_size": (_x(lambda x: torch.cat([x, x], -1)), "10"),
    "h_size": (_state(lambda h: torch.cat([h, h], -1)), "16"),
    "batch": (_state(lambda h: torch.cat([h] * 3, -2)), "6"),
    "double": (_x(Tensor.double), ""),
    "half": (_x(Tensor.half), ""),
    "integer32": (_x(lambda x: x > 0), ""),
    "double_state": (_state(Tensor.double), ""),
    "list": (_x(lambda x: x.tolist()), ""),
    "numpy": (_x(lambda x: x.detach().numpy()), ""),
    "None": (lambda m, g: m(None), ""),
    "nothing": (lambda m, g: m(), ""),
    "too_much": (lambda m, g: m(g.x, g.hx, g.hx), ""),
    "keyword": (lambda m, g: m(g.x, h0=g.hx), ""),
    "4D": (_x(lambda x: x[None, None]), ""),
    "meta": (_x(lambda x: x.to("meta")), ""),
    "meta_state": (_state(lambda h: h.to("meta")), ""),
    "state_list": (lambda m, g: call(m, g, g.x, [g.hx[0], g.hx[1]] if isinstance(g.hx, tuple) else [g.hx]), ""),
    "state_triple": (lambda m, g: call(m, g, g.x, (g.hx[0],) * 3 if isinstance(g.hx, tuple) else (g.hx,) * 3), ""),
    "state_single": (lambda m, g: call(m, g, g.x, (g.hx[0],) if isinstance(g.hx, tuple) else (g.hx,)), ""),
    "state_tensor": (lambda m, g: call(m, g, g.x, g.hx[0] if isinstance(g.hx, tuple) else g.hx), ""),
    "state_stacked": (lambda m, g: call(m, g, g.x, torch.stack(g.hx) if isinstance(g.hx, tuple) else g.hx[None]), ""),
    "state_None": (lambda m, g: call(m, g, g.x, (g.hx[0], None) if isinstance(g.hx, tuple) else (None,)), ""),
    "state_number": (lambda m, g: call(m, g, g.x, 0.0), ""),
    "state_text": (lambda m, g: call(m, g, g.x, "zeros"), ""),
    "state_empty": (lambda m, g: call(m, g, g.x, ()), ""),
}  # fmt: skip


@pytest.mark.parametrize("wrong", [w for w in WRONG])
@each(s for s in FLOATS if s.kind != "LSTM-proj" and not (s.cell and s.layout != DENSE))
def test_wrong(subject: Any, wrong: str) -> None:
    """The same type of error; one about a size names it. What torch.nn's takes, ours takes."""
    idiom, size = WRONG[wrong]
    if wrong == "batch" and subject.layout == "unbatched" or wrong == "integer32":
        pytest.skip("no such size, or no such input, there")
    theirs, ours = (outcome(idiom, replace(subject, B=2), who) for who in (False, True))
    if isinstance(theirs, Raised) and type(theirs.error) in (AttributeError, TypeError) and isinstance(ours, Raised):
        assert isinstance(ours.error, AttributeError | TypeError | ValueError | RuntimeError), repr(ours)
        return  # torch.nn stumbles: any clear error will do
    assert_same(ours, theirs)
    if size:
        assert re.search(rf"\b{size}\b", str(ours.error)), f"{size} is not in {ours!r}"


# -- torch's ambient state --------------------------------------------------------------------------------------------


class _default_dtype:
    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def __enter__(self) -> None:
        self.before = torch.get_default_dtype()
        torch.set_default_dtype(self.dtype)

    def __exit__(self, *error: object) -> None:
        torch.set_default_dtype(self.before)


class _deterministic:
    def __enter__(self) -> None:
        torch.use_deterministic_algorithms(True)

    def __exit__(self, *error: object) -> None:
        torch.use_deterministic_algorithms(False)


AMBIENT: dict[str, Callable[[], Any]] = {
    "bfloat16": lambda: _default_dtype(torch.bfloat16), "float16": lambda: _default_dtype(torch.float16),
    "float64": lambda: _default_dtype(torch.float64), "meta": lambda: torch.device("meta"),
    "cpu": lambda: torch.device("cpu"), "deterministic": _deterministic,
    "anomaly": lambda: torch.autograd.set_detect_anomaly(True), "saved_on_cpu": lambda: torch.autograd.graph.save_on_cpu(),
    "profiler": torch.profiler.profile, "single_thread_backward": lambda: torch.autograd.set_multithreading_enabled(False),
}  # fmt: skip


@pytest.mark.parametrize("given_state", [True, False], ids=["hx", "zero_hx"])
@pytest.mark.parametrize("ambient", AMBIENT)
@each([*MODULES, *(s for s in ALL if s.layout == "packed_ids"), *(s for s in TRITON if s.kind == "GRU")])
def test_ambient(subject: Any, ambient: str, given_state: bool) -> None:
    def idiom(module: Any, given: Given) -> Any:
        with AMBIENT[ambient]():
            results = module(given.x, given.hx) if given_state else module(given.x)
            outs = [t for t in torch.utils._pytree.tree_leaves(results) if isinstance(t, Tensor) and t.is_floating_point()]
            with torch.device("cpu"):
                loss = weigh(outs)
            loss.backward()
        return outs, grads(module, given)

    check(idiom, subject)


@each(s for s in MODULES if s.impl != "cpu")
def test_autocast(subject: Any) -> None:
    """In bfloat16 only dtypes and shapes are the same to the letter; the numbers are test_low_precision's."""

    def idiom(module: Any, given: Given) -> Any:
        with torch.autocast("cpu", torch.bfloat16):
            outs = call(module, given)
            loss = weigh(t.float() for t in outs)
        loss.backward()
        return [(t.dtype, t.shape, t.requires_grad) for t in outs], {k: g.dtype for k, g in grads(module, given).items()}

    check(idiom, subject)


def test_the_subjects_cover_each_implementation() -> None:
    assert {s.path for s in MODULES} == {"aten", "c", "recurrence", "step"}
    assert all(s in MODULES for s in IMPLS)
    assert isinstance(nn.GRU(2, 3), nn.RNNBase)
