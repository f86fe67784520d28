"""The model: a recurrent layer over token ids, and a linear layer that scores the next character."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastcells import zoo
from fastcells.charlm.presets import Config
from fastcells.cross_entropy import linear_cross_entropy
from fastcells.layers import GRU, LSTM, RNN
from fastcells.linear import linear
from fastcells.stack import Layer

State = Tensor | tuple[Tensor, ...]  # h, or (h, c) for an LSTM and so on, each [layers * directions, B, H]


class Scores(nn.Linear):
    """`nn.Linear(hidden, vocabulary)`; on a CPU its three matmuls run as the recurrent layers' do."""

    def __init__(self, hidden: int, vocabulary: int, *, impl: str = "auto") -> None:
        super().__init__(hidden, vocabulary)
        self.impl = impl

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden: [..., H]. Returns scores [..., V]."""
        return linear(hidden, self.weight, self.bias, impl=self.impl)

    def loss(self, hidden: Tensor, target: Tensor) -> Tensor:
        """The mean cross-entropy in nats, float32 or better, of ids [...] by scores that are never all there."""
        dtype = torch.promote_types(hidden.dtype, torch.float32)
        return linear_cross_entropy(hidden, self.weight, self.bias, target.long(), dtype=dtype, impl=self.impl)


class CharLM(nn.Module):
    """`nn.Linear(nn.GRU(one_hot(ids)))`: scores for the character after each character.

    The layer takes ids, so that the one-hot vectors of the lessons are never built. With `config.tied` it takes the
    rows of the output's weights instead (Press and Wolf 2017).
    """

    def __init__(self, vocabulary: int, config: Config) -> None:
        super().__init__()
        options: dict[str, Any] = {
            "num_layers": config.layers,
            "bidirectional": config.bidirectional,
            "dropout": config.dropout,
            "batch_first": True,
            "impl": config.impl,
        }
        outputs = config.hidden * (2 if config.bidirectional else 1)
        inputs = outputs if config.tied else vocabulary
        self.tied = config.tied
        self.layer: Layer
        if config.cell == "rnn":
            self.layer = RNN(inputs, config.hidden, nonlinearity=config.nonlinearity, **options)
        elif config.cell == "gru":
            self.layer = GRU(inputs, config.hidden, reset_after=config.reset_after, **options)
        elif config.cell == "lstm":
            self.layer = LSTM(inputs, config.hidden, **options)
        else:
            self.layer = getattr(zoo, config.cell)(inputs, config.hidden, **options)
        self.output = Scores(outputs, vocabulary, impl=config.impl)
        if config.init == "d2l":
            self._init_d2l()

    def _init_d2l(self) -> None:
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.01)
            else:
                nn.init.zeros_(parameter)
                # The lessons have one bias a gate. Two that learn alike would double its learning rate.
                parameter.requires_grad_("bias_hh" not in name)

    def forward(self, ids: Tensor, state: State | None = None, target: Tensor | None = None) -> tuple[Tensor, State]:
        """ids: int [B, T]. Returns logits [B, T, V] and the state to go on from.

        target: ids [B, T] of what comes next; their mean cross-entropy is then returned in place of the logits.
        """
        hidden, state = self.layer(F.embedding(ids, self.output.weight) if self.tied else ids, state)
        return self.output(hidden) if target is None else self.output.loss(hidden, target), state


def detach(state: State) -> State:
    """The state without its history: where backpropagation through time is truncated."""
    return tuple(s.detach() for s in state) if isinstance(state, tuple) else state.detach()


def dtype_of(config: Config) -> torch.dtype:
    """The torch dtype that `config.dtype` names."""
    dtype = getattr(torch, config.dtype)
    assert isinstance(dtype, torch.dtype)
    return dtype
