"""What the three layers share: checking and shaping the input, and the walk over layers and directions.

They subclass `torch.nn.modules.rnn.RNNBase` (constructor, parameters, state_dict, the methods that subclasses override)
and not `torch.nn.GRU` itself, whose every instance Dynamo refuses. The named parameters are read at each call: there is
no flattened copy of them that a parametrization, weight norm or a shared weight could leave behind.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, ClassVar, NoReturn

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.modules.rnn import RNNBase
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from fastcells import both_directions, dispatch, one_direction, packed
from fastcells.backends.base import IN_ONE_CALL, NOTHING, Call, Choice, LayerWeights, Steps
from fastcells.backends.torch.aten import aten
from fastcells.checks import check_input
from fastcells.modes import recording, transformed
from fastcells.spec import CellSpec, RecurrentWeights, State
from fastcells.token_ids import ID_DTYPES, check_range, is_token_ids, one_hot

LENGTHS = frozenset({"lengths"})


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

    def _explain(self, input: Tensor | PackedSequence) -> dispatch.Explanation:
        """Which implementation `forward(input)` runs for each layer and direction, and why."""
        data, batch_sizes = (input.data, input.batch_sizes) if isinstance(input, PackedSequence) else (input, None)
        ids, weights = is_token_ids(data), self._weights()
        T, B, padding = self._sizes(data, batch_sizes, ids)
        names = [group[0].removeprefix("weight_ih_") for group in self._all_weights]
        first = self._choose(0, ids, T, B, type(data), weights, padding=padding)
        if first.path in IN_ONE_CALL:
            return dispatch.Explanation(dict.fromkeys(names, first))
        lengths = batch_sizes is not None
        layers = [self._choices(i, ids, T, B, type(data), weights, lengths) for i in range(self.num_layers)]
        return dispatch.Explanation(zip(names, itertools.chain(*layers), strict=True))

    def _sizes(self, data: Tensor, batch_sizes: Tensor | None, ids: bool) -> tuple[int, int, float]:
        """T and B, and for a packed batch T * B over the number of tokens."""
        if batch_sizes is not None:
            steps, batch = len(batch_sizes), int(batch_sizes[0])
            return steps, batch, steps * batch / max(1, len(data))
        sizes = data.shape if ids else data.shape[:-1]
        if len(sizes) < 2:
            return sizes[0], 1, 1.0
        return (sizes[1], sizes[0], 1.0) if self.batch_first else (sizes[0], sizes[1], 1.0)

    def _choose(
        self,
        index: int,
        ids: bool,
        T: int,
        B: int,
        kind: type,
        weights: list[Tensor],
        *,
        lengths: bool = False,
        padding: float = 1.0,
    ) -> Choice:
        """For one layer and direction, counted through the stack; for index 0 without lengths also the whole stack."""
        options = NOTHING if not lengths else LENGTHS
        if self.proj_size:
            options |= {"proj_size"}
        ids = ids and index < self._directions
        first = index * len(weights) // len(self._all_weights)
        return dispatch.choose(
            Call(self.impl, self._spec(), ids, T, B, weights[first], weights[first + 1], options, kind, padding)
        )

    def _choices(
        self,
        layer: int,
        ids: bool,
        T: int,
        B: int,
        kind: type,
        weights: list[Tensor],
        lengths: bool,
        first: Choice | None = None,
    ) -> list[Choice]:
        """Of each direction of a layer. first: that of the whole stack's first one, where it has been made."""
        given = [first] if first is not None and layer == 0 else []
        own = range(layer * self._directions + len(given), (layer + 1) * self._directions)
        choices = [*given, *(self._choose(i, ids, T, B, kind, weights, lengths=lengths) for i in own)]
        return choices if self.proj_size else dispatch.together(choices)  # a projection is put around one direction

    @property
    def _directions(self) -> int:
        return 2 if self.bidirectional else 1

    def _weights(self) -> list[Tensor]:
        own = self._parameters
        try:  # Module.__getattr__ costs more than a short recurrence
            return [own[name] for name in self._flat_weights_names]  # type: ignore[misc]
        except KeyError:  # a parametrization, weight norm or pruning has put something else in a parameter's place
            return [getattr(self, name) for name in self._flat_weights_names]

    def _forward(self, input: Tensor | PackedSequence, hx: Any) -> tuple[Any, Any]:
        """`forward`; hx and the final state are a tensor, of an LSTM two."""
        data, batch_sizes, order, restore = input if isinstance(input, PackedSequence) else (input, None, None, None)
        ids, weights = data.dtype in ID_DTYPES, self._weights()
        unbatched = batch_sizes is None and self._is_unbatched(data, ids)
        batch_dim = 0 if self.batch_first else 1
        if unbatched:
            data = data.unsqueeze(batch_dim)
        hx = self._initial_state(data, batch_sizes, order, ids, hx, unbatched, weights[0])
        self.check_forward_args(data, hx, batch_sizes)
        T, B, padding = self._sizes(data, batch_sizes, ids)
        state = hx if isinstance(hx, tuple) else (hx,)
        choice = self._choose(0, ids, T, B, type(data), weights, padding=padding)
        try:
            if choice.path in IN_ONE_CALL:
                data = one_hot(data, self.input_size, weights[0]) if ids else data
                out, state = self._in_one_call(data, state, weights, batch_sizes)
            elif batch_sizes is None:
                out, state = self._walk(data, None, state, weights, choice)
            else:
                out, state = packed.by_length(self._walk, data, batch_sizes, state, weights)
        except IndexError:
            if ids:
                check_range(input.data, self.input_size)  # raises, with the position in the caller's own tensor
            raise
        last: Any = state if isinstance(hx, tuple) else state[0]
        if unbatched:
            out, last = out.squeeze(batch_dim), _each(last, Tensor.squeeze, 1)
        last = self.permute_hidden(last, restore)
        return (out if batch_sizes is None else PackedSequence(out, batch_sizes, order, restore)), last

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
        """hx with a batch dimension, in the order of the rows; zeros where it is None."""
        if hx is not None:
            if batch_sizes is None:
                self._check_state_dim(hx, 2 if unbatched else 3)
            return self.permute_hidden(_each(hx, Tensor.unsqueeze, 1) if unbatched else hx, order)
        if batch_sizes is None:
            return self._zeros(data, ids, data.size(0 if self.batch_first else 1), weight)
        # While torch.jit.trace records, an int would freeze the batch.
        return self._zeros(data, ids, batch_sizes[0] if recording() else int(batch_sizes[0]), weight)

    def _in_one_call(
        self, data: Tensor, state: State, weights: list[Tensor], batch_sizes: Tensor | None = None
    ) -> tuple[Tensor, State]:
        return aten(
            self._spec().name,
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

    def _walk(
        self, data: Tensor, batch_sizes: Tensor | None, state: State, weights: list[Tensor], first: Choice | None = None
    ) -> tuple[Tensor, State]:
        """Layer by layer, and direction by direction or both at once; a packed batch runs padded, with its lengths.

        first: the choice for the first layer and direction, where it has been made.
        """
        lengths = None
        x = data.transpose(0, 1) if self.batch_first and batch_sizes is None else data
        kind, ids, looked_through = type(data), data.dtype in ID_DTYPES, transformed()
        if batch_sizes is not None:
            if looked_through:
                x, lengths = packed.pad(data, batch_sizes)
            else:
                x, lengths = pad_packed_sequence(PackedSequence(data, batch_sizes))
        steps = Steps(False, None if lengths is None else lengths.to(x.device, torch.int32))
        spec, (T, B) = self._spec(), x.shape[:2]
        last: list[State] = []
        for layer in range(self.num_layers):
            if layer > 0:
                x = F.dropout(x, self.dropout, self.training)
            each = [self._weights_of(len(last) + i, weights) for i in range(self._directions)]
            for w in each:
                check_input(spec, x, w)
            choices = self._choices(layer, ids, T, B, kind, weights, lengths is not None, first)
            if choices[0].directions == 2:
                start = tuple(s[len(last) : len(last) + 2] for s in state)
                x, ends = both_directions.run(choices[0], spec, x, start, each, steps)
                last += zip(*(s.unbind() for s in ends), strict=True)
                continue
            outs = []
            for direction, (choice, w) in enumerate(zip(choices, each, strict=True)):
                start = tuple(s[len(last)] for s in state)
                out, end = one_direction.run(choice, spec, x, start, w, steps._replace(reverse=direction == 1))
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

    def _weights_of(self, index: int, weights: list[Tensor]) -> LayerWeights:
        """Those of one layer and direction, counted through the stack."""
        count = len(weights) // len(self._all_weights)
        w_ih, w_hh, *rest = weights[index * count : (index + 1) * count]
        b_ih, b_hh = rest[:2] if self.bias else (None, None)
        rest = rest[2 if self.bias else 0 :]
        w_hr = rest.pop(0) if self.proj_size else None
        return LayerWeights(w_ih, b_ih, RecurrentWeights(w_hh, b_hh, w_hr, tuple(rest)))

    def _spec(self) -> CellSpec:
        """The cell's definition."""
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


def _each(hx: Any, change: Callable[..., Tensor], dim: int) -> Any:
    return (change(hx[0], dim), change(hx[1], dim)) if isinstance(hx, tuple) else change(hx, dim)
