"""Text from a trained model: warmed up on a prefix, then one character after the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from fastcells.charlm.choose import Choosing
from fastcells.charlm.errors import InputError
from fastcells.charlm.model import CharLM, State
from fastcells.charlm.stepper import stepper
from fastcells.charlm.vocabulary import Vocabulary


def generate(
    model: CharLM,
    vocabulary: Vocabulary,
    prefix: str,
    length: int,
    *,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    stop: str | None = None,
    unknown: str = "error",
    generator: torch.Generator | None = None,
) -> str:
    """`prefix` and `length` more characters, or fewer if `stop` comes before; it is not part of what is returned.

    temperature, top_k, top_p, min_p: as `Choosing` says. unknown: "error", "skip" or "replace", for characters of the
    prefix that the model does not know. generator: a CPU generator, for the same text from the same seed.

    Raises:
        InputError: an empty prefix, an unknown character, a negative length, or an option of `Choosing` out of range.
    """
    if length < 0:
        raise InputError(f"length must not be negative, got {length}")
    choosing = Choosing(temperature, top_k, top_p, min_p)
    known = vocabulary.decode(encode_prefix(vocabulary, prefix, unknown=unknown).tolist())
    options = {"length": length, "stop": stop, "unknown": unknown, "generator": generator}
    return known + "".join(stream(model, vocabulary, prefix, choosing, **options))  # type: ignore[arg-type]


@torch.no_grad()
def stream(
    model: CharLM,
    vocabulary: Vocabulary,
    prefix: str,
    choosing: Choosing,
    *,
    length: int | None = None,
    stop: str | None = None,
    unknown: str = "error",
    generator: torch.Generator | None = None,
) -> Iterator[str]:
    """What follows the prefix, character by character, without end if `length` is None. Raises as `generate`.

    Characters that may be the beginning of `stop` come when it is known that they are not.
    """
    _check_stop(stop)
    ids = encode_prefix(vocabulary, prefix, unknown=unknown).tolist()
    training = model.training
    model.eval()
    try:
        step = stepper(model)
        for token in ids[:-1]:
            step(token)
        token, held = ids[-1], ""
        while length is None or length > 0:
            token = int(choosing.pick(step(token).unsqueeze(0), generator))
            held += vocabulary.characters[token]
            length = None if length is None else length - 1
            if stop is not None and held.endswith(stop):
                held = held[: -len(stop)]
                break
            sure = len(held) - _begun(held, stop)
            if sure:
                yield held[:sure]
                held = held[sure:]
        if held:
            yield held
    finally:
        model.train(training)


@torch.no_grad()
def generate_batch(
    model: CharLM,
    vocabulary: Vocabulary,
    prefixes: Sequence[str],
    length: int,
    choosing: Choosing,
    *,
    samples: int = 1,
    stop: str | None = None,
    unknown: str = "error",
    generator: torch.Generator | None = None,
) -> list[str]:
    """As `generate`, for several prefixes and `samples` of each in one pass; those of the first prefix come first."""
    if length < 0 or samples < 1:
        raise InputError(f"length must not be negative and samples be 1 or more, got {length} and {samples}")
    _check_stop(stop)
    rows = [encode_prefix(vocabulary, p, unknown=unknown) for p in prefixes for _ in range(samples)]
    texts = [vocabulary.decode(row.tolist()) for row in rows]
    begins = [len(text) for text in texts]
    training, device = model.training, model.output.weight.device
    model.eval()
    try:
        scores, state = _warm(model, rows)
        going = [True] * len(rows)
        for left in range(length, 0, -1):
            tokens = choosing.pick(scores.float().cpu(), generator)
            for i, character in enumerate(vocabulary.decode([token]) for token in tokens.tolist()):
                if going[i]:
                    texts[i] += character
                    if stop is not None and texts[i].endswith(stop, begins[i]):
                        texts[i], going[i] = texts[i][: -len(stop)], False
            if left == 1 or not any(going):
                break
            logits, state = model(tokens.to(device)[:, None], state)
            scores = logits[:, -1]
        return texts
    finally:
        model.train(training)


def encode_prefix(vocabulary: Vocabulary, prefix: str, *, unknown: str = "error") -> Tensor:
    """The prefix's ids, newlines as in the corpus. Raises InputError if there is nothing to go on from."""
    ids = vocabulary.encode(as_learned(vocabulary, prefix), unknown=unknown)
    if len(ids) == 0:
        raise InputError(f"the prefix {prefix!r} has no character that the model knows: nothing to go on from")
    return ids


def as_learned(vocabulary: Vocabulary, text: str) -> str:
    """The text with its newlines as the corpus has them: kept, or as spaces."""
    if "\n" in vocabulary.characters:
        return text.replace("\r\n", "\n").replace("\r", "\n")
    return text.replace("\n", " ").replace("\r", " ")


def _warm(model: CharLM, rows: list[Tensor]) -> tuple[Tensor, State]:
    """Scores [B, V] of what follows each row, and the states; rows of the same length together."""
    device = model.output.weight.device
    order: list[int] = []
    scores: list[Tensor] = []
    states: list[tuple[Tensor, ...]] = []
    for length in sorted({len(row) for row in rows}):
        members = [i for i, row in enumerate(rows) if len(row) == length]
        logits, state = model(torch.stack([rows[i] for i in members]).to(device))
        order += members
        scores.append(logits[:, -1])
        states.append(state if isinstance(state, tuple) else (state,))
    back = torch.tensor(order, device=device).argsort()
    joined = tuple(torch.cat(parts, 1)[:, back] for parts in zip(*states, strict=True))
    return torch.cat(scores)[back], joined[0] if len(joined) == 1 else joined


def _check_stop(stop: str | None) -> None:
    if stop == "":
        raise InputError("stop must have at least one character")


def _begun(text: str, stop: str | None) -> int:
    """How many characters at the end of `text` may be the beginning of `stop`."""
    longest = min(len(text), len(stop) - 1) if stop else 0
    return next((n for n in range(longest, 0, -1) if stop is not None and stop.startswith(text[-n:])), 0)
