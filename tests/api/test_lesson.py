"""The classic lesson's loop, unchanged, with torch.nn's layer and with ours.

A character model on one-hot vectors, whose state is carried from one batch to the next and cut off with `detach_()`,
trained with Adam and gradients that are clipped over a generator of parameters. The perplexity must come out the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastcells

T, B, V, H = 35, 8, 30, 32
BATCHES, EPOCHS = 4, 3


class CharacterModel(nn.Module):
    def __init__(self, rnn: nn.RNNBase) -> None:
        super().__init__()
        self.rnn = rnn
        self.linear = nn.Linear(rnn.hidden_size * (2 if rnn.bidirectional else 1), V)

    def forward(self, ids: Tensor, state: Any) -> tuple[Tensor, Any]:
        x = nn.functional.one_hot(ids.t().long(), V).to(self.linear.weight.dtype)  # [T, B, V]
        y, state = self.rnn(x, state)
        return self.linear(y.reshape(-1, y.shape[-1])), state


def consecutive_batches(text: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """[B, T] of ids and of the ids one further; row b goes on in the next batch where it ended in this one."""
    rows = text[: (len(text) - 1) // B * B].view(B, -1), text[1 : (len(text) - 1) // B * B + 1].view(B, -1)
    for start in range(0, rows[0].shape[1] - T + 1, T):
        yield rows[0][:, start : start + T], rows[1][:, start : start + T]


def clip_gradients(parameters: Iterable[nn.Parameter], limit: float) -> None:
    nn.utils.clip_grad_norm_((p for p in parameters), limit)


def train_epoch(model: CharacterModel, text: Tensor, optimizer: torch.optim.Optimizer) -> float:
    """Perplexity of the epoch."""
    state, total, count = None, 0.0, 0
    for ids, targets in consecutive_batches(text):
        if state is not None:
            if isinstance(state, tuple):
                for s in state:
                    s.detach_()
            else:
                state.detach_()
        y, state = model(ids, state)
        loss = nn.functional.cross_entropy(y, targets.t().reshape(-1))
        optimizer.zero_grad()
        loss.backward()
        clip_gradients(model.parameters(), 1.0)
        optimizer.step()
        total, count = total + loss.item() * targets.numel(), count + targets.numel()
    return math.exp(total / count)


def lesson(cls: type[nn.RNNBase], options: dict[str, Any], dtype: torch.dtype) -> tuple[list[float], CharacterModel]:
    torch.manual_seed(0)
    words = torch.randint(V, (6, 5))
    text = words[torch.randint(6, (BATCHES * T * B // 5 + 1,))].flatten()[: BATCHES * T * B + 1]
    model = CharacterModel(cls(V, H, **options)).to(dtype)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    return [train_epoch(model, text, optimizer) for _ in range(EPOCHS)], model


STACKS = {"one": {}, "two": {"num_layers": 2}, "bidirectional": {"bidirectional": True}}


@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize("impl", ["auto", "cpu"])
@pytest.mark.parametrize("name", ["GRU", "LSTM", "RNN"])
def test_same_perplexity(name: str, impl: str, stack: str) -> None:
    """err(ours) <= 2 * err(torch) + eps, against the same lesson in float64."""
    theirs_cls, ours_cls, options = getattr(nn, name), getattr(fastcells, name), STACKS[stack]
    exact, _ = lesson(theirs_cls, options, torch.float64)
    theirs, _ = lesson(theirs_cls, options, torch.float32)
    ours, model = lesson(ours_cls, {**options, "impl": impl}, torch.float32)
    # LSTM: at this length ATen's is the fastest, and "auto" runs it.
    expected = "aten" if impl == "auto" and name == "LSTM" else "cpu"
    assert fastcells.explain(model.rnn, torch.zeros(T, B, V)).path == expected
    assert exact[-1] < 0.8 * exact[0]  # it learns
    for mine, base, true in zip(ours, theirs, exact, strict=True):
        # Adam divides by gradients near zero, which scatters float32's errors: 1024 roundings are its noise.
        assert abs(mine - true) <= 2 * abs(base - true) + 1024 * torch.finfo(torch.float32).eps * true
