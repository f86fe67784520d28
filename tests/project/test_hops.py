"""The way from a layer to a kernel, as CONTRIBUTING.md prints it: walked, and at most eight calls long."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch

import fastcells
from fastcells.backends.cpu import native

ROOT = Path(__file__).parents[2]
MOST = 8
Way = list[tuple[str, str]]  # function and file, from the layer to the kernel


def printed(title: str) -> Way:
    """The way under a heading of CONTRIBUTING.md; the last line names the kernel itself."""
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    section = text.split(f"### {title}\n")[1].split("```")[1]
    lines = re.findall(r"^ *([\w.]+) +(\S+)$", section, re.M)
    return [(name.rsplit(".", 1)[-1], file) for name, file in lines]


class Reached(Exception):
    """The kernel was called; the frames that led there are in `way`."""

    def __init__(self) -> None:
        self.way: Way = []
        frame: FrameType | None = sys._getframe(2)
        while frame is not None:
            file = Path(frame.f_code.co_filename).resolve()
            if file.is_relative_to(ROOT / "fastcells") or file.is_relative_to(ROOT / "kernels"):
                self.way.insert(0, (frame.f_code.co_name, str(file.relative_to(ROOT))))
            frame = frame.f_back


class Kernel:
    """Stands for a compiled function, or for a Triton kernel with its grid."""

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        raise Reached

    def __getitem__(self, grid: Any) -> Kernel:
        return self


def walked(impl: str, ids: bool) -> Way:
    layer = fastcells.GRU(5, 16, impl=impl)
    x = torch.randint(5, (4, 2)) if ids else torch.randn(4, 2, 5)
    with pytest.raises(Reached) as reached:
        layer(x)
    return reached.value.way


@pytest.mark.parametrize("ids", [False, True], ids=["dense", "token ids"])
def test_to_c(ids: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if native.obstacle() is not None:
        pytest.skip(native.obstacle() or "")
    real = native._cpu

    class Module:
        def __getattr__(self, name: str) -> Any:
            return Kernel() if name == "forward" else getattr(real, name)

    monkeypatch.setattr(native, "_cpu", Module())
    *way, kernel = printed("To C")
    assert walked("cpu", ids) == way
    assert kernel == ("forward", "kernels/cpu/module.c") and len(way) <= MOST


@pytest.mark.parametrize("ids", [False, True], ids=["dense", "token ids"])
def test_to_triton(ids: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton", reason="the kernels are written in Triton")
    from fastcells.kernels.triton import launch_sequence

    monkeypatch.setattr(launch_sequence, "sequence_forward_kernel", Kernel())
    *way, kernel = printed("To a Triton kernel")
    assert walked("triton", ids) == way
    assert kernel == ("sequence_forward_kernel", "kernels/triton/sequence.py") and len(way) <= MOST
