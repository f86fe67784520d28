"""What the three layers share: checking and shaping the input, and the walk over layers and directions.

They subclass `torch.nn.modules.rnn.RNNBase` (constructor, parameters, state_dict, the methods that subclasses override)
and not `torch.nn.GRU` itself, whose every instance Dynamo refuses. The named parameters are read at each call: there is
no flattened copy of them that a parametrization, weight norm or a shared weight could leave behind.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from fastcells import both_directions, dispatch, inference, initial_state, one_direction, packed, regularised, streaming
from fastcells.backends.base import IN_ONE_CALL, NOTHING, Call, Choice, LayerWeights
from fastcells.backends.torch.aten import aten
from fastcells.call_options import NO_OPTIONS, NOTHING_GIVEN, CallOptions, Given, Masks, call_options
from fastcells.cell_states import cell_states
from fastcells.checks import check_input
from fastcells.kept_weights import KeepsWeights
from fastcells.layer_shapes import LayerShapes, each_of
from fastcells.modes import traced, transformed
from fastcells.regularised import NO_RATES, Rates
from fastcells.spec import CellSpec, RecurrentWeights, State
from fastcells.token_ids import ID_DTYPES, check_range, is_token_ids, one_hot

unsafe_view = torch.ops.aten._unsafe_view.default


class Layer(KeepsWeights, LayerShapes):
    """A stack of layers and directions; a subclass says what one direction of one layer computes.

    Not an `abc.ABC`: its place among the bases would exclude `class Mine(ABC, nn.RNNBase)` as a base beside ours.
    """

    impl: str = "auto"
    reset_after: bool = True
    recurrent_dropout: float = 0.0
    zoneout: float = 0.0
    zoneout_cell: float = 0.0
    weight_dropout: float = 0.0
    return_states: bool = False
    weight_hh_l0: Tensor

    def __init__(self, mode: str, *args: Any, rates: Rates = NO_RATES, impl: str = "auto", **kwargs: Any) -> None:
        dispatch.check_impl(impl)
        super().__init__(mode, *args, **kwargs)
        self.impl = impl
        for name, p in rates._asdict().items():
            if p:
                setattr(self, name, p)

    @property
    def _regularised(self) -> bool:
        """Whether a call draws masks."""
        # The attributes of an instance lie in front of these, which are of the class: no call of __getattr__.
        return self.training and bool(
            self.recurrent_dropout or self.zoneout or self.zoneout_cell or self.weight_dropout
        )

    @property
    def _rates(self) -> Rates:
        return Rates(self.recurrent_dropout, self.zoneout, self.zoneout_cell, self.weight_dropout)

    def extra_repr(self) -> str:
        extra = super().extra_repr()
        extra += "" if self.reset_after else ", reset_after=False"
        extra += f"{self._rates}{', return_states=True' if self.return_states else ''}"
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
        options = self._rates.options if self.training else NOTHING
        if inference.keeps(self) and batch_sizes is None:
            kept = [self._choose(i, ids, T, B, type(data), weights, packed=True) for i in range(len(names))]
            if all(choice.path == "layer" for choice in kept):
                kept = [replace(choice, reason=f"{choice.reason}; weights kept packed") for choice in kept]
                return dispatch.Explanation(zip(names, kept, strict=True))
        first = self._choose(0, ids, T, B, type(data), weights, options, padding)
        if first.path in IN_ONE_CALL:
            return dispatch.Explanation(dict.fromkeys(names, first))
        options |= {"lengths"} if batch_sizes is not None else NOTHING
        layers = [self._choices(i, ids, T, B, type(data), weights, options) for i in range(self.num_layers)]
        return dispatch.Explanation(zip(names, itertools.chain(*layers), strict=True))

    def _choose(
        self,
        index: int,
        ids: bool,
        T: int,
        B: int,
        kind: type,
        weights: list[Tensor],
        options: frozenset[str] = NOTHING,
        padding: float = 1.0,
        packed: bool = False,
    ) -> Choice:
        """For one layer and direction, counted through the stack; for index 0 without options also the whole stack."""
        if self.proj_size:
            options = options.union(("proj_size",))  # not `|=`, which torch.compile of torch 2.11 cannot trace
        ids = ids and index < self._directions
        first = index * len(weights) // len(self._all_weights)
        w_ih, w_hh = weights[first : first + 2]
        return dispatch.choose(
            Call(self.impl, self._spec(), ids, T, B, w_ih, w_hh, options, kind, padding, self._directions, packed)
        )

    def _choices(
        self,
        layer: int,
        ids: bool,
        T: int,
        B: int,
        kind: type,
        weights: list[Tensor],
        options: frozenset[str],
        first: Choice | None = None,
    ) -> list[Choice]:
        """Of each direction of a layer. first: that of the whole stack's first one, where it has been made."""
        given = [first] if first is not None and layer == 0 else []
        if given and self._directions == 1:
            return given
        own = range(layer * self._directions + len(given), (layer + 1) * self._directions)
        choices = [*given, *(self._choose(i, ids, T, B, kind, weights, options) for i in own)]
        return choices if options - {"lengths"} else both_directions.together(choices)

    @property
    def _directions(self) -> int:
        return 2 if self.bidirectional else 1

    def _weights(self) -> list[Tensor]:
        own = self._parameters
        try:  # Module.__getattr__ costs more than a short recurrence
            return [own[name] for name in self._flat_weights_names]  # type: ignore[misc]
        except KeyError:  # a parametrization, weight norm or pruning has put something else in a parameter's place
            return [getattr(self, name) for name in self._flat_weights_names]

    def _forward(self, input: Tensor | PackedSequence, hx: Any, given: Given = NOTHING_GIVEN) -> tuple[Any, Any]:
        """`forward`; hx and the final state are a tensor, of an LSTM two. With `return_states`, c beside the output."""
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
        options, names = NO_OPTIONS, NOTHING
        if given is not NOTHING_GIVEN or self._regularised:
            options = self._options(data, batch_sizes, order, unbatched, given, weights)
            weights, names = self._without_dropped(weights, options.masks), options.names
        choice = self._choose(0, ids, T, B, type(data), weights, names, padding)
        try:
            if choice.path in IN_ONE_CALL and not self.return_states:
                data = one_hot(data, self.input_size, weights[0]) if ids else data
                out, state = self._in_one_call(data, state, weights, batch_sizes)
            elif batch_sizes is None or names:  # masks are those of all rows
                out, state = self._walk(data, batch_sizes, state, weights, choice, options)
            else:
                out, state = packed.by_length(self._walk, data, batch_sizes, state, weights)
        except IndexError:
            if ids:
                check_range(input.data, self.input_size)  # raises, with the position in the caller's own tensor
            raise
        last: Any = state if isinstance(hx, tuple) else state[0]
        if unbatched:
            out, last = out.squeeze(batch_dim), each_of(last, Tensor.squeeze, 1)
        last = self.permute_hidden(last, restore)
        return (out if batch_sizes is None else PackedSequence(out, batch_sizes, order, restore)), last

    def step(self, input: Tensor, hx: Any = None) -> tuple[Tensor, Any]:
        """One step of the stack, for what arrives step by step: equal to the same step of a whole sequence.

        input: [B, I] or [I], or token ids [B] or []. hx: the state as `forward` takes and returns it, [num_layers, B,
        H] or unbatched [num_layers, H], of an LSTM two of them; None for zeros.

        Returns:
            the output [B, H_out] or [H_out], and the new state. A single row on a CPU, in float32 without gradients,
            takes one call of C for each layer.

        Raises:
            ValueError: a bidirectional layer, which needs the whole sequence. Otherwise as `forward`.
        """
        return streaming.step(self, input, hx)

    def _options(
        self,
        data: Tensor,
        batch_sizes: Tensor | None,
        order: Tensor | None,
        unbatched: bool,
        given: Given,
        weights: list[Tensor],
    ) -> CallOptions:
        """What was given beside input and state, checked, and the masks of a regularised layer in training."""
        lengths, resets, reset_state, masks = given
        if self.learned_state and resets is not None and reset_state is None:
            reset_state = initial_state.learned(self)  # every episode starts as a sequence does
        if batch_sizes is not None and (lengths is not None or resets is not None):
            raise ValueError(
                f"{self.label}: a PackedSequence has lengths of its own; lengths and resets go with a tensor"
            )
        T, B, _ = self._sizes(data, batch_sizes, data.dtype in ID_DTYPES)
        if masks is not None:
            masks.check(T, B, self._recurrent(weights), self.hidden_size, self._spec().num_states)
        elif self._regularised:
            masks = self._drawn(B, T, weights)
        if batch_sizes is not None:
            return CallOptions(masks=masks if masks is None or order is None else masks.of_rows(order))
        rows = len(self._all_weights)
        return call_options(data, self.batch_first, unbatched, lengths, resets, reset_state, rows, masks)

    def draw_masks(self, steps: int, batch: int) -> Masks:
        """New masks for inputs of so many steps and rows, as training draws them for each call; `masks=` takes them.

        What this layer does not do (`zoneout=0`, say) is None. Drawn by torch's generator of the weights' device.
        """
        return self._drawn(batch, steps, self._weights())

    def _drawn(self, B: int, T: int, weights: list[Tensor]) -> Masks:
        each = self._recurrent(weights)
        return regularised.draw(self._rates, each, T, B, (self.proj_size or self.hidden_size, self.hidden_size))

    def _recurrent(self, weights: list[Tensor]) -> list[Tensor]:
        """W_hh of each layer and direction."""
        return weights[1 :: len(weights) // len(self._all_weights)]

    def _without_dropped(self, weights: list[Tensor], masks: Masks | None) -> list[Tensor]:
        if masks is None or masks.weight_dropout is None:
            return weights
        count = len(weights) // len(self._all_weights)
        factors = dict(zip(range(1, len(weights), count), masks.weight_dropout, strict=True))
        return [w * factors[i] if i in factors else w for i, w in enumerate(weights)]

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
        self,
        data: Tensor,
        batch_sizes: Tensor | None,
        state: State,
        weights: list[Tensor],
        first: Choice | None = None,
        options: CallOptions = NO_OPTIONS,
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
            options = options._replace(lengths=lengths.to(x.device, torch.int32))
        spec, (T, B), names = self._spec(), x.shape[:2], options.names
        last: list[State] = []
        cells: list[Tensor] = []
        directions = self._directions
        for layer in range(self.num_layers):
            if layer > 0:
                x = F.dropout(x, self.dropout, self.training)
            rows = range(layer * directions, (layer + 1) * directions)
            each = [self._weights_of(row, weights) for row in rows]
            for w in each:
                check_input(spec, x, w)
            choices = self._choices(layer, ids, T, B, kind, weights, names, first)
            steps = [options.steps(row, row % 2 == 1 and directions == 2, spec.num_states) for row in rows]
            starts = [tuple([s[row] for s in state]) for row in rows]
            if choices[0].directions == 2:
                start = tuple(s[len(last) : len(last) + 2] for s in state)
                out, ends = both_directions.run(choices[0], spec, x, start, each, steps[0])
                outs, own_ends = list(out.chunk(2, -1)), list(zip(*(s.unbind() for s in ends), strict=True))
            else:
                outs, own_ends = [], []
                for choice, start, w, own in zip(choices, starts, each, steps, strict=True):
                    out, end = one_direction.run(choice, spec, x, start, w, own, inner=layer < self.num_layers - 1)
                    outs.append(out)
                    own_ends.append(end)
                out = torch.cat(outs, -1) if len(outs) > 1 else outs[0]
            if self.return_states and layer == self.num_layers - 1:
                cells = [cell_states(x, *one) for one in zip(outs, starts, each, steps, strict=True)]
            x = out
            last += own_ends
        final: State
        if len(last) == 1 and choices[0].backend.owns_last and not (traced() or self.proj_size):
            final = tuple(unsafe_view(s, (1, *s.shape)) for s in last[0])  # unsafe: no view, and nobody else has s
        else:
            # Stacked even if there is but one: a view could not be detached in place.
            final = tuple(torch.stack(s) for s in zip(*last, strict=True))
        x = torch.cat([x, *cells], -1) if cells else x
        if batch_sizes is not None and lengths is not None:
            return (packed.unpad(x, batch_sizes) if looked_through else pack_padded_sequence(x, lengths).data), final
        if not self.batch_first:
            return x, final
        if traced() or transformed():
            return x.transpose(0, 1), final
        # In place, for the same reason. Kernels may have saved it for their backward: the numbers are as they were.
        with torch.autograd._unsafe_preserve_version_counter(x):  # type: ignore[attr-defined]
            return x.transpose_(0, 1), final

    def _weights_of(self, index: int, weights: list[Tensor]) -> LayerWeights:
        """Those of one layer and direction, counted through the stack."""
        count = len(weights) // len(self._all_weights)
        w_ih, w_hh, *rest = weights[index * count : (index + 1) * count]
        b_ih, b_hh = rest[:2] if self.bias else (None, None)
        more = rest[2 if self.bias else 0 :]
        w_hr, more = (more[0], more[1:]) if self.proj_size else (None, more)
        return LayerWeights(w_ih, b_ih, RecurrentWeights(w_hh, b_hh, w_hr, tuple(more)))

    def _spec(self) -> CellSpec:
        """The cell's definition."""
        raise NotImplementedError
