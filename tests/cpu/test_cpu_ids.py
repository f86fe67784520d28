"""Token ids in C: rows of W that are gathered and scattered in the order of their ids."""

from __future__ import annotations

import os

import pytest
import torch

from fastcells.backends.cpu import native
from tests.support.accuracy import EPS, rms_error

if native.obstacle() is not None and os.environ.get("CI") != "true":
    pytest.skip(native.obstacle() or "", allow_module_level=True)

pytestmark = pytest.mark.usefixtures("poisoned_memory")
# tokens, rows of W, words: size 1 in every place, vectors cut off, several blocks of rows, ids nobody names
SHAPES = [(1, 1, 1), (3, 17, 5), (40, 33, 16), (130, 129, 65), (70, 300, 17), (5, 64, 1000), (300, 144, 2)]
EACH_SHAPE = pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "N{}-G{}-V{}".format(*s))


@EACH_SHAPE
def test_gather(shape: tuple[int, int, int], instructions: str, threads: int) -> None:
    N, G, V = shape
    ids, w, b = torch.randint(V, (N,)), torch.randn(G, V), torch.randn(G)
    assert torch.equal(native.gather(ids, w, b), w.t()[ids] + b)
    assert torch.equal(native.gather(ids, w, None), w.t()[ids])


@EACH_SHAPE
def test_scatter(shape: tuple[int, int, int], instructions: str, threads: int) -> None:
    """Of a column in the order of its tokens; of all in any that does not depend on the threads."""
    N, G, V = shape
    ids, d = torch.randint(V, (N,)), torch.randn(N, G)
    d_w, d_b = native.scatter(ids, d, V)
    in_order = torch.zeros(V, G)
    for token, id in enumerate(ids.tolist()):
        in_order[id] += d[token]
    assert torch.equal(d_w, in_order.t())
    exact = d.double().sum(0)
    assert rms_error(d_b, exact) <= 2 * rms_error(d.sum(0), exact) + EPS


def test_the_bias_has_the_same_bits_with_any_number_of_threads(
    instructions: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids, d, found = torch.randint(50, (1000,)), torch.randn(1000, 200), []
    for threads in (1, 2, 3, 5):
        monkeypatch.setattr(native, "_few_threads", lambda touched, threads=threads: threads)
        found.append(native.scatter(ids, d, 50)[1])
    assert all(torch.equal(found[0], other) for other in found)
