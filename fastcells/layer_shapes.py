"""What every layer checks and completes before it runs: the input's shape and dtype, and the initial state."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.modules.rnn import RNNBase

from fastcells import initial_state
from fastcells.modes import recording
from fastcells.token_ids import ID_DTYPES


class LayerShapes(RNNBase):
    """As torch.nn's layers check them, and token ids beside dense features."""

    weight_ih_l0: Tensor
    label: ClassVar[str]  # the name that torch's own error messages carry
    learned_state: bool = False

    def __init__(self, *args: Any, learned_state: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if learned_state:
            initial_state.register(self)

    def reset_parameters(self) -> None:
        """As torch.nn's; a learned initial state starts from zeros."""
        super().reset_parameters()
        initial_state.reset(self)

    def extra_repr(self) -> str:
        return super().extra_repr() + (", learned_state=True" if self.learned_state else "")

    def _sizes(self, data: Tensor, batch_sizes: Tensor | None, ids: bool) -> tuple[int, int, float]:
        """T and B, and for a packed batch T * B over the number of tokens."""
        if batch_sizes is not None:
            steps, batch = len(batch_sizes), int(batch_sizes[0])
            return steps, batch, steps * batch / max(1, len(data))
        sizes = data.shape
        if len(sizes) + ids < 3:
            return sizes[0], 1, 1.0
        return (sizes[1], sizes[0], 1.0) if self.batch_first else (sizes[0], sizes[1], 1.0)

    def _is_unbatched(self, data: Tensor, ids: bool) -> bool:
        """Whether a tensor is one sequence. ValueError where it is neither that nor a batch."""
        dim = data.dim() + ids
        if dim not in (2, 3):
            kind = "token ids to be 1D or 2D" if ids else "input to be 2D or 3D"
            tensor = " tensor" if self.label == "RNN" else ""
            raise ValueError(f"{self.label}: Expected {kind}, got {data.dim()}D{tensor} instead")
        return dim == 2

    def _initial_state(
        self,
        data: Tensor,
        batch_sizes: Tensor | None,
        order: Tensor | None,
        ids: bool,
        hx: Any,
        unbatched: bool,
        weight: Tensor,
    ) -> Any:
        """hx with a batch dimension, in the order of the rows; where it is None, zeros or what has been learned."""
        if hx is not None:
            if batch_sizes is None:
                self._check_state_dim(hx, 2 if unbatched else 3)
            return self.permute_hidden(each_of(hx, Tensor.unsqueeze, 1) if unbatched else hx, order)
        if batch_sizes is None:
            batch: Any = data.size(0 if self.batch_first else 1)
        else:  # While torch.jit.trace records, an int would freeze the batch.
            batch = batch_sizes[0] if recording() else int(batch_sizes[0])
        if self.learned_state:
            return initial_state.of_rows(self, batch, weight.dtype if ids else data.dtype)
        return self._zeros(data, ids, batch, weight)

    def _check_state_dim(self, hx: Any, dim: int) -> None:
        """RuntimeError unless a given state has a batch dimension just where the input has one; dim: 2 or 3."""
        if hx.dim() != dim:
            kind = "batched" if dim == 3 else "unbatched"
            raise RuntimeError(f"For {kind} {dim}-D input, hx should also be {dim}-D but got {hx.dim()}-D tensor")

    def check_input(self, input: Tensor, batch_sizes: Tensor | None) -> None:
        """Raise unless dtype and shape of the input fit: as torch.nn's, which subclasses call and override.

        input: [T, B, I] or [B, T, I], [N, I] of a packed batch; without its last dimension if it is token ids.

        Raises:
            ValueError: another dtype than the weights'. RuntimeError: another number of dimensions or of features.
        """
        ids = input.dtype in ID_DTYPES
        if not ids and not torch._C._is_any_autocast_enabled():
            weight = self._parameters.get("weight_ih_l0")
            dtype = (self.weight_ih_l0 if weight is None else weight).dtype
            if input.dtype != dtype:
                raise ValueError(
                    f"RNN input dtype ({input.dtype}) does not match weight dtype ({dtype}). "
                    f"Convert input: input.to({dtype}), or convert model: model.to({input.dtype})"
                )
        dim = (3 if batch_sizes is None else 2) - ids
        if input.dim() != dim:
            raise RuntimeError(f"input must have {dim} dimensions, got {input.dim()}")
        if not ids and input.size(-1) != self.input_size:
            raise RuntimeError(
                f"input.size(-1) must be equal to input_size. Expected {self.input_size}, got {input.size(-1)}"
            )

    def _zeros(self, data: Tensor, ids: bool, batch: Any, weight: Tensor) -> Any:
        """The initial state where none is given."""
        rows = self.num_layers * (2 if self.bidirectional else 1)
        dtype = weight.dtype if ids else data.dtype
        return data.new_zeros(rows, batch, self.hidden_size, dtype=dtype)


def each_of(hx: Any, change: Callable[..., Tensor], dim: int) -> Any:
    return tuple([change(s, dim) for s in hx]) if isinstance(hx, tuple) else change(hx, dim)


def pair_of(name: str, state: Any) -> tuple[Tensor, Tensor] | None:
    """h and c."""
    if state is None:
        return None
    if isinstance(state, Tensor):
        what = f"a tuple ({'h_0, c_0' if name == 'hx' else 'h, c'})"
        raise TypeError(f"LSTM: {name} must be {what}, got a tensor of shape {list(state.shape)}")
    if len(state) != 2:
        raise RuntimeError(f"lstm expects two hidden states, got {len(state)}")
    return state[0], state[1]
