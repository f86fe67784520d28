"""Single steps in C, of a state that changes in place: what arrives step by step."""

from __future__ import annotations

from torch import Tensor

from fastcells.backends.cpu import checks as check
from fastcells.backends.cpu import native
from fastcells.spec import SPECS


class StepInPlace:
    """Steps of one sequence, each of which makes `state` the state after it: `StepInPlace(cell, state, weights)(x)`.

    state: (h,) or (h, c), each [H] and contiguous. weights: w_ih [G*H, I], w_hh [G*H, H], b_ih and b_hh [G*H] or None.
    All float32. They keep their shapes, and are read anew at each step; checked again only if one lies elsewhere.

    Raises:
        as `forward`.
    """

    def __init__(
        self, cell: str, state: tuple[Tensor, ...], weights: tuple[Tensor, Tensor, Tensor | None, Tensor | None]
    ) -> None:
        self.cell, self.state, self.weights = cell, state, weights
        self._prepare()
        self._fresh = True

    def _prepare(self) -> None:
        spec = SPECS[self.cell]
        w_ih, w_hh, b_ih, b_hh = self.weights
        (rows, I), (_, H) = check.matrix("w_ih", w_ih), check.matrix("w_hh", w_hh)  # noqa: E741
        gates = len(spec.gates) * H
        w_ih, w_hh = check.float32("w_ih", w_ih, (gates, I)), check.float32("w_hh", w_hh, (gates, H))
        b_ih, b_hh = (None if b is None else check.float32(n, b, (rows,)) for n, b in (("b_ih", b_ih), ("b_hh", b_hh)))
        h, c = check.pair(self.state, len(spec.states))
        for s in self.state:
            if check.float32("state", s, (H,)).data_ptr() != s.data_ptr():
                raise RuntimeError(f"a state that changes in place must be contiguous, got strides {s.stride()}")
        check.written(("h", h, (H,)), ("c", c, (H,)))
        self._read = w_ih, w_hh, b_ih, b_hh, h, c  # as C reads them: a copy of what is not contiguous
        self._given = *self.weights, h, c
        self._addresses = [0 if t is None else t.data_ptr() for t in self._read]
        self._sizes = native._NUMBERS[self.cell], H, I

    def __call__(self, x: Tensor | int) -> None:
        """x: [I], or a token id. Raises as `forward`, and IndexError for an id outside [0, I)."""
        if self._fresh:
            self._fresh = False
        elif [0 if t is None else t.data_ptr() for t in self._given] != self._addresses:
            self._prepare()
        *_, H, I = self._sizes  # noqa: E741
        if isinstance(x, int):
            if not 0 <= x < I:
                raise IndexError(f"token id {x} is outside [0, {I})")
            token, address = x, 0
        else:
            x = check.float32("x", x, (I,))
            token, address = I, x.data_ptr()
        if H:
            threads = native._threads(self.weights[1].numel())
            native._cpu.step_in_place(native._instructions, threads, *self._sizes, token, address, *self._addresses)
