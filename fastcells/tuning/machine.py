"""What a verdict holds for: a device by name, and the versions of all that runs on it."""

from __future__ import annotations

import ctypes
import hashlib
import importlib.metadata
import platform
import sys
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch

import fastcells.kernels
from fastcells.backends.cpu import native

ARM = ("implementer", "part", "variant")  # in /proc/cpuinfo


class Machine(NamedTuple):
    """As the memory names it."""

    device: str  # a GPU with its capability, or a processor with its instructions and the number of threads
    versions: str  # driver, torch, triton, and a hash of the kernels


def machine(device: torch.device, threads: int) -> Machine:
    """The machine that a tensor on `device` is computed on, by so many threads."""
    if device.type == "cuda":
        return _gpu(device)
    return Machine(f"{processor()}; {native.instruction_set()}; {_count(threads, 'thread')}", versions())


@cache
def _gpu(device: torch.device) -> Machine:
    properties = torch.cuda.get_device_properties(device)
    capability = f"compute capability {properties.major}.{properties.minor}"
    count = _count(properties.multi_processor_count, "multiprocessor")
    driver = f"driver {_driver()}, cuDNN {torch.backends.cudnn.version()}"
    return Machine(f"{properties.name}; {capability}; {count}", f"{driver}, {versions()}")


def _driver() -> int:
    """The CUDA version that the driver knows, 13000 for 13.0; 0 where it cannot be asked, as under ROCm."""
    version = ctypes.c_int()
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
        driver.cuDriverGetVersion(ctypes.byref(version))
    except (OSError, AttributeError):
        return 0
    return version.value


@cache
def versions() -> str:
    """Of torch, triton and the kernels."""
    return f"torch {torch.__version__}, triton {version_of('triton')}, kernels {kernels_hash()}"


@cache
def kernels_hash() -> str:
    """Of every file of fastcells/kernels that is run: the sources in Python and the built C."""
    digest = hashlib.sha256()
    for path in _kernel_files():
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def _kernel_files() -> list[Path]:
    return sorted(
        path
        for folder in fastcells.kernels.__path__
        for pattern in ("**/*.py", "_cpu*.so", "_cpu*.pyd")
        for path in Path(folder).glob(pattern)
    )


@cache
def processor() -> str:
    """Its name, with family and model on x86: virtual machines call several generations by one name.

    Linux knows no names of ARM's processors, but who made them, and numbers.
    """
    try:
        lines = [line.split(":", 1) for line in Path("/proc/cpuinfo").read_text().splitlines() if ":" in line]
    except OSError:
        lines = []
    known = {key.strip(): value.strip() for key, value in reversed(lines)}  # of the first processor
    if "CPU implementer" in known:
        return " ".join([platform.machine(), *(f"{word} {known.get(f'CPU {word}', '?')}" for word in ARM)])
    if "model name" not in known:
        return platform.processor() or platform.machine()
    generation = f" family {known['cpu family']} model {known['model']}" if "cpu family" in known else ""
    return known["model name"] + generation


def version_of(package: str) -> str:
    """Of an installed package; "none" where it is not."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "none"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
