"""What glibc is asked to keep stays: the second use of as much memory meets no page for the first time."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator only")

FAULTS = """
import resource, sys, torch
from fastcells.charlm.allocator import keep_freed_memory

def use():
    logits = [torch.ones(1120, 1027) for _ in range(4)]  # 4.6 MB each

kept = keep_freed_memory() if sys.argv[1] == "keep" else False
for _ in range(3):
    use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    use()
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(argument: str, **environment: str) -> tuple[bool, int]:
    plain = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_") and k != "GLIBC_TUNABLES"}
    command = [sys.executable, "-c", FAULTS, argument]
    kept, count = subprocess.check_output(command, env=plain | environment, text=True).split()
    return kept == "True", int(count)


def test_freed_memory_is_kept() -> None:
    kept, count = page_faults("keep")
    assert kept and count < 500, "a tensor alone has 1,100 pages"
    # What is allocated above the freed memory keeps it from being given back: on a busy machine that happens.
    assert any(page_faults("no")[1] > 4000 for _ in range(5)), "without it, this test would show nothing"


def test_malloc_settings_of_the_user_are_left_alone() -> None:
    assert page_faults("keep", MALLOC_ARENA_MAX="2")[0] is False
