"""The loss of a model on a text that it does not learn from, and the parts that a text is split into."""

from __future__ import annotations

import math

import torch

from fastcells.charlm.errors import InputError
from fastcells.charlm.model import CharLM, State
from fastcells.charlm.sampling import Ids, as_tensor

LEAST = 2  # characters: one to see and one to say


@torch.no_grad()
def mean_loss(model: CharLM, ids: Ids, batch: int, steps: int) -> float:
    """Mean cross-entropy in nats a character of ids [N], in `batch` rows that are read from left to right.

    Each row starts from a state of zeros; at most `batch` characters at the end are left out.

    Raises:
        InputError: fewer than two characters.
    """
    if len(ids) < LEAST:
        raise InputError(f"a text of {len(ids)} characters cannot be measured: it needs {LEAST}")
    device, training = model.output.weight.device, model.training
    batch = min(batch, len(ids) // LEAST)
    rows = ids[: len(ids) // batch * batch].reshape(batch, -1)
    total, count = torch.zeros((), dtype=torch.float64, device=device), 0
    state: State | None = None
    model.eval()
    try:
        for start in range(0, rows.shape[1] - 1, steps):
            window = as_tensor(rows[:, start : start + steps + 1]).to(device)
            target = window[:, 1:]
            loss, state = model(window[:, :-1], state, target)
            total += loss.double() * target.numel()
            count += target.numel()
    finally:
        model.train(training)
    return total.item() / count


def split(ids: Ids, validation: float, test: float) -> tuple[Ids, Ids, Ids]:
    """What is learned, what is looked at on the way, and what is measured once: from the beginning to the end.

    Raises:
        InputError: a part that is asked for has fewer than two characters.
    """
    ends = [len(ids) - int(len(ids) * share) for share in (validation + test, test)]
    parts = ids[: ends[0]], ids[ends[0] : ends[1]], ids[ends[1] :]
    for name, share, part in (("validation", validation, parts[1]), ("test", test, parts[2])):
        if share and len(part) < LEAST:
            raise InputError(f"--{name} {share} of {len(ids)} characters is {len(part)}: too few to measure")
    return parts


def bits(loss: float) -> float:
    """Nats to bits."""
    return loss / math.log(2)
