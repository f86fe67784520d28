"""The C kernels under sanitizers and under every compiler here, without Python: sanitizers/driver.c drives them."""

from __future__ import annotations

import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

KERNELS = Path(__file__).parents[2] / "kernels" / "cpu"
DRIVER = Path(__file__).parent / "sanitizers" / "driver.c"
PYTHON = ("module.c", "tensors.c")  # what talks to Python
SOURCES = sorted(path for path in KERNELS.glob("*.c") if path.name not in PYTHON)
SANITIZERS = {"memory": "address,undefined", "threads": "thread"}
# A sanitizer does not see what AMX's instructions read.
TILES = Path(__file__).parent / "sanitizers" / "emulated_tiles.h"
# -Og: a fault is found sooner in code that is close to its source, and it compiles in a third of -O1's time. A report
# names lines, for which -g1 is enough.
FLAGS = ["-std=gnu11", "-Og", "-g1", "-Wno-psabi", "-fno-sanitize-recover=all", "-include", str(TILES)]
LIBRARIES = ["-lm", "-ldl", "-lpthread"]
ENVIRONMENT = {**os.environ, "TSAN_OPTIONS": "halt_on_error=1", "ASAN_OPTIONS": "detect_leaks=1"}
WARNINGS = [
    "-Wall",
    "-Wextra",
    "-Wconversion",
    "-Werror",
    "-Wno-psabi",
]  # psabi: no vector goes from one file to another


def missing(what: str) -> None:
    """Skip the test; CI has to have what it needs."""
    assert not os.environ.get("CI"), f"CI needs {what}"
    pytest.skip(f"there is no {what} here")


def compiler() -> str:
    found = os.environ.get("CC") or shutil.which("gcc") or shutil.which("cc")
    if found is None:
        missing("C compiler")
    assert found is not None
    return found


def run(*command: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, env=ENVIRONMENT, timeout=300)
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


class Build:
    """The kernels compiled under one sanitizer, to be linked with variants of the driver."""

    def __init__(self, sanitizer: str, folder: Path) -> None:
        self.flags = [*FLAGS, f"-fsanitize={SANITIZERS[sanitizer]}"]
        self.folder = folder
        empty = folder / "empty.c"
        empty.write_text("int main(void) { return 0; }\n")
        if run(compiler(), *self.flags, empty, "-o", folder / "empty", check=False).returncode:
            missing(f"runtime of -fsanitize={SANITIZERS[sanitizer]}")
        run(folder / "empty")
        self.objects = {source.stem: folder / f"{source.stem}.o" for source in SOURCES}
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda s: run(compiler(), *self.flags, "-c", s, "-o", self.objects[s.stem]), SOURCES))

    def driver(self, *defines: str, without: str = "") -> Path:
        program = self.folder / "-".join(["driver", *defines])
        objects = [path for name, path in self.objects.items() if name != without]
        options = [*self.flags, *(f"-D{define}" for define in defines), f"-I{KERNELS}"]
        run(compiler(), *options, DRIVER, *objects, "-o", program, *LIBRARIES)
        return program

    @cached_property
    def instruction_sets(self) -> list[str]:
        """Those that the driver has run, each without a complaint."""
        return run(self.driver()).stdout.split()


@pytest.fixture(scope="module")
def memory(tmp_path_factory: pytest.TempPathFactory) -> Build:
    return Build("memory", tmp_path_factory.mktemp("memory"))


@pytest.fixture(scope="module")
def threads(tmp_path_factory: pytest.TempPathFactory) -> Build:
    return Build("threads", tmp_path_factory.mktemp("threads"))


def test_memory_and_undefined_behaviour(memory: Build) -> None:
    assert "portable" in memory.instruction_sets


def test_data_races(threads: Build) -> None:
    assert "portable" in threads.instruction_sets


def test_an_output_one_float_too_small_is_found(memory: Build) -> None:
    program = memory.driver("OVERRUN=1")
    for name in memory.instruction_sets:
        done = run(program, name, check=False)
        assert done.returncode and "heap-buffer-overflow" in done.stderr and "kernels/cpu" in done.stderr, done


def test_barriers_that_do_not_wait_are_found(threads: Build) -> None:
    program = threads.driver("RACY", without="team")
    for name in threads.instruction_sets:
        done = run(program, name, check=False)
        assert done.returncode and "data race" in done.stderr, done


def test_a_wrong_number_is_found(memory: Build) -> None:
    done = run(memory.driver("WRONG=1e-3"), check=False)
    assert done.returncode == 1 and "instead of" in done.stderr, done


@pytest.mark.parametrize("name", ["gcc", "clang"])
def test_no_warnings(name: str, tmp_path: Path) -> None:
    if shutil.which(name) is None:
        pytest.skip(f"there is no {name} here")
    for source in SOURCES:
        run(name, "-std=gnu11", "-O1", *WARNINGS, "-c", source, "-o", tmp_path / "object.o")
