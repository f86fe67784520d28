"""What the three layers share: checking and shaping the input, and the walk over layers and directions.

They subclass `torch.nn.modules.rnn.RNNBase` (constructor, parameters, state_dict) and not `torch.nn.GRU` itself,
whose every instance Dynamo refuses. The named parameters are read at each call: there is no flattened copy of them
that a parametrization, weight norm or a shared weight could leave behind.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.modules.rnn import RNNBase
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from fastcells import dispatch
from fastcells.token_ids import check_range, is_token_ids
from fastcells.torch_impl.aten import aten
from fastcells.torch_impl.cell import TorchCell

State = tuple[Tensor, ...]


class Layer(RNNBase, ABC):
    """A stack of layers and directions; a subclass says what one direction of one layer computes."""

    impl: str = "auto"
    reset_after: bool = True
    weight_hh_l0: Tensor
    label: ClassVar[str]  # the name that torch's own error messages carry

    def __init__(self, mode: str, *args: Any, impl: str = "auto", **kwargs: Any) -> None:
        dispatch.check_impl(impl)
        super().__init__(mode, *args, **kwargs)
        self.impl = impl

    def extra_repr(self) -> str:
        extra = super().extra_repr()
        extra += "" if self.reset_after else ", reset_after=False"
        return extra if self.impl == "auto" else f"{extra}, impl={self.impl!r}"

    def flatten_parameters(self) -> None:
        """Does nothing: these layers keep no flattened copy of their weights."""

    def choose(self, input: Tensor | PackedSequence) -> dispatch.Choice:
        """Which implementation `forward(input)` runs, and why."""
        data = input.data if isinstance(input, PackedSequence) else input
        if isinstance(input, PackedSequence):
            steps, batch = len(input.batch_sizes), int(input.batch_sizes[0])
            padding = steps * batch / max(1, len(data))
        else:
            padding = 1.0
            sizes = data.shape if is_token_ids(data) else data.shape[:-1]
            steps, batch = (sizes[0], 1) if len(sizes) < 2 else (sizes[::-1] if self.batch_first else sizes)
        cell, ids = self.maths().name, is_token_ids(data)
        if steps == 1 and self.impl == "auto":  # the shortest way, for who calls a layer step by step
            return dispatch.in_torch(cell, ids)
        call = dispatch.Call(
            cell,
            ids,
            steps,
            batch,
            self.weight_hh_l0,
            projected=self.proj_size > 0,
            input_type=type(data),
            padding=padding,
        )
        return dispatch.choose(self.impl, call)

    def _forward(self, input: Tensor | PackedSequence, hx: State | None) -> tuple[Any, State]:
        weights = [getattr(self, name) for name in self._flat_weights_names]
        if isinstance(input, PackedSequence):
            data, batch_sizes, order, restore = input
            self._check_packed(data, weights[0])
            batch, batched = int(batch_sizes[0]), True
        else:
            data, batch_sizes, order, restore = input, None, None, None
            batched = self._check_dense(data, hx)
            self._check_features(data, weights[0])
            if not batched:
                data = data.unsqueeze(0 if self.batch_first else 1)
                hx = None if hx is None else tuple(s.unsqueeze(1) for s in hx)
            batch = data.shape[0 if self.batch_first else 1]
        state = self._initial_state(data, hx, batch, weights[0])
        if order is not None and hx is not None:
            state = tuple(s.index_select(1, order) for s in state)

        if self.choose(input).path == "aten":
            out, last = aten(
                self._aten_op(),
                data,
                state,
                weights,
                self.bias,
                num_layers=self.num_layers,
                dropout=self.dropout,
                training=self.training,
                bidirectional=self.bidirectional,
                batch_first=self.batch_first,
                batch_sizes=batch_sizes,
            )
        else:
            out, last = self._walk(data, batch_sizes, state, dict(zip(self._flat_weights_names, weights, strict=True)))

        if batch_sizes is not None:
            last = last if restore is None else tuple(s.index_select(1, restore) for s in last)
            return PackedSequence(out, batch_sizes, order, restore), last
        if not batched:
            return out.squeeze(0 if self.batch_first else 1), tuple(s.squeeze(1) for s in last)
        return out, last

    def _walk(
        self, data: Tensor, batch_sizes: Tensor | None, state: State, weights: dict[str, Tensor]
    ) -> tuple[Tensor, State]:
        """Layer by layer and direction by direction; a packed batch runs padded, with its lengths."""
        lengths = None
        x = data.transpose(0, 1) if self.batch_first and batch_sizes is None else data
        if batch_sizes is not None:
            x, lengths = pad_packed_sequence(PackedSequence(data, batch_sizes))
        last: list[State] = []
        for layer in range(self.num_layers):
            if layer > 0:
                x = F.dropout(x, self.dropout, self.training)
            outs = []
            for direction in range(2 if self.bidirectional else 1):
                start = tuple(s[len(last)] for s in state)
                w = {name.split("_l")[0]: weights[name] for name in self._all_weights[len(last)]}
                out, end = self._direction(x, start, w, lengths=lengths, reverse=direction == 1)
                outs.append(out)
                last.append(end)
            x = torch.cat(outs, -1) if len(outs) > 1 else outs[0]
        final = tuple(s[0].unsqueeze(0) if len(s) == 1 else torch.stack(s) for s in zip(*last, strict=True))
        if lengths is not None:
            return pack_padded_sequence(x, lengths).data, final
        return (x.transpose(0, 1) if self.batch_first else x), final

    @abstractmethod
    def _direction(
        self, x: Tensor, state: State, w: dict[str, Tensor], *, lengths: Tensor | None, reverse: bool
    ) -> tuple[Tensor, State]:
        """One layer and one direction. w: the weights by their names without layer and direction."""

    @abstractmethod
    def maths(self) -> TorchCell:
        """The cell's equations."""

    @abstractmethod
    def _aten_op(self) -> Callable[..., Any]: ...

    def _state_sizes(self) -> tuple[int, ...]:
        return (self.hidden_size,)

    def _check_dense(self, data: Tensor, hx: State | None) -> bool:
        """Whether the input has a batch dimension. Raises what torch's layer raises on wrong dimensions."""
        features = 0 if is_token_ids(data) else 1
        if data.dim() not in (1 + features, 2 + features):
            kind = "token ids to be 1D or 2D" if features == 0 else "input to be 2D or 3D"
            tensor = " tensor" if self.label == "RNN" else ""
            raise ValueError(f"{self.label}: Expected {kind}, got {data.dim()}D{tensor} instead")
        batched = data.dim() == 2 + features
        dim = 3 if batched else 2
        if hx is not None and any(s.dim() != dim for s in hx):
            raise RuntimeError(self._wrong_state_dim(hx, "batched" if batched else "unbatched", dim))
        return batched

    def _wrong_state_dim(self, hx: State, kind: str, dim: int) -> str:
        return f"For {kind} {dim}-D input, hx should also be {dim}-D but got {hx[0].dim()}-D tensor"

    def _check_packed(self, data: Tensor, weight: Tensor) -> None:
        dim = 1 if is_token_ids(data) else 2
        if data.dim() != dim:
            raise RuntimeError(f"input must have {dim} dimensions, got {data.dim()}")
        self._check_features(data, weight)

    def _check_features(self, data: Tensor, weight: Tensor) -> None:
        if is_token_ids(data):
            check_range(data, self.input_size)
            return
        if data.dtype != weight.dtype and not torch._C._is_any_autocast_enabled():
            raise ValueError(
                f"RNN input dtype ({data.dtype}) does not match weight dtype ({weight.dtype}). "
                f"Convert input: input.to({weight.dtype}), or convert model: model.to({data.dtype})"
            )
        if data.shape[-1] != self.input_size:
            raise RuntimeError(
                f"input.size(-1) must be equal to input_size. Expected {self.input_size}, got {data.shape[-1]}"
            )

    def _initial_state(self, data: Tensor, hx: State | None, batch: int, weight: Tensor) -> State:
        rows = self.num_layers * (2 if self.bidirectional else 1)
        sizes = self._state_sizes()
        if hx is None:
            dtype = weight.dtype if is_token_ids(data) else data.dtype
            zeros = {size: data.new_zeros(rows, batch, size, dtype=dtype) for size in set(sizes)}
            return tuple(zeros[size] for size in sizes)
        for i, (s, size) in enumerate(zip(hx, sizes, strict=True)):
            name = "hidden" if len(sizes) == 1 else f"hidden[{i}]"
            self.check_hidden_size(s, (rows, batch, size), f"Expected {name} size {{}}, got {{}}")
        return hx
