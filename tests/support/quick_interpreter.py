"""Triton's interpreter, without what it repeats: a third of the time of our small kernels.

It puts its own functions in the place of `triton.language`'s when a launch begins, and takes them out at its end; but
each call of a function of ours within the launch looks through the whole language again for what is left to replace,
a millisecond each time. Here such a call replaces nothing where the launch has done so. And the table of numpy's types
is made for each look-up: here what was found is kept.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from types import ModuleType
from typing import Any

from triton.runtime import interpreter


@cache
def languages(function: Callable[..., Any]) -> frozenset[ModuleType]:
    """Which of the two modules that hold the language a kernel's file knows: those are replaced for it."""
    known = (interpreter.tl, interpreter.tl.core)
    return frozenset(v for v in function.__globals__.values() if isinstance(v, ModuleType) and v in known)


def install() -> None:
    """For all launches of this process from now on; a second time changes nothing."""
    if not hasattr(interpreter._patch_lang, "once"):
        interpreter._patch_lang = _once_a_launch(interpreter._patch_lang)
        interpreter._get_np_dtype = _kept(interpreter._get_np_dtype)


def _once_a_launch(replace: Callable[[Any], Any]) -> Callable[[Any], Any]:
    replaced: set[ModuleType] = set()

    def replace_once(function: Callable[..., Any]) -> Any:
        if languages(function) <= replaced:
            return interpreter._LangPatchScope()
        scope = replace(function)
        restore = scope.restore
        replaced.update(languages(function))

        def end() -> None:  # a launch's; a call's is never asked for
            restore()
            replaced.clear()

        scope.restore = end
        return scope

    replace_once.once = True  # type: ignore[attr-defined]
    return replace_once


def _kept(look_up: Callable[[Any], Any]) -> Callable[[Any], Any]:
    kept = cache(look_up)

    def numpy_dtype(dtype: Any) -> Any:
        scalar = dtype.scalar
        return kept(scalar) if type(scalar) is interpreter.tl.dtype else look_up(dtype)  # pointers have no hash

    return numpy_dtype
