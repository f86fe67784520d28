"""Text from a trained model: warmed up on a prefix, then one character after the other."""

from __future__ import annotations

import torch
from torch import Tensor

from fastcells.charlm.errors import InputError
from fastcells.charlm.model import CharLM
from fastcells.charlm.stepper import stepper
from fastcells.charlm.vocabulary import Vocabulary


@torch.no_grad()
def generate(
    model: CharLM,
    vocabulary: Vocabulary,
    prefix: str,
    length: int,
    *,
    temperature: float = 0.0,
    top_k: int | None = None,
    unknown: str = "error",
    generator: torch.Generator | None = None,
) -> str:
    """`prefix` and `length` more characters.

    temperature: 0 takes the likeliest character each time (greedy); above 0 draws from softmax(logits / temperature).
    top_k: draw among the k likeliest only. unknown: "error" or "skip", for characters of the prefix that the model
    does not know. generator: a CPU generator, for the same text from the same seed.

    Raises:
        InputError: an empty prefix, an unknown character, a negative temperature or length, or top_k below 1.
    """
    if length < 0:
        raise InputError(f"length must not be negative, got {length}")
    if not temperature >= 0:
        raise InputError(f"temperature must be 0 or above, got {temperature}")
    if top_k is not None and top_k < 1:
        raise InputError(f"top_k must be at least 1, got {top_k}")
    known = encode_prefix(vocabulary, prefix, unknown=unknown).tolist()
    training = model.training
    model.eval()
    try:
        step = stepper(model)
        for token in known[:-1] if length else []:
            step(token)
        for _ in range(length):
            known.append(int(_pick(step(known[-1]), temperature, top_k, generator)))
    finally:
        model.train(training)
    return vocabulary.decode(known)


def encode_prefix(vocabulary: Vocabulary, prefix: str, *, unknown: str = "error") -> Tensor:
    """The prefix's ids, newlines as in the corpus. Raises InputError if there is nothing to go on from."""
    if "\n" in vocabulary.characters:
        prefix = prefix.replace("\r\n", "\n").replace("\r", "\n")
    else:
        prefix = prefix.replace("\n", " ").replace("\r", " ")
    ids = vocabulary.encode(prefix, unknown=unknown)
    if len(ids) == 0:
        raise InputError(f"the prefix {prefix!r} has no character that the model knows: nothing to go on from")
    return ids


def _pick(logits: Tensor, temperature: float, top_k: int | None, generator: torch.Generator | None) -> Tensor:
    """One character's id, from logits [V] on the CPU."""
    if temperature == 0:
        return logits.argmax()
    values, ids = logits.topk(min(top_k or len(logits), len(logits)))
    probabilities = torch.softmax((values.double() - values.max()) / temperature, 0)  # a tiny temperature: no inf / inf
    return ids[torch.multinomial(probabilities, 1, generator=generator)]
