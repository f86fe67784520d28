"""Defined cells as the cases that tests of the kernels run over."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from fastcells import dispatch, one_direction, zoo
from fastcells.backends.base import Call, LayerWeights, Steps
from fastcells.defined.layer import DefinedLayer
from fastcells.spec import RecurrentWeights
from fastcells.spec.recurrent import DENSE
from fastcells.token_ids import is_token_ids
from tests.defined import cells
from tests.support.shapes import Case, Shape

LAYERS: dict[str, type[DefinedLayer]] = {
    name: getattr(module, name)
    for module, names in (
        (zoo, ("JANET", "CoupledGateLSTM", "MinimalGatedUnit", "UGRNN", "LiGRU")),
        (cells, ("TwinGRU", "TwinResetBefore", "TwinLSTM", "TwinRNN", "TwinRelu", "EveryOperator", "OperandOfParts")),
    )
    for name in names
}


@dataclass(frozen=True)
class DefinedCase(Case):
    """A cell as `functional.gru` would have it."""

    def ours(self, *args: Any, **options: Any) -> tuple[Tensor, ...]:
        impl, lengths = options.pop("impl", "auto"), options.pop("lengths", None)
        x, state, (w_ih, w_hh, b_ih, b_hh, *extra) = args[0], args[1 : 1 + self.states], args[1 + self.states :]
        steps = Steps(lengths=None if lengths is None else lengths.to(torch.int32), **options)
        call = Call(impl, self.spec, is_token_ids(x), *x.shape[:2], w_ih, w_hh, steps.options)
        weights = LayerWeights(w_ih, b_ih, RecurrentWeights(w_hh, b_hh, extra=tuple(extra)))
        out, last = one_direction.run(dispatch.choose(call), self.spec, x, state, weights, steps)
        return out, *last

    def arguments(self, shape: Shape, dtype: torch.dtype = torch.float64, grad: bool = True) -> list[Tensor]:
        """Extra parameters come last. All states but h are positive, as a normaliser is."""
        args, spec, H = super().arguments(shape, dtype, grad), self.spec, shape.H
        if spec.recurrent is not DENSE:
            size = spec.recurrent.shape(spec.num_gates, H)
            args[2 + self.states] = (torch.randn(size, dtype=torch.float64) * H**-0.5).to(dtype).requires_grad_(grad)
        args[2 : 1 + self.states] = [s.detach().abs().add(0.5).requires_grad_(grad) for s in args[2 : 1 + self.states]]
        return [*args, *(torch.randn(H, dtype=torch.float64).to(dtype).requires_grad_(grad) for _ in spec.extra)]


CASES = {name: DefinedCase(name, "", layer.kind.spec()) for name, layer in LAYERS.items()}
# Further parameters, more than two states, diagonal weights, heads.
KINDS = {
    name: DefinedCase(name, "", layer.kind.spec(heads))
    for name, layer, heads in (
        ("PeepholeLSTM", zoo.PeepholeLSTM, 1),
        ("FourStates", cells.FourStates, 1),
        ("SLSTM", zoo.SLSTM, 1),
        ("SLSTM/2", zoo.SLSTM, 2),
        ("IndRNN", zoo.IndRNN, 1),
        ("DiagonalFour", cells.DiagonalFour, 1),
    )
}
EACH_DEFINED = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
