"""How calls of C for a layer get at their weights."""

from __future__ import annotations

import struct
from typing import Any

import torch
from torch import Tensor

import fastcells

READ, PACKED, PACKED_TO_KEEP, KEPT = "read", "packed", "packed to keep", "kept"


class Watched:
    """The C module, and how each call of `layer` got at its weights."""

    def __init__(self, real: Any) -> None:
        self.real, self.ways = real, list[str]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def layer(self, *arguments: int) -> None:
        packed, kept, panels = arguments[8], arguments[9], arguments[-1]
        self.ways.append(KEPT if kept else PACKED_TO_KEEP if panels else PACKED if packed else READ)
        self.real.layer(*arguments)

    def small_layer(self, *arguments: Any) -> Any:
        found = self.real.small_layer(*arguments)
        if found is not None:
            self.ways.append(
                KEPT if arguments[4] is not None else PACKED if struct.unpack("12q", arguments[0][0])[6] else READ
            )
        return found

    def taken(self) -> list[str]:
        ways, self.ways = self.ways, []
        return ways


def flat(result: Any) -> list[Tensor]:
    return [result] if isinstance(result, Tensor) else [t for part in result for t in flat(part)]


def same(actual: Any, expected: Any) -> bool:
    """Bit by bit."""
    return all(map(torch.equal, flat(actual), flat(expected)))


def fresh(layer: Any) -> Any:
    """Another layer with the same weights."""
    twin: Any = getattr(fastcells, type(layer).__name__)(layer.input_size, layer.hidden_size, impl="cpu")
    twin.load_state_dict(layer.state_dict())
    return twin
