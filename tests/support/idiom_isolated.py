"""Idioms that C could answer by ending the process: wrong inputs, and torch's ambient state.

`python -m tests.support.idiom_isolated START` runs them from the given one on and prints a line of JSON for each, so
that test_idioms_isolated.py sees which of them ended it.
"""

from __future__ import annotations

import faulthandler
import itertools
import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from tests.support.idiom_cases import CELL_IN_TRITON, CORE, IMPLS, LAYOUTS, TRITON, Given, Subject
from tests.support.idiom_outcomes import Raised, assert_same, call, check, grads, outcome, weigh


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


def wrong(subject: Subject, name: str) -> None:
    """The same type of error; one about a size names it. What torch.nn's takes, ours takes."""
    idiom, size = WRONG[name]
    before = subject.kind == "GRU-before"
    theirs = outcome(idiom, replace(subject, kind="GRU") if before else subject, False)
    ours = outcome(idiom, subject, True)
    if isinstance(ours, Raised):
        assert "zip(" not in str(ours.error), f"no message for a user: {ours!r}"
        if isinstance(theirs, Raised) and type(theirs.error) in (AttributeError, TypeError, IndexError):
            return  # torch.nn stumbles: any clear error will do
    if not before or isinstance(theirs, Raised):
        assert_same(ours, theirs)
    if size:
        assert size in str(ours.error), f"{size} is not in {ours!r}"


X_SHAPES = ((3,), (2, 3), (3, 3), (0, 3), (2, 2, 3), (), (2, 4))
STATE_SHAPES = ((3,), (2, 3), (3, 3), (1, 3), (2, 3, 3), (2, 4), (2, 1), (0, 3), (1,), ())
STATE_MAKERS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "h": lambda h, c: h,
    "pair": lambda h, c: (h, c),
    "stacked": lambda h, c: torch.stack([h, h]),
}


def attempt(cell: Any, *args: Any) -> Any:
    try:
        return cell(*args)
    except Exception as error:
        return Raised(error)


def cell_states(kind: str, impl: str, x_shape: tuple[int, ...], maker: str) -> None:
    """Every combination of input and state shapes: right where they fit, else an error.

    torch.nn.LSTMCell itself ends the process for some of them, so it is asked only where they fit.
    """
    subject = Subject(kind, impl, "", I=3, H=3)
    theirs, ours = subject.module(False), subject.module(True)
    x = torch.randn(x_shape)
    for h_shape in STATE_SHAPES:
        for c_shape in STATE_SHAPES if maker == "pair" and kind == "LSTMCell" else STATE_SHAPES[:1]:
            state = STATE_MAKERS[maker](torch.randn(h_shape), torch.randn(c_shape))
            shapes = [s.shape for s in state] if isinstance(state, tuple) else [state.shape]
            fits = x_shape[-1:] == (3,) and len(x_shape) in (1, 2) and all(s == x_shape for s in shapes)
            fits = fits and len(shapes) == (2 if kind == "LSTMCell" else 1)
            where = f"x {list(x_shape)}, states {[list(s) for s in shapes]}"
            found = attempt(ours, x, state)
            if isinstance(found, Raised):
                assert not fits, f"{where}: {found!r}"
                continue
            if fits or kind != "LSTMCell":  # what else ours takes, torch.nn's takes too
                assert_same(found, theirs(x, state))
            else:
                assert isinstance(state, Tensor) and state.shape == (2, *x_shape), f"{where}: no error"


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
    "anomaly": lambda: torch.autograd.set_detect_anomaly(True), "profiler": torch.profiler.profile,
    "saved_on_cpu": lambda: torch.autograd.graph.save_on_cpu(),
    "single_thread_backward": lambda: torch.autograd.set_multithreading_enabled(False),
}  # fmt: skip


CHANGES_WHAT_IS_MADE = ("bfloat16", "float64", "meta")


def ambient(subject: Subject, name: str, with_state: bool) -> None:
    def idiom(module: Any, given: Given) -> Any:
        with AMBIENT[name]():
            results = module(given.x, given.hx) if with_state else module(given.x)
            outs = [t for t in tree_leaves(results) if isinstance(t, Tensor) and t.is_floating_point()]
            with torch.device("cpu"):
                loss = weigh(outs)
            loss.backward()
        return outs, grads(module, given)

    check(idiom, subject)


def _table() -> Iterator[tuple[str, Callable[[], None]]]:
    impls = ("auto", "torch", "cpu", "triton-step")
    for kind, impl, x, maker in itertools.product(("RNNCell", "GRUCell", "LSTMCell"), impls, X_SHAPES, STATE_MAKERS):
        if impl != "triton-step" or x in ((2, 3), (3,)):
            yield f"states-{kind}-{impl}-x{list(x)}-{maker}", partial(cell_states, kind, impl, x, maker)
    for subject, name in itertools.product((*CORE, CELL_IN_TRITON), WRONG):
        if subject.layout == "dense" and subject.kind != "LSTM-proj":
            yield f"wrong-{subject}-{name}", partial(wrong, subject, name)
    everywhere = [*CORE, *(s for s in LAYOUTS if s.layout == "packed_ids"), *TRITON[:3]]
    for name, subject, state in itertools.product(AMBIENT, everywhere, ("hx", "zeros")):
        if name in CHANGES_WHAT_IS_MADE or (subject in IMPLS and state == "hx"):
            yield f"ambient-{subject}-{name}-{state}", partial(ambient, subject, name, state == "hx")


TABLE = dict(_table())


def main(start: int) -> None:
    faulthandler.enable()
    os.environ["TRITON_INTERPRET"] = "1"
    torch.set_num_threads(1)
    for name, run in list(TABLE.items())[start:]:
        print(json.dumps([name, "started"]), flush=True)
        try:
            run()
        except Exception as error:
            print(json.dumps([name, f"{type(error).__name__}: {error}"]), flush=True)
        else:
            print(json.dumps([name, ""]), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]))
