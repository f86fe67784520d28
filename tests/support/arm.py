"""The C kernels compiled for ARM and run by qemu: a driver of their own, and calls as `fastcells.kernels._cpu` takes
them."""

from __future__ import annotations

import ctypes
import math
import shutil
import struct
import subprocess
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from fastcells.backends.cpu.arguments import TABLES, Argument, c_module

KERNELS = Path(__file__).parents[2] / "kernels" / "cpu"
PROGRAMS = Path(__file__).parents[1] / "cpu"
COMPILER, EMULATOR, DISASSEMBLER = "aarch64-linux-gnu-gcc", "qemu-aarch64", "aarch64-linux-gnu-objdump"
# Static, so that the emulator needs no libraries of ARM. The kernels as setup.py compiles them.
FLAGS = ["-std=gnu11", "-static", "-Wno-psabi"]
KERNEL_FLAGS = ["-O3", "-Wall", "-Wextra", "-Wconversion", "-Werror"]
BYTES = {"float": 4, "int32_t": 4, "int64_t": 8, "uint8_t": 1}
# Tensors whose rows lie apart, and the argument that says how far.
# How far apart a tensor's rows lie, where they need not lie side by side: all dimensions' but the last.
STRIDES = {
    ("weight_grad", "d"): ("d_stride",),
    ("weight_grad", "d_rest"): ("rest_stride",),
    ("linear", "x"): ("x_stride",),
    ("linear", "out"): ("out_stride",),
    ("cross_entropy", "x"): ("x_stride",),
    ("layer", "x"): ("x_time", "x_row"),
    ("layer", "out"): ("out_time", "out_row"),
}
NAME_BYTES = 24


def missing() -> str | None:
    """Why nothing can be compiled for ARM or run here, or None."""
    lacking = [tool for tool in (COMPILER, EMULATOR) if shutil.which(tool) is None]
    return (
        f"there is no {' and no '.join(lacking)} here (Debian: gcc-aarch64-linux-gnu, qemu-user)" if lacking else None
    )


def objects(folder: Path, sources: Path = KERNELS) -> list[Path]:
    """The kernels, compiled."""
    files = [path for path in sorted(sources.glob("*.c")) if path.name not in ("module.c", "tensors.c")]
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(lambda path: compile(path, folder), files))


def compile(source: Path, folder: Path) -> Path:
    """One file of them; without a warning."""
    to = folder / f"{source.stem}.o"
    subprocess.run([COMPILER, *FLAGS, *KERNEL_FLAGS, "-c", source, "-o", to], check=True, timeout=300)
    return to


def program(source: str, kernels: Iterable[Path], folder: Path, *defines: str) -> Path:
    """A program of tests/cpu linked with the kernels."""
    path = PROGRAMS / source
    to = folder / path.stem
    options = [*FLAGS, "-O1", *(f"-D{define}" for define in defines), f"-I{KERNELS}"]
    subprocess.run([COMPILER, *options, path, *kernels, "-o", to, "-lm", "-lpthread"], check=True, timeout=300)
    return to


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([EMULATOR, *map(str, command)], capture_output=True, text=True, timeout=300)


class Server:
    """Takes the calls of `fastcells.kernels._cpu`; serve.c computes them."""

    def __init__(self, served: Path, instructions: str) -> None:
        command = [EMULATOR, str(served), instructions]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def close(self) -> None:
        self._process.communicate()
        assert self._process.returncode == 0, f"the emulated program ended with {self._process.returncode}"

    def __getattr__(self, kernel: str) -> Any:
        if kernel.removesuffix("_bf16") not in TABLES:
            return getattr(c_module, kernel)  # what it knows of cells and arguments

        def call(*given: int, **named: int) -> int | None:
            _, threads, *arguments = given
            status = self._call(kernel, threads, [*arguments, *named.values()])
            if kernel in ("gather", "scatter", "linear_cross_entropy"):
                return status
            if status > 0:
                raise ValueError(f"word {status - 1} of the program is not valid")
            assert status == 0, f"{kernel} returned {status}"
            return None

        return call

    def activations(self, instructions: int, x: int, sigmoid: int, tanh: int, n: int) -> None:
        del instructions
        tensors = [Argument("", kind, "float", "n", "") for kind in ("read", "write", "write")]
        table = [*tensors, Argument("n", "number", "", "", "")]
        self._send("activations", 1, table, [x, sigmoid, tanh, n], {"n": n})

    def _call(self, kernel: str, threads: int, values: list[int]) -> int:
        table = TABLES[kernel.removesuffix("_bf16")]
        assert len(values) == len(table)
        numbers = {a.name: int(value) for a, value in zip(table, values, strict=True) if a.kind == "number"}
        return self._send(kernel, threads, table, values, sizes(numbers))

    def _send(self, kernel: str, threads: int, table: list[Argument], values: list[int], known: dict[str, int]) -> int:
        message, written = [struct.pack(f"<{NAME_BYTES}sQ", kernel.encode(), threads)], []
        for argument, value in zip(table, values, strict=True):
            if argument.kind == "number":
                message.append(struct.pack("<Q", int(value)))
                continue
            size = extent(kernel, argument, known) if value else 0
            message += [struct.pack("<Q", size), ctypes.string_at(value, size) if size else b""]
            if argument.kind != "read" and size:
                written.append((value, size))
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(b"".join(message))
        self._process.stdin.flush()
        (status,) = struct.unpack("<q", self._process.stdout.read(8))
        for address, size in written:
            ctypes.memmove(address, self._process.stdout.read(size), size)
        return int(status)


def sizes(numbers: dict[str, int]) -> dict[str, int]:
    """What the letters in arguments.h's shapes stand for in a call with these numbers."""
    known = dict(numbers)
    if "cell" in numbers:
        _, known["G"], _, known["S"], known["A"] = c_module.cells()[numbers["cell"]]
    if "states" in numbers:
        letters = {"G": "gates", "N": "states", "S": "num_saved", "E": "parameters"}
        letters |= {"P": "program_size", "P2": "second_size"}
        known |= {letter: numbers[name] for letter, name in letters.items()}
    if "heads" in numbers:
        known["D"] = numbers["H"] // max(1, numbers["heads"])
    return known | ({"N": numbers["tokens"], "R": numbers["rest_rows"]} if "split" in numbers else {})


def extent(kernel: str, argument: Argument, known: dict[str, int]) -> int:
    """Bytes from the first element of a tensor to its last one."""
    shape = [int(eval(word, {}, known)) for word in argument.shape.split()]
    strides = STRIDES.get((kernel.removesuffix("_bf16"), argument.name))
    elements = math.prod(shape)
    if strides is not None:
        elements = sum((n - 1) * known[s] for n, s in zip(shape, strides, strict=False)) + shape[-1]
    element = 2 if kernel.endswith("_bf16") else 4
    return elements * (element if argument.type == "element" else BYTES[argument.type])
