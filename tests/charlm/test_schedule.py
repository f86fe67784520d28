"""The learning rate over a run."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fastcells.charlm import CharLM, Config, Epoch, InputError, Vocabulary, bundled_corpus, preset, train
from fastcells.charlm.schedule import share


def test_cosine_falls_from_1_to_0() -> None:
    shares = [share("cosine", 0, step, 100) for step in range(101)]
    assert shares[0] == 1 and shares[50] == pytest.approx(0.5) and shares[100] == 0
    assert shares == sorted(shares, reverse=True)


@pytest.mark.parametrize("schedule", ["none", "cosine"])
def test_warmup_rises_to_1(schedule: str) -> None:
    assert [share(schedule, 4, step, 100) for step in range(5)] == [0.25, 0.5, 0.75, 1, 1]


def test_none_is_constant() -> None:
    assert {share("none", 0, step, 100) for step in range(100)} == {1}


def test_a_warmup_longer_than_the_run_still_rises() -> None:
    assert [share("cosine", 8, step, 4) for step in range(4)] == [0.125, 0.25, 0.375, 0.5]


@pytest.mark.parametrize("value", [-1, 1.5, True])
def test_bad_warmup(value: object) -> None:
    with pytest.raises(InputError, match=f"warmup must be a number of steps, 0 or more, got {value}"):
        Config(warmup=value)


def test_the_default_settles() -> None:
    """A rate that Adam cannot hold when it is constant, on a short piece of the lesson; it ends at its best."""
    text = bundled_corpus("en", 3000)
    vocabulary = Vocabulary(text)
    found: dict[str, list[float]] = {}
    for schedule in ("cosine", "none"):
        epochs: list[Epoch] = []

        def record(_: CharLM, epoch: Epoch, epochs: list[Epoch] = epochs) -> None:
            epochs.append(epoch)

        config = replace(preset("gru"), hidden=64, batch=8, epochs=60, lr=0.03, schedule=schedule)
        train(vocabulary.encode(text), len(vocabulary), config, on_epoch=record)
        found[schedule] = [epoch.perplexity for epoch in epochs]
    assert found["cosine"][-1] < 1.1 * min(found["cosine"])
    assert max(found["cosine"][40:]) < max(found["none"][40:])
