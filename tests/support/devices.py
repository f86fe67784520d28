"""Which device the tests run on that name none: see tests/conftest.py."""

from __future__ import annotations

import os

import pytest

OF_A_CPU = pytest.mark.skipif("FASTCELLS_TEST_DEVICE" in os.environ, reason="it says what a CPU does")
