"""Threads follow the idle cores, and what is computed does not depend on them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fastcells.backends.cpu import cores
from fastcells.charlm import Config, Vocabulary, bundled_corpus, threads, train
from fastcells.charlm.threads import Threads


@pytest.fixture(autouse=True)
def two_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    monkeypatch.setattr(cores.cores, "follows", True)
    yield
    torch.set_num_threads(before)


class Machine:
    """Two cores of which others take a part; this process takes what it can get of the rest."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.time = self.idle = self.mine = 0.0
        monkeypatch.setattr(cores, "allowed", lambda: {0, 1})
        monkeypatch.setattr(cores, "quota", lambda: 2.0)
        monkeypatch.setattr(cores, "idle", lambda mine: self.idle)
        monkeypatch.setattr(threads.time, "monotonic", lambda: self.time)
        monkeypatch.setattr(threads.time, "process_time", lambda: self.mine)
        monkeypatch.setattr(threads.time, "sleep", lambda seconds: self.run(seconds, others=self.others, mine=0.0))
        self.others = 0.0

    def run(self, seconds: float, *, others: float, mine: float) -> None:
        self.time += seconds
        self.mine += seconds * mine
        self.idle += seconds * (2 - others - mine)


def test_threads_follow_the_idle_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch)
    followed = Threads(None)
    assert followed.follows and torch.get_num_threads() == 2
    machine.run(1.5, others=1.4, mine=0.6)
    followed.look_if_due()
    assert torch.get_num_threads() == 2, "not every moment"
    machine.run(1.0, others=1.4, mine=0.6)
    followed.look_if_due()
    assert torch.get_num_threads() == 1
    machine.run(11.0, others=0.0, mine=1.0)
    followed.look_if_due()
    assert torch.get_num_threads() == 2


def test_a_machine_that_is_busy_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch)
    machine.others = 2.0
    Threads(None)
    assert torch.get_num_threads() == 1


def test_a_number_that_is_given_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch)
    followed = Threads(2)
    machine.run(100.0, others=2.0, mine=0.0)
    followed.look_if_due()
    assert torch.get_num_threads() == 2 and not cores.cores.follows, "in C too"


def test_where_nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores, "STAT", Path("no such file"))
    assert not Threads(None).follows
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize(
    "options",
    [{}, {"clip": 0.5}, {"cell": "lstm"}, {"cell": "rnn", "layers": 2, "dropout": 0.2}],
    ids=lambda options: "-".join(map(str, options.values())) or "gru",
)
def test_losses_do_not_depend_on_the_number_of_threads(options: dict[str, object]) -> None:
    text = bundled_corpus("zh", 2500)
    vocabulary = Vocabulary(text)
    found = []
    for number in (1, 2):
        torch.set_num_threads(number)
        losses: list[float] = []
        config = replace(Config(hidden=128, epochs=2, batch=32, steps=35), **options)
        train(
            vocabulary.encode(text), len(vocabulary), config, on_epoch=lambda _, e, losses=losses: losses.append(e.loss)
        )
        found.append(losses)
    assert found[0] == found[1]
