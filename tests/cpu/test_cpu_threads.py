"""The C kernels and threads: torch's, Python's, and processes that are forked."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from fastcells.backends.cpu import native
from tests.support.shapes import CELLS, EACH_CELL, Case, Shape, gradients

pytestmark = pytest.mark.skipif(native.obstacle() is not None, reason=str(native.obstacle()))
SHAPES = [Shape(3, 5, 70, 4), Shape(4, 1, 40, 3), Shape(2, 33, 9, 3)]


@pytest.fixture(autouse=True)
def small_work(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Teams for the smallest shapes too."""
    monkeypatch.setattr(native, "WORK_OF_A_THREAD", 1)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def train(case: Case, leaves: list[Tensor], seed: int) -> list[Tensor]:
    """Outputs and gradients."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(len(leaves[0]) + 1, (leaves[0].shape[1],), generator=generator)
    outputs = case.ours(*leaves, impl="cpu", lengths=lengths, reverse=bool(seed % 2))
    d_outputs = [torch.randn(o.shape, generator=generator) for o in outputs]
    return [*outputs, *gradients(outputs, leaves, d_outputs)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@EACH_CELL
def test_the_same_bits_with_any_number_of_threads(case: Case, shape: Shape) -> None:
    leaves = case.arguments(shape, torch.float32)
    torch.set_num_threads(1)
    expected = train(case, leaves, 1)
    for threads in (2, 3, 4):
        torch.set_num_threads(threads)
        for _ in range(17):
            assert all(map(torch.equal, train(case, leaves, 1), expected)), f"{threads} threads"
    torch.set_num_threads(1)
    assert all(map(torch.equal, train(case, leaves, 1), expected)), "back to one"


def test_python_threads_at_once() -> None:
    """Each with its own team, and torch's operators in between."""
    torch.set_num_threads(2)
    jobs = [(case, case.arguments(shape, torch.float32), i) for i, case in enumerate(CELLS) for shape in SHAPES]
    expected = [train(*job) for job in jobs]
    wrong: list[str] = []

    def work(number: int) -> None:
        torch.set_num_threads(2)
        for i in range(3 * len(jobs)):
            at = (i * 7 + number) % len(jobs)
            found = train(*jobs[at])
            if not all(map(torch.equal, found, expected[at])):
                wrong.append(f"thread {number}: {jobs[at][0].name}")
            (torch.randn(300, 300) @ torch.randn(300, 300)).exp().sum()

    threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(120)
    assert not any(t.is_alive() for t in threads) and not wrong, wrong


def test_other_threads_run_meanwhile() -> None:
    """The GIL is released."""
    T, B, H = 400, 32, 256
    x, h0, w = torch.randn(T, B, 3 * H), torch.zeros(B, H), torch.randn(3 * H, H) / 16
    started, done, turns = threading.Event(), threading.Event(), 0

    def call() -> None:
        started.set()
        native.forward("gru", x, (h0,), w, None, None)
        done.set()

    thread = threading.Thread(target=call)
    thread.start()
    started.wait()
    while not done.is_set():
        time.sleep(0.001)
        turns += 1
    thread.join()
    assert turns > 5


class Outputs(Dataset[Tensor]):
    """A data set that computes its items with a layer."""

    def __init__(self, case: Case, leaves: list[Tensor]) -> None:
        self.case, self.leaves = case, leaves

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> Tensor:
        return torch.cat([t.detach().flatten() for t in train(self.case, self.leaves, index)])


@EACH_CELL
def test_in_a_forked_worker(case: Case) -> None:
    """After this process has used OpenMP, whose threads a fork loses. A worker has one thread, by torch's doing."""
    torch.set_num_threads(2)
    data = Outputs(case, case.arguments(SHAPES[0], torch.float32))
    expected = [data[i] for i in range(len(data))]
    loader = DataLoader(data, batch_size=None, num_workers=1, multiprocessing_context="fork", timeout=60)
    assert all(map(torch.equal, loader, expected))
