"""Shared by all tests: the device, and a fixed seed."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(20261121)


@pytest.fixture(scope="session")
def device() -> torch.device:
    """The machine's GPU if it has one, so that the same tests prove both."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
