"""Minibatches: every character once, Y one later than X, and what a corpus must have at least."""

from __future__ import annotations

import itertools

import pytest
import torch

from fastcells.charlm import InputError
from fastcells.charlm.sampling import batches, batches_per_epoch

SHAPES = [(101, 4, 5), (100, 1, 1), (1000, 7, 13), (37, 3, 11)]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("sampling", ["random", "consecutive"])
@pytest.mark.parametrize(("length", "batch", "steps"), SHAPES)
def test_shapes_and_targets(sampling: str, length: int, batch: int, steps: int) -> None:
    found = list(batches(torch.arange(length), sampling, batch, steps, generator()))
    assert len(found) == batches_per_epoch(length, sampling, batch, steps) > 0
    for x, y in found:
        assert x.shape == y.shape == (batch, steps)
        assert torch.equal(y, x + 1)
        assert torch.equal(x[:, 1:], y[:, :-1])


@pytest.mark.parametrize("sampling", ["random", "consecutive"])
@pytest.mark.parametrize(("length", "batch", "steps"), SHAPES)
def test_no_character_twice(sampling: str, length: int, batch: int, steps: int) -> None:
    seen = torch.cat([x.flatten() for x, _ in batches(torch.arange(length), sampling, batch, steps, generator())])
    assert len(seen.unique()) == len(seen)
    assert len(seen) > length - batch * steps - max(batch, steps) - 1  # at most one batch's worth is left out


def test_consecutive_rows_go_on_where_the_last_batch_ended() -> None:
    found = list(batches(torch.arange(1000), "consecutive", 7, 13, generator()))
    for (x, _), (later, _) in itertools.pairwise(found):
        assert torch.equal(later[:, 0], x[:, -1] + 1)


def test_random_shuffles_by_the_generator() -> None:
    first, second, other = (
        torch.stack([x for x, _ in batches(torch.arange(1000), "random", 7, 13, generator(seed))]) for seed in (1, 1, 2)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(("sampling", "needed"), [("random", 32 * 35 + 1), ("consecutive", 32 * 36)])
def test_too_short_a_corpus_says_how_many_characters_are_needed(sampling: str, needed: int) -> None:
    ids = torch.arange(needed)
    assert len(list(batches(ids, sampling, 32, 35, generator()))) == 1
    with pytest.raises(InputError, match=f"has {needed - 1} characters, .* needs {needed} with {sampling}"):
        batches(ids[:-1], sampling, 32, 35, generator())


def test_unknown_sampling() -> None:
    with pytest.raises(InputError, match="one of random, consecutive, got 'shuffled'"):
        batches(torch.arange(100), "shuffled", 2, 2, generator())
