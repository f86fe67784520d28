"""What the three layers share: checking and shaping the input, and the walk over layers and directions.

They subclass `torch.nn.modules.rnn.RNNBase` (constructor, parameters, state_dict, the methods that subclasses override)
and not `torch.nn.GRU` itself, whose every instance Dynamo refuses. The named parameters are read at each call: there is
no flattened copy of them that a parametrization, weight norm or a shared weight could leave behind.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, NoReturn

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.modules.rnn import RNNBase
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from fastcells import dispatch, packed
from fastcells.backends.torch.aten import aten
from fastcells.backends.torch.cell import TorchCell
from fastcells.token_ids import ID_DTYPES, check_range, is_token_ids, one_hot
from fastcells.transforms import transformed

State = tuple[Tensor, ...]


class Layer(RNNBase):
    """A stack of layers and directions; a subclass says what one direction of one layer computes.

    Not an `abc.ABC`: its place among the bases would exclude `class Mine(ABC, nn.RNNBase)` as a base beside ours.
    """

    impl: str = "auto"
    reset_after: bool = True
    weight_ih_l0: Tensor
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

    def __prepare_scriptable__(self) -> NoReturn:
        """What torch.jit.script asks for first. A twin returned here would replace this layer in the user's model."""
        dispatch.refuse_script(self)

    def choose(self, input: Tensor | PackedSequence) -> dispatch.Explanation:
        """Which implementation `forward(input)` runs for each layer and direction, and why."""
        data, batch_sizes = (input.data, input.batch_sizes) if isinstance(input, PackedSequence) else (input, None)
        ids = is_token_ids(data)
        steps, batch, padding = self._sizes(data, batch_sizes, ids)
        names = [group[0].removeprefix("weight_ih_") for group in self._all_weights]
        first = self._choice(data, ids, steps, batch, padding, self._weights())
        if first.path in ("aten", "one-hot"):
            return dispatch.Explanation(dict.fromkeys(names, first))
        directions = 2 if self.bidirectional else 1
        weights = dict(zip(self._flat_weights_names, self._weights(), strict=True))
        choices = {}
        for i, name in enumerate(names):
            call = dispatch.Call(
                self.maths().name,
                ids and i < directions,
                steps,
                batch,
                weights[f"weight_hh_{name}"],
                lengths=batch_sizes is not None,
                projected=self.proj_size > 0,
                input_type=type(data),
            )
            choices[name] = dispatch.choose(self.impl, call)
        return dispatch.Explanation(choices)

    def _sizes(self, data: Tensor, batch_sizes: Tensor | None, ids: bool) -> tuple[int, int, float]:
        """T and B, and for a packed batch T * B over the number of tokens."""
        if batch_sizes is not None:
            steps, batch = len(batch_sizes), int(batch_sizes[0])
            return steps, batch, steps * batch / max(1, len(data))
        sizes = data.shape if ids else data.shape[:-1]
        if len(sizes) < 2:
            return sizes[0], 1, 1.0
        return (sizes[1], sizes[0], 1.0) if self.batch_first else (sizes[0], sizes[1], 1.0)

    def _choice(
        self, data: Tensor, ids: bool, steps: int, batch: int, padding: float, weights: list[Tensor]
    ) -> dispatch.Choice:
        """For the stack as a whole: ATen, which runs all of it in one call, or what its first layer runs."""
        cell = self.maths().name
        if steps == 1 and self.impl == "auto":  # the shortest way, for who calls a layer step by step
            choice = dispatch.in_torch(cell, ids)
        else:
            call = dispatch.Call(
                cell,
                ids,
                steps,
                batch,
                weights[1],
                projected=self.proj_size > 0,
                input_type=type(data),
                padding=padding,
            )
            choice = dispatch.choose(self.impl, call)
        if not ids or cell == "gru_reset_before":
            return choice
        return dispatch.of_one_step(self.impl, choice, data, steps, weights[0])

    def _weights(self) -> list[Tensor]:
        own = self._parameters
        try:  # Module.__getattr__ costs more than a short recurrence
            return [own[name] for name in self._flat_weights_names]  # type: ignore[misc]
        except KeyError:  # a parametrization, weight norm or pruning has put something else in a parameter's place
            return [getattr(self, name) for name in self._flat_weights_names]

    def _forward(self, input: Tensor | PackedSequence, hx: Any) -> tuple[Any, Any]:
        """`forward`; hx and the final state are a tensor, of an LSTM two."""
        try:
            return (
                self._forward_packed(input, hx) if isinstance(input, PackedSequence) else self._forward_dense(input, hx)
            )
        except IndexError:
            ids = input.data if isinstance(input, PackedSequence) else input
            if is_token_ids(ids):
                check_range(ids, self.input_size)  # raises, with the position in the caller's own tensor
            raise

    def _forward_dense(self, input: Tensor, hx: Any) -> tuple[Tensor, Any]:
        ids = input.dtype in ID_DTYPES
        dim = input.dim() + ids
        if dim not in (2, 3):
            kind = "token ids to be 1D or 2D" if ids else "input to be 2D or 3D"
            tensor = " tensor" if self.label == "RNN" else ""
            raise ValueError(f"{self.label}: Expected {kind}, got {input.dim()}D{tensor} instead")
        weights = self._weights()
        batch_dim = 0 if self.batch_first else 1
        if hx is not None:
            self._check_state_dim(hx, dim)
            if dim == 2:
                hx = _each(hx, Tensor.unsqueeze, 1)
        data = input.unsqueeze(batch_dim) if dim == 2 else input
        # permute_hidden changes nothing here, unless a subclass has its own.
        zeros = hx is None
        hx = self._zeros(data, ids, data.size(batch_dim), weights[0]) if zeros else self.permute_hidden(hx, None)
        self.check_forward_args(data, hx, None)
        steps, batch = data.size(1 - batch_dim), data.size(batch_dim)
        choice = self._choice(data, ids, steps, batch, 1.0, weights)
        if choice.path in ("aten", "one-hot"):
            data = one_hot(data, self.input_size, weights[0]) if ids else data
            out, last = self._aten(data, hx, weights)
        else:
            out, state = self._walk(data, None, _tuple(hx), weights)
            last = state if isinstance(hx, tuple) else state[0]
        if dim == 2:
            out, last = out.squeeze(batch_dim), _each(last, Tensor.squeeze, 1)
        return out, self.permute_hidden(last, None)

    def _forward_packed(self, input: PackedSequence, hx: Any) -> tuple[PackedSequence, Any]:
        data, batch_sizes, order, restore = input
        ids = data.dtype in ID_DTYPES
        weights = self._weights()
        if hx is None:
            # While torch.jit.trace records, an int would freeze the batch.
            batch = batch_sizes[0] if torch.jit.is_tracing() else int(batch_sizes[0])  # type: ignore[attr-defined]
            hx = self._zeros(data, ids, batch, weights[0])
        else:
            hx = self.permute_hidden(hx, order)
        self.check_forward_args(data, hx, batch_sizes)
        choice = self._choice(data, ids, *self._sizes(data, batch_sizes, ids), weights)
        if choice.path in ("aten", "one-hot"):
            data = one_hot(data, self.input_size, weights[0]) if ids else data
            out, last = self._aten(data, hx, weights, batch_sizes)
        else:
            out, state = packed.by_length(self._walk, data, batch_sizes, _tuple(hx), weights)
            last = state if isinstance(hx, tuple) else state[0]
        return PackedSequence(out, batch_sizes, order, restore), self.permute_hidden(last, restore)

    def _aten(
        self, data: Tensor, hx: Any, weights: list[Tensor], batch_sizes: Tensor | None = None
    ) -> tuple[Tensor, Any]:
        return aten(
            self._aten_op(),
            data,
            hx,
            weights,
            self.bias,
            num_layers=self.num_layers,
            dropout=self.dropout,
            training=self.training,
            bidirectional=self.bidirectional,
            batch_first=self.batch_first,
            batch_sizes=batch_sizes,
        )

    def _walk(
        self, data: Tensor, batch_sizes: Tensor | None, state: State, flat_weights: list[Tensor]
    ) -> tuple[Tensor, State]:
        """Layer by layer and direction by direction; a packed batch runs padded, with its lengths."""
        weights = dict(zip(self._flat_weights_names, flat_weights, strict=True))
        lengths = None
        x = data.transpose(0, 1) if self.batch_first and batch_sizes is None else data
        looked_through = transformed()
        if batch_sizes is not None and looked_through:
            x, lengths = packed.pad(data, batch_sizes)
        elif batch_sizes is not None:
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
        # Stacked even if there is but one: a view could not be detached in place.
        final = tuple(torch.stack(s) for s in zip(*last, strict=True))
        if batch_sizes is not None and lengths is not None:
            return (packed.unpad(x, batch_sizes) if looked_through else pack_padded_sequence(x, lengths).data), final
        if not self.batch_first:
            return x, final
        # In place, for the same reason; but what cuDNN and oneDNN's LSTM return, they have saved for their backward.
        fresh = x.device.type == "cpu" and (self.bidirectional or self.mode != "LSTM")
        return (x.transpose_(0, 1) if fresh else x.transpose(0, 1)), final

    def _direction(
        self, x: Tensor, state: State, w: dict[str, Tensor], *, lengths: Tensor | None, reverse: bool
    ) -> tuple[Tensor, State]:
        """One layer and one direction. w: the weights by their names without layer and direction."""
        raise NotImplementedError

    def maths(self) -> TorchCell:
        """The cell's equations."""
        raise NotImplementedError

    def _aten_op(self) -> Callable[..., Any]:
        raise NotImplementedError

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


def _tuple(hx: Any) -> State:
    return hx if isinstance(hx, tuple) else (hx,)


def _each(hx: Any, change: Callable[..., Tensor], dim: int) -> Any:
    return (change(hx[0], dim), change(hx[1], dim)) if isinstance(hx, tuple) else change(hx, dim)
