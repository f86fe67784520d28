"""Shared by all tests: Triton's interpreter, the device, a fixed seed, and which tests a GPU is needed for."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator

import pytest

# Before torch starts OpenMP: threads that wait sleep. They would take the core of the tests in the process beside.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# Nor does inductor compile a program for each set of instructions, to see which the compiler here knows.
os.environ.setdefault("TORCHINDUCTOR_VEC_ISA_OK", "1")

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before anything imports triton: its kernels run on CPU tensors then

# What "auto" runs must not depend on what this machine has measured: no trials, and no file of the user's.
os.environ["FASTCELLS_TUNE"] = "0"
os.environ["FASTCELLS_CACHE_DIR"] = tempfile.mkdtemp(prefix="fastcells-tests-")

# Nor on who else has the cores: teams are as large as a test says.
os.environ["FASTCELLS_FOLLOW"] = "0"

# cuBLAS is asked for, before it starts, what torch.use_deterministic_algorithms needs of it (`poisoned_memory`).
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

# The shapes here are tiny: a second thread costs more than it gives, most of all when the machine is busy.
torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what is marked `gpu` on a machine without one."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a GPU"))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int | None:
    """A process for each core; with a GPU one in all, since the split kernels fill the device."""
    return 1 if torch.cuda.is_available() else None


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(20261121)


@pytest.fixture(autouse=True)
def default_device() -> Iterator[None]:
    """FASTCELLS_TEST_DEVICE=cuda has the tests that name no device make all tensors there, and compare without TF32.

    FASTCELLS_TEST_IMPL then names what the idiom tests run in place of the kernels in C.
    """
    name = os.environ.get("FASTCELLS_TEST_DEVICE")
    if name is None:
        yield
        return
    pack = torch._VF._pack_padded_sequence
    with (
        torch.backends.cudnn.flags(enabled=True, allow_tf32=False),
        torch.device(name),
        pytest.MonkeyPatch.context() as patch,
    ):
        # Lengths are the host's to know, in torch.nn.utils.rnn, whatever the device.
        patch.setattr(torch._VF, "_pack_padded_sequence", lambda x, n, first: pack(x, n.cpu(), first))
        yield


@pytest.fixture(scope="session")
def device() -> torch.device:
    """The machine's GPU if it has one, so that the same tests prove both."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture
def poisoned_memory() -> Iterator[None]:
    """torch.empty returns NaN, so that a buffer read before it is written shows."""
    before = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    assert torch.zeros(1).new_empty(99).isnan().all()
    yield
    torch.use_deterministic_algorithms(before[0])
    torch.utils.deterministic.fill_uninitialized_memory = before[1]


@pytest.fixture
def strict_float32() -> Iterator[None]:
    """No TF32 on a GPU, neither in ours nor in torch's: what is left are errors and float32's own rounding."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield
