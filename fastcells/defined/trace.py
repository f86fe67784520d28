"""A function of torch operators, traced by torch.fx and turned into operations of a graph."""

from __future__ import annotations

import linecache
import operator
import sys
from collections.abc import Callable, Mapping
from types import CodeType, FrameType
from typing import Any, NoReturn

import torch
from torch import Tensor, fx

from fastcells.defined.builder import Builder
from fastcells.defined.operators import OPERATORS, as_number, name_of
from fastcells.errors import DefinitionError

_ALLOWED = (
    "a cell's rule is elementwise: + - * /, pow, neg, abs, sigmoid, tanh, relu, exp, log, log1p, softplus, logsigmoid, "
    "sqrt, minimum, maximum, where, clamp and comparisons"
)


class _Proxy(fx.Proxy):
    """Also what Python asks of a number by name."""

    def __getattr__(self, name: str) -> Any:
        if name not in OPERATORS:
            assert isinstance(self.tracer, _Tracer)
            raise self.tracer.error(f"Tensor.{name} is not an operator of a cell: {_ALLOWED}")
        return super().__getattr__(name)

    def __abs__(self) -> Any:
        return self.tracer.create_proxy("call_function", operator.abs, (self,), {})

    def __float__(self) -> NoReturn:
        self._refuse("float() or a function of the math module")

    def __int__(self) -> NoReturn:
        self._refuse("int()")

    def __len__(self) -> NoReturn:
        self._refuse("len()")

    def __setitem__(self, *_: Any) -> NoReturn:
        self._refuse("an assignment to elements")

    def _refuse(self, what: str) -> NoReturn:
        assert isinstance(self.tracer, _Tracer)
        raise self.tracer.error(f"{what} needs a number, and this is a tensor of all units")


class _Tracer(fx.Tracer):
    """Refuses what is not in OPERATORS as soon as the function calls it, and notes the line of every operation."""

    def __init__(self, code: CodeType) -> None:
        super().__init__()
        self.code = code

    def error(self, problem: str) -> DefinitionError:
        return DefinitionError(f"{_where(_line(self.code))}: {problem}")

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def create_proxy(self, kind: str, target: Any, *args: Any, **kwargs: Any) -> Any:
        if kind in ("call_function", "call_method") and target not in OPERATORS:
            raise self.error(f"{name_of(target)} is not an operator of a cell: {_ALLOWED}")
        proxy = super().create_proxy(kind, target, *args, **kwargs)
        proxy.node.meta["where"] = _where(_line(self.code))
        return proxy

    def create_arg(self, a: Any) -> Any:
        if isinstance(a, Tensor):
            raise self.error(
                f"a tensor of shape {list(a.shape)} from outside of the function: pass what is learned as `extra`, and "
                "write a constant as a number"
            )
        return super().create_arg(a)

    def to_bool(self, obj: fx.Proxy) -> NoReturn:
        raise self.error("control flow cannot depend on a tensor's values: use torch.where, torch.minimum or maximum")

    def iter(self, obj: fx.Proxy) -> NoReturn:
        raise self.error("a tensor's elements cannot be walked through: a cell's rule is elementwise")


def trace(function: Callable[..., Any], builder: Builder, inputs: Mapping[str, int]) -> tuple[int, ...]:
    """Add the function's operations to a builder. inputs: the place of each parameter's value, by its name.

    Returns the places of what the function returns.

    Raises:
        DefinitionError: an operator that is not elementwise or not known, or control flow that depends on values.
    """
    code = function.__code__
    tracer = _Tracer(code)
    proxies: dict[str, Any] = {}

    def note_names(frame: FrameType, event: str, _: Any) -> None:
        if event == "return" and frame.f_code is code:
            proxies.update({name: value for name, value in frame.f_locals.items() if isinstance(value, fx.Proxy)})

    before = sys.getprofile()
    sys.setprofile(note_names)  # what the user calls a value is the only name that a reader will know
    try:
        traced = tracer.trace(_positional(function, tuple(inputs)))
    except (DefinitionError, torch.fx.proxy.TraceError) as error:
        raise error if isinstance(error, DefinitionError) else tracer.error(str(error)) from error
    finally:
        sys.setprofile(before)
    names = {proxy.node: name for name, proxy in proxies.items()}
    places: dict[fx.Node, int] = {}

    def place_of(value: Any) -> Any:
        if isinstance(value, fx.Node):
            return places[value]
        return builder.constant(value) if isinstance(value, int | float) and not isinstance(value, bool) else value

    for node in traced.nodes:
        if node.op == "placeholder":
            places[node] = inputs[str(node.target)]
        elif node.op == "output":
            returned = node.args[0] if isinstance(node.args[0], tuple | list) else (node.args[0],)
            return _results(returned, place_of, builder, _where(code.co_firstlineno, code))
        else:
            args = [place_of(a) for a in node.args]
            kwargs = {k: place_of(v) for k, v in node.kwargs.items()}
            try:
                places[node] = OPERATORS[node.target](builder, *args, **kwargs)
            except TypeError as error:
                problem = str(error).split("() ", 1)[-1]
                raise DefinitionError(f"{node.meta['where']}: {name_of(node.target)}: {problem}") from None
            if node in names and places[node] not in inputs.values():
                builder.named(places[node], names[node])
    raise AssertionError("torch.fx has recorded no output")


def _results(returned: Any, place_of: Callable[[Any], Any], builder: Builder, where: str) -> tuple[int, ...]:
    found = [place_of(value) for value in returned]
    for value in found:
        if not isinstance(value, int):
            raise DefinitionError(f"{where}: the function must return tensors, got {type(value).__name__}")
    return tuple(as_number(builder, place) for place in found)


def _positional(function: Callable[..., Any], names: tuple[str, ...]) -> Callable[..., Any]:
    """The same function with parameters that torch.fx can read, whatever stands in front of the user's."""
    made: dict[str, Any] = {"function": function}
    exec(f"def traced({', '.join(names)}): return function({', '.join(f'{n}={n}' for n in names)})", made)
    result: Callable[..., Any] = made["traced"]
    return result


def _line(code: CodeType) -> tuple[str, int]:
    """The innermost line of the user's own file that is running."""
    frame: FrameType | None = sys._getframe(1)
    fallback = code.co_filename, code.co_firstlineno
    while frame is not None:
        if frame.f_code.co_filename == code.co_filename:
            return code.co_filename, frame.f_lineno
        frame = frame.f_back
    return fallback


def _where(line: tuple[str, int] | int, code: CodeType | None = None) -> str:
    """As `file.py, line 12: "h = h @ w"`."""
    file, number = (code.co_filename, line) if isinstance(line, int) and code is not None else line  # type: ignore[misc]
    text = linecache.getline(file, number).strip()
    name = file.rsplit("/", 1)[-1]
    return f"{name}, line {number}" + (f", `{text}`" if text else "")
