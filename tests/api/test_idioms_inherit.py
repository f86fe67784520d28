"""Subclasses of the layers and cells, and the methods of torch.nn's layers that they call and override."""

from __future__ import annotations

import copy
import pickle
from abc import ABC, abstractmethod
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence

import fastcells
from tests.support.idiom_cases import ABOVE, THREE
from tests.support.idiom_outcomes import Raised, assert_same, weigh

EACH = pytest.mark.parametrize("name", THREE)
I, H = 5, 8  # noqa: E741
HOOKS = ("check_forward_args", "check_input", "check_hidden_size", "get_expected_hidden_size", "permute_hidden")
LSTM_HOOKS = (*HOOKS, "get_expected_cell_size")


def both(name: str) -> tuple[type[nn.RNNBase], type[nn.RNNBase]]:
    return getattr(nn, name), getattr(fastcells, name)


def run_both(classes: list[type[Any]], name: str, packed: bool = False, **options: Any) -> None:
    """The same results from both classes, at a shape where C runs."""
    T, B = ABOVE[name]
    results = []
    for cls in classes:
        torch.manual_seed(1)
        module = cls(I, H, **options)
        x: Any = torch.randn(T, B, I)
        x = pack_sequence([x[: T // 2 + 8, 0], x[:, 1]], enforce_sorted=False) if packed else x
        out, state = module(x)
        states = state if isinstance(state, tuple) else (state,)
        weigh([out.data, *states]).backward()
        results.append([out.data, states, [p.grad for p in module.parameters()], getattr(module, "seen", None)])
    assert_same(results[1], results[0])


@EACH
def test_forward_is_overridden(name: str) -> None:
    classes = []
    for base in both(name):

        class Scaled(base):  # type: ignore[valid-type, misc]
            def forward(self, input: Tensor, hx: Any = None) -> Any:
                out, state = super().forward(2 * input, hx)
                return out + 1, state

        classes.append(Scaled)
    run_both(classes, name)


@EACH
def test_own_constructor_and_reset(name: str) -> None:
    classes = []
    for base in both(name):

        class Orthogonal(base):  # type: ignore[valid-type, misc]
            def __init__(self, input_size: int, hidden_size: int) -> None:
                super().__init__(input_size, hidden_size, batch_first=False)
                self.gain = nn.Parameter(torch.ones(1))

            def reset_parameters(self) -> None:
                super().reset_parameters()
                for weight in self.parameters():
                    if weight.dim() > 1:
                        nn.init.orthogonal_(weight)

        classes.append(Orthogonal)
    run_both(classes, name)


@EACH
def test_abstract_base_before_the_layer(name: str) -> None:
    """pytorch-forecasting's order of bases: an abstract RNNBase, then the layer."""

    class Base(ABC, nn.RNNBase):
        @abstractmethod
        def init_hidden(self) -> int: ...

    classes = []
    for layer in both(name):

        class Derived(Base, layer):  # type: ignore[valid-type, misc]
            def init_hidden(self) -> int:
                return 1

        classes.append(Derived)
    run_both(classes, name)
    with pytest.raises(TypeError, match="abstract"):
        type("Unfinished", (Base, both(name)[1]), {})(I, H)


@EACH
def test_base_and_mixin_orders(name: str) -> None:
    class Mixin:
        def twice(self, x: Tensor) -> Any:
            return self(2 * x)[0]  # type: ignore[operator]

    class Abstract(ABC):
        @abstractmethod
        def twice(self, x: Tensor) -> Any: ...

    layer = both(name)[1]
    for bases in ((Mixin, layer), (layer, Mixin), (Mixin, Abstract, layer), (Mixin, nn.RNNBase, layer)):
        if bases[1] is nn.RNNBase:
            try:
                type("Theirs", (Mixin, nn.RNNBase, both(name)[0]), {})
            except TypeError:
                continue
        module = type("Mixed", bases, {})(I, H)
        assert module.twice(torch.randn(3, 2, I)).shape == (3, 2, H)


@pytest.mark.parametrize("packed", [False, True], ids=["dense", "packed"])
@pytest.mark.parametrize(("name", "hook"), [(n, h) for n in THREE for h in (LSTM_HOOKS if n == "LSTM" else HOOKS)])
def test_hooks_are_called(name: str, hook: str, packed: bool) -> None:
    """The methods with which torch.nn's layers check their arguments are called as there: as often, and from there."""
    if packed and name == "LSTM" and hook != "permute_hidden":
        pytest.skip("torch's LSTM forgets to check a packed input; ours does")
    classes = []
    for base in both(name):

        def method(self: Any, *args: Any, **kwargs: Any) -> Any:
            shown = [
                list(a.shape) if isinstance(a, Tensor) else None if a is None else type(a).__name__ for a in args[:1]
            ]
            self.__dict__.setdefault("seen", []).append(str(shown))
            return getattr(super(type(self), self), hook)(*args, **kwargs)

        classes.append(type("Watched", (base,), {hook: method}))
    run_both(classes, name, packed)


@pytest.mark.parametrize(("name", "hook"), [(n, h) for n in THREE for h in (LSTM_HOOKS if n == "LSTM" else HOOKS)])
def test_hooks_can_refuse(name: str, hook: str) -> None:
    class Refused(Exception):
        pass

    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        raise Refused(hook)

    for base in both(name):
        module = type("Refusing", (base,), {hook: method})(I, H)
        hx = torch.zeros(1, 2, H)
        with pytest.raises(Refused):
            module(torch.randn(3, 2, I), (hx, hx) if name == "LSTM" else hx)


@EACH
def test_hooks_can_be_called(name: str) -> None:
    """By a subclass or from outside, with the same answers."""
    theirs, ours = (cls(I, H, 2, bidirectional=True) for cls in both(name))
    x, h = torch.randn(3, 2, I), torch.randn(4, 2, H)
    order = torch.tensor([1, 0])
    hx: Any = (h, h + 1) if name == "LSTM" else h
    calls = {
        "check_input": (x, None), "get_expected_hidden_size": (x, None), "check_hidden_size": (h, (4, 2, H)),
        "check_forward_args": (x, hx, None), "permute_hidden": (hx, order), "flatten_parameters": (),
    }  # fmt: skip
    if name == "LSTM":
        calls["get_expected_cell_size"] = (x, None)
    for method, args in calls.items():
        assert_same(getattr(ours, method)(*args), getattr(theirs, method)(*args))
    bad = {"check_input": (x[..., 1:], None), "check_hidden_size": (h[1:], (4, 2, H)), "check_forward_args": (
        x, (h[1:], h) if name == "LSTM" else h[1:], None)}  # fmt: skip
    for method, args in bad.items():
        results = []
        for module in (ours, theirs):
            try:
                getattr(module, method)(*args)
            except Exception as error:
                results.append(Raised(error))
        assert len(results) == 2 and str(results[0].error) == str(results[1].error)
        assert_same(*results)


@EACH
def test_lenient_override_is_obeyed(name: str) -> None:
    """A subclass that broadcasts one state to the batch, by overriding the check and the permutation."""
    classes = []
    for base in both(name):

        class Wide(base):  # type: ignore[valid-type, misc]
            def permute_hidden(self, hx: Any, permutation: Tensor | None) -> Any:
                return tuple(2 * h for h in hx) if isinstance(hx, tuple) else 2 * hx

        classes.append(Wide)
    T, B = ABOVE[name]
    x, results = torch.randn(T, B, I), []
    h = torch.randn(1, B, H)
    for cls in classes:
        torch.manual_seed(1)
        out, state = cls(I, H)(x, (h, h) if name == "LSTM" else h)
        results.append([out, state])
    assert_same(results[1], results[0])


class Kept(fastcells.GRU):
    """At module level, so that pickle finds it."""

    def __init__(self, *args: Any, extra: int = 0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.extra = extra


def test_subclass_copies() -> None:
    module = Kept(I, H, extra=3)
    for again in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert type(again) is Kept and again.extra == 3
        assert torch.equal(again.weight_hh_l0, module.weight_hh_l0)


@pytest.mark.parametrize("name", ["GRUCell", "LSTMCell", "RNNCell"])
def test_cells_are_overridden(name: str) -> None:
    results = []
    for base in (getattr(nn, name), getattr(fastcells, name)):

        class Scaled(base):  # type: ignore[valid-type, misc]
            def forward(self, input: Tensor, hx: Any = None) -> Any:
                return super().forward(2 * input, hx)

        class Abstract(ABC, nn.RNNCellBase):
            @abstractmethod
            def size(self) -> int: ...

        class Derived(Abstract, base):  # type: ignore[valid-type, misc]
            def size(self) -> int:
                return self.hidden_size

        torch.manual_seed(1)
        scaled, derived, x = Scaled(I, H), Derived(I, H), torch.randn(2, I)
        results.append([scaled(x), derived(x), derived.size()])
    assert_same(results[1], results[0])
