"""`layer.pack()`: weights that stay packed from one call to the next, for inference.

What is packed are copies, beside the parameters. Each call compares the parameters with those that were packed.
"""

from __future__ import annotations

from operator import is_
from typing import Any, ClassVar, TypeVar

from torch import Tensor
from torch.nn.modules.rnn import RNNBase

from fastcells import inference
from fastcells.errors import CannotRun

MOST_LAYOUTS = 4  # of each layer and direction: for a row alone, for two, for more; for a team of another size
MOST_CALLS = 64  # of different sizes, of which it is remembered which panels serve them

Addresses = tuple[int, ...]
P = TypeVar("P", bound="KeepsWeights")


class Packed:
    """Copies of a layer's weights as they were at one time. Whoever runs may add some, and nobody changes one."""

    __slots__ = ("__weakref__", "addresses", "most", "panels", "small", "storages", "versions", "weights")

    def __init__(self, weights: list[Tensor], versions: list[int], addresses: Addresses, directions: int) -> None:
        self.weights, self.versions, self.addresses = weights, versions, addresses
        self.most = MOST_LAYOUTS * directions
        # Held, so that no other storage is ever found at the same address.
        self.storages = [w.untyped_storage() for w in weights]
        self.panels: dict[tuple[int, ...], Tensor] = {}
        self.small: dict[tuple[object, ...], tuple[object, ...]] = {}

    def add(self, key: tuple[int, ...], panels: Tensor) -> None:
        """key: which layer and direction, counted through the stack, and the layout."""
        if len(self.panels) >= self.most:
            self.panels.clear()
            self.small.clear()
        self.panels[key] = panels

    def remember(self, call: tuple[object, ...], key: tuple[int, ...]) -> None:
        """For `_cpu.small_layer`: what it has to find as it is here, and the panels for such calls, if they are here.

        call: whatever tells such calls from others. key: of `add`.
        """
        panels = self.panels.get(key)
        if len(self.small) >= MOST_CALLS:
            self.small.clear()
        if panels is not None:
            self.small[call] = self.weights, self.versions, self.addresses, panels, panels.data_ptr(), key[1]


class Keeper:
    """What a layer has in hand."""

    __slots__ = ("packed",)

    def __init__(self) -> None:
        self.packed: Packed | None = None

    def current(self, weights: list[Tensor], addresses: Addresses, directions: int) -> Packed | None:
        """What is packed of these weights; None where torch counts no changes of one.

        addresses: as C reads them, each with the shape, dtype and device that the layer needs. directions: of all its
        layers.
        """
        try:
            versions = [w._version for w in weights]
        except RuntimeError:
            return None
        found = self.packed
        if (
            found is None
            or found.versions != versions
            or found.addresses != addresses
            or not all(map(is_, found.weights, weights))
        ):
            found = self.packed = Packed(weights, versions, addresses, directions)
        return found


class KeepsWeights(RNNBase):
    """A layer that can be packed."""

    label: ClassVar[str]
    _keeper: Keeper | None = None

    def pack(self: P) -> P:
        """Keep packed copies of the weights, for calls that run as one call of C; returns the layer.

        Those are calls on a CPU in float32, without gradients (`fastcells.explain` says of a call whether it is one).
        Any other call runs as if nothing were packed. Results are what they were to the last rounding; the copies take
        as much memory as the weights, and once more where batches of 1, 2 and more rows alternate.

        Each call notices what has changed since the last one and packs again: an optimizer's step, load_state_dict,
        any operator of torch in place, another Parameter, another `data`, `.to()`. It can NOT notice what torch does
        not count: numbers written through `parameter.data.mul_()` and the like, through numpy, DLPack or another
        process. After such a change, call pack() again.

        The copies are no parameters and no buffers: state_dict, deepcopy, pickle, torch.compile and torch.export do
        without them, and a copy of the layer is not packed. Threads may call a packed layer at the same time.

        Raises:
            CannotRun: no call of this layer could ever use them; the message says why.
        """
        obstacle = _obstacle(self)
        if obstacle is not None:
            raise CannotRun(f"{self.label}.pack()", obstacle)
        self._keeper = Keeper()
        return self

    def unpack(self: P) -> P:
        """Drop what `pack` keeps; returns the layer."""
        self._keeper = None
        return self

    @property
    def packed(self) -> bool:
        """Whether `pack` was called, and `unpack` was not."""
        return self._keeper is not None

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        """What `.to()` and its like call: copies of weights that are elsewhere now are of no use."""
        if self._keeper is not None:
            self._keeper.packed = None
        return super()._apply(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = super().__getstate__()
        state.pop("_keeper", None)
        return state


def _obstacle(layer: Any) -> str | None:
    """Why no call of a layer could use packed weights, or None."""
    own = layer._parameters
    computed = [name for name in layer._flat_weights_names if own.get(name) is None]
    if computed:
        how = "by a parametrization, weight norm or pruning"
        return f"{', '.join(computed)} is computed anew at each call, {how}: remove that first"
    if type(layer) not in inference.SHORT:
        return f"{type(layer).__qualname__} is not RNN, GRU or LSTM of fastcells itself"
    if layer.training and layer.weight_dropout:
        return f"weight_dropout={layer.weight_dropout} draws other weights at each call in training: call eval() first"
    given = [name for name in ("proj_size", "learned_state", "return_states") if getattr(layer, name)]
    if given:
        return f"with {given[0]}={getattr(layer, given[0])!r} no call runs as one call of C"
    if layer.impl not in ("auto", "cpu"):
        return f"impl={layer.impl!r} runs no C"
    untracked = [name for name in layer._flat_weights_names if own[name].is_inference()]
    return f"torch counts no changes of {untracked[0]}, an inference tensor" if untracked else None
