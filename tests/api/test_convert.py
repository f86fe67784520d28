"""convert, to_torch and explain: modules change their class, and nothing else about the model does."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.nn.utils.rnn import pack_sequence
from torch.utils._pytree import tree_leaves

import fastcells

PAIRS = {
    "RNN": (nn.RNN, fastcells.RNN, {"nonlinearity": "relu"}),
    "GRU": (nn.GRU, fastcells.GRU, {"bidirectional": True, "num_layers": 2, "batch_first": True}),
    "LSTM": (nn.LSTM, fastcells.LSTM, {"proj_size": 3, "bias": False, "num_layers": 2, "dropout": 0.5}),
    "RNNCell": (nn.RNNCell, fastcells.RNNCell, {"nonlinearity": "relu"}),
    "GRUCell": (nn.GRUCell, fastcells.GRUCell, {"bias": False}),
    "LSTMCell": (nn.LSTMCell, fastcells.LSTMCell, {}),
}
EACH = pytest.mark.parametrize("kind", PAIRS)
BOTH_WAYS = pytest.mark.parametrize("back", [False, True], ids=["convert", "to_torch"])
I, H = 4, 6  # noqa: E741


def module(kind: str) -> nn.Module:
    theirs, _, options = PAIRS[kind]
    return theirs(I, H, **options)


def some(kind: str) -> Tensor:
    return torch.randn(3, I) if kind.endswith("Cell") else torch.randn(5, 3, I)


def same(a: Any, b: Any) -> bool:
    return all(torch.equal(x, y) for x, y in zip(tree_leaves(a), tree_leaves(b), strict=True))


class Tree(nn.Module):
    """Layers at every depth, in every container, one of them twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.GRU(I, H)
        self.many = nn.ModuleList([nn.LSTM(H, H), nn.ModuleDict({"cell": nn.GRUCell(H, H), "linear": nn.Linear(H, H)})])
        self.again = self.first
        self.deep = nn.Sequential(nn.Sequential(nn.Identity(), nn.RNN(H, H)))
        self.nothing = None
        self.register_module("empty", None)

    def forward(self, x: Tensor) -> Tensor:
        h = self.many[0](self.first(x)[0] + self.again(x)[0])[0]
        return self.deep(self.many[1]["linear"](h) + self.many[1]["cell"](h[0]))[0]


@EACH
def test_root(kind: str) -> None:
    theirs, ours, _ = PAIRS[kind]
    original = module(kind)
    x, parameters = some(kind), list(original.parameters())
    torch.manual_seed(0)
    expected = original(x)
    twin = fastcells.convert(original)
    assert type(twin) is ours
    torch.manual_seed(0)
    assert same(twin(x), expected)
    back = fastcells.to_torch(twin)
    assert type(back) is theirs
    assert vars(back).keys() == vars(module(kind)).keys()
    torch.manual_seed(0)
    assert same(back(x), expected)
    for m in (twin, back):
        assert all(p is q for p, q in zip(m.parameters(), parameters, strict=True))
        assert list(m.state_dict()) == list(module(kind).state_dict())
    assert repr(twin) == repr(back) == repr(module(kind))


def test_tree() -> None:
    model = Tree()
    x, keys = torch.randn(5, 3, I), list(model.state_dict())
    expected, parameters = model(x), dict(model.named_parameters())
    assert fastcells.convert(model) is model
    kinds = [type(m) for m in model.modules()]
    assert not set(kinds) & {nn.GRU, nn.LSTM, nn.GRUCell, nn.RNN}
    assert {fastcells.GRU, fastcells.LSTM, fastcells.GRUCell, fastcells.RNN} <= set(kinds)
    assert model.first is model.again
    assert list(model.state_dict()) == keys
    assert same(model(x), expected)
    assert fastcells.to_torch(fastcells.convert(model)) is model
    assert type(model.first) is nn.GRU and model.first is model.again
    assert same(model(x), expected)
    assert all(p is parameters[name] for name, p in model.named_parameters())


def test_from_torch_leaves_the_model_alone() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.GRU(4, 5))
    copied, x = fastcells.from_torch(model), torch.randn(6, 2, 3)
    assert type(model[1]) is nn.GRU and type(copied[1]) is fastcells.GRU
    assert not {p.data_ptr() for p in model.parameters()} & {p.data_ptr() for p in copied.parameters()}
    torch.testing.assert_close(copied(x), model(x))


@BOTH_WAYS
def test_optimizer_goes_on(back: bool) -> None:
    model = fastcells.convert(Tree()) if back else Tree()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    (fastcells.to_torch if back else fastcells.convert)(model)
    x = torch.randn(5, 3, I)
    before = model(x)
    before.backward(torch.randn_like(before))
    optimizer.step()
    assert not torch.equal(model(x), before)


def test_flags_and_own_attributes() -> None:
    model = nn.Sequential(nn.GRU(I, H), nn.GRU(I, H)).eval()
    model[1].train().requires_grad_(False)
    model[0].note = "mine"
    model[0].register_buffer("counter", torch.ones(1))
    fastcells.convert(model)
    assert [m.training for m in model] == [False, True]
    assert [p.requires_grad for p in model.parameters()] == [True] * 4 + [False] * 4
    assert model[0].note == "mine" and "0.counter" in model.state_dict()
    model.double()
    assert model[0](torch.randn(5, 3, I).double())[0].dtype == torch.float64


HOOKS: dict[str, Callable[[nn.Module, Callable[..., None]], Any]] = {
    "forward": lambda m, f: m.register_forward_hook(f),
    "forward_pre": lambda m, f: m.register_forward_pre_hook(f),
    "forward_kwargs": lambda m, f: m.register_forward_hook(f, with_kwargs=True),
    "full_backward": lambda m, f: m.register_full_backward_hook(f),
    "state_dict": lambda m, f: m.register_state_dict_post_hook(f),
    "state_dict_pre": lambda m, f: m.register_state_dict_pre_hook(f),
    "load_state_dict_pre": lambda m, f: m.register_load_state_dict_pre_hook(f),
    "load_state_dict_post": lambda m, f: m.register_load_state_dict_post_hook(f),
}


@BOTH_WAYS
@pytest.mark.parametrize("kind", HOOKS)
def test_hooks(kind: str, back: bool) -> None:
    """They run as before, are given the module that is now in the model, and can be removed."""
    model = nn.Sequential(fastcells.GRU(I, H) if back else nn.GRU(I, H))
    calls: list[nn.Module] = []
    handle = HOOKS[kind](model[0], lambda m, *args: calls.append(m))
    (fastcells.to_torch if back else fastcells.convert)(model)
    gc.collect()  # the replaced module is gone now, and what referred to it weakly

    def use() -> None:
        out = model(torch.randn(5, 3, I, requires_grad=True))[0]
        out.backward(torch.randn_like(out))
        model.load_state_dict(model.state_dict())

    use()
    assert calls and all(m is model[0] for m in calls)
    calls.clear()
    handle.remove()
    use()
    assert not calls


class OwnGRU(nn.GRU):
    pass


class OwnFastGRU(fastcells.GRU):
    pass


def test_subclasses_are_left_alone() -> None:
    model = nn.Sequential(OwnGRU(I, H), OwnFastGRU(I, H))
    parametrizations.weight_norm(model[0], "weight_hh_l0")
    before = list(model)
    fastcells.to_torch(fastcells.convert(model))
    assert all(a is b for a, b in zip(model, before, strict=True))


@pytest.mark.parametrize("name", ["orthogonal", "weight_norm", "spectral_norm"])
@EACH
def test_parametrized(kind: str, name: str) -> None:
    weight = "weight_hh" if kind.endswith("Cell") else "weight_hh_l0"
    model = nn.Sequential(getattr(parametrizations, name)(module(kind), weight)).eval()
    x, keys = some(kind), list(model.state_dict())
    expected = model(x)
    fastcells.convert(model)
    assert isinstance(model[0], PAIRS[kind][1]) and not isinstance(model[0], PAIRS[kind][0])
    assert list(model.state_dict()) == keys
    assert same(model(x), expected)
    assert isinstance(fastcells.to_torch(model)[0], PAIRS[kind][0])
    assert same(model(x), expected)
    nn.utils.parametrize.remove_parametrizations(model[0], weight)
    assert type(model[0]) is PAIRS[kind][0]
    assert same(model(x), expected)


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
def test_old_weight_norm() -> None:
    model = nn.Sequential(nn.utils.weight_norm(nn.GRU(I, H), "weight_hh_l0"))
    x = torch.randn(5, 3, I)
    fastcells.convert(model)
    before = model(x)[0]
    with torch.no_grad():
        model[0].weight_hh_l0_g.mul_(2)
    assert not torch.equal(model(x)[0], before)
    nn.utils.remove_weight_norm(model[0], "weight_hh_l0")
    assert "weight_hh_l0" in dict(model[0].named_parameters())


def test_module_that_was_compiled() -> None:
    """`Module.compile` binds the module it was called on; the twin must not go on calling that one."""
    model = nn.Sequential(nn.GRU(I, H))
    model[0].compile(backend="eager")
    fastcells.convert(model)
    assert model(torch.randint(I, (5, 3)))[0].shape == (5, 3, H)


@pytest.mark.parametrize("wrap", [None, "model"], ids=["root", "nested"])
@pytest.mark.parametrize("name", ["GRU", "GRUCell"])
def test_reset_before_has_no_way_back(name: str, wrap: str | None) -> None:
    layer = getattr(fastcells, name)(I, H, reset_after=False)
    model = nn.ModuleDict({"first": fastcells.LSTM(I, H), "deep": nn.Sequential(layer)}) if wrap else layer
    before = list(model.modules())
    with pytest.raises(ValueError, match=r"'deep\.0'.*reset-before" if wrap else "the model itself.*reset-before"):
        fastcells.to_torch(model)
    assert all(a is b for a, b in zip(model.modules(), before, strict=True))


X, IDS = torch.randn(5, 3, I), torch.zeros(5, 3, dtype=torch.long)
PATHS = [
    (fastcells.GRU(I, H), X, "aten", "ATen's fused recurrence"),
    (fastcells.GRU(I, H), X[:, 0], "aten", "ATen's fused recurrence"),
    (fastcells.LSTM(I, H), pack_sequence([X[:, 0]]), "aten", "ATen's fused recurrence"),
    (fastcells.RNN(I, H, impl="torch"), X, "aten", "ATen's fused recurrence"),
    (fastcells.GRU(I, H, reset_after=False), X[:1], "recurrence", "reset-before"),
    (fastcells.GRU(I, H, impl="torch"), IDS, "recurrence", "token ids"),
    (fastcells.LSTM(I, H, impl="torch"), pack_sequence([IDS[:2, 0]]), "recurrence", "token ids"),
    (fastcells.LSTM(I, H), pack_sequence([IDS[:1, 0]]), "one-hot", "one step"),
    (fastcells.GRUCell(I, H), X[0], "aten", "ATen's fused recurrence"),
    (fastcells.GRUCell(I, H, reset_after=False), X[0], "recurrence", "reset-before"),
    (fastcells.LSTMCell(I, H), IDS[0], "one-hot", "one step"),
    (fastcells.convert(nn.GRU(I, H)), X, "aten", "ATen's fused recurrence"),
]


@pytest.mark.parametrize(("layer", "x", "path", "reason"), PATHS, ids=[f"{i}-{row[2]}" for i, row in enumerate(PATHS)])
def test_explain(layer: nn.Module, x: Any, path: str, reason: str) -> None:
    explanation = fastcells.explain(layer, x)
    (choice,) = explanation.values()
    assert isinstance(choice, fastcells.Choice) and str(explanation) == str(choice)
    assert list(explanation) == ["cell" if isinstance(layer, nn.RNNCellBase) else "l0"]
    assert (choice.impl, choice.path) == ("torch", path)
    assert reason in choice.reason and str(choice) == f"torch ({path}): {choice.reason}"


def test_explain_answers_for_each_layer_and_direction() -> None:
    stack = fastcells.LSTM(I, H, 2, bidirectional=True, impl="torch")
    explanation = fastcells.explain(stack, IDS)
    assert list(explanation) == ["l0", "l0_reverse", "l1", "l1_reverse"]
    assert [explanation[name].path for name in explanation] == ["recurrence", "recurrence", "aten", "aten"]
    assert str(explanation).splitlines()[0].startswith("l0: torch (recurrence): token ids")
    assert explanation.impl == "torch"
    with pytest.raises(ValueError, match="the layers differ in path"):
        explanation.path  # noqa: B018


@EACH
def test_explain_points_to_convert(kind: str) -> None:
    with pytest.raises(TypeError, match=rf"torch\.nn\.modules\.rnn\.{kind}; fastcells\.convert"):
        fastcells.explain(module(kind), some(kind))
    with pytest.raises(TypeError, match=r"got torch\.nn\.modules\.linear\.Linear$"):
        fastcells.explain(nn.Linear(I, H), X)


@EACH
def test_impl_is_checked(kind: str) -> None:
    ours = PAIRS[kind][1]
    assert ours(I, H, impl="torch").impl == "torch"
    with pytest.raises(ValueError, match=r"'auto', 'torch', 'cpu', 'gluon', 'triton', 'triton-step', got 'nonsense'"):
        ours(I, H, impl="nonsense")
    late = ours(I, H)
    late.impl = "nonsense"
    for call in (late, lambda x: fastcells.explain(late, x)):
        with pytest.raises(
            ValueError, match=r"'auto', 'torch', 'cpu', 'gluon', 'triton', 'triton-step', got 'nonsense'"
        ):
            call(some(kind))
