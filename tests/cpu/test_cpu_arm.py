"""The C kernels on ARM: cross-compiled and run by qemu, NEON and the portable code.

A driver in C checks every kernel against loops in double precision, and the tests of accuracy that other instructions
pass are passed by NEON: its results come from the emulator, torch's and the truth from here.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from fastcells.backends.cpu import native, products
from tests.cpu import (
    test_cpu_accuracy,
    test_cpu_bf16,
    test_cpu_cross_entropy,
    test_cpu_defined,
    test_cpu_ids,
    test_cpu_linear,
    test_cpu_programs,
)
from tests.support import arm
from tests.support.shapes import EACH_CELL, Case

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(arm.missing() is not None, reason=str(arm.missing())),
    pytest.mark.usefixtures("poisoned_memory"),
]


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return arm.objects(tmp_path_factory.mktemp("kernels"))


@pytest.fixture(scope="module")
def driver(kernels: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return arm.program("sanitizers/driver.c", kernels, tmp_path_factory.mktemp("driver"))


@pytest.fixture(scope="module")
def server(kernels: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[arm.Server]:
    served = arm.Server(arm.program("arm/serve.c", kernels, tmp_path_factory.mktemp("serve")), "neon")
    yield served
    served.close()


@pytest.fixture
def instructions(server: arm.Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """In place of conftest.py's: whatever runs in C runs in the emulator."""
    monkeypatch.setattr(native, "_cpu", server)
    monkeypatch.setattr(native, "INSTRUCTIONS", {"neon": True})
    monkeypatch.setattr(native, "_instructions", 0)
    monkeypatch.setattr(native, "BF16_INSTRUCTIONS", {"neon_bf16": True})
    monkeypatch.setattr(native, "_bf16_instructions", 0)
    monkeypatch.setattr(products, "BF16_INSTRUCTIONS", {"neon_bf16": True})
    return native.instruction_set()


test_accuracy = test_cpu_accuracy.test_accuracy
test_resets = test_cpu_accuracy.test_resets
test_activations = test_cpu_accuracy.test_activations
test_nan_stays_in_its_row = test_cpu_accuracy.test_nan_stays_in_its_row
test_large_inputs_give_no_nan = test_cpu_accuracy.test_large_inputs_give_no_nan
test_any_number_of_threads_gives_the_same_bits = test_cpu_accuracy.test_any_number_of_threads_gives_the_same_bits
test_defined_cells = test_cpu_defined.test_accuracy
test_functions = test_cpu_programs.test_functions
test_operations = test_cpu_programs.test_operations
test_cross_entropy = test_cpu_cross_entropy.test_accuracy
test_linear_cross_entropy = test_cpu_cross_entropy.test_a_linear_layer_and_its_loss_in_one_call
test_gather = test_cpu_ids.test_gather
test_scatter = test_cpu_ids.test_scatter
test_products_that_add = test_cpu_cross_entropy.test_products_that_add
any_threads = test_cpu_linear.any_threads
test_linear = test_cpu_linear.test_accuracy_and_the_same_bits_with_any_number_of_threads


@pytest.mark.parametrize("index", range(len(test_cpu_bf16.OPTIONS)))
@EACH_CELL
def test_bfloat16(case: Case, index: int, instructions: str, threads: int) -> None:
    for shape in (1, 1, 1), (9, 5, 65), (3, 40, 17):
        test_cpu_bf16.test_accuracy(case, shape, index, threads)


def test_driver(driver: Path) -> None:
    """Every kernel, shape and number of threads; the best instructions first."""
    done = arm.run(driver)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["neon", "portable", "neon_bf16"]


def test_a_product_by_the_wrong_element_is_found(kernels: list[Path], tmp_path: Path) -> None:
    sources = tmp_path / "kernels"
    shutil.copytree(arm.KERNELS, sources)
    text = (sources / "element.h").read_text()
    (sources / "element.h").write_text(text.replace("%2.s[0]", "%2.s[1]"))
    others = [path for path in kernels if path.stem != "neon"]
    broken = [arm.compile(sources / "neon.c", tmp_path), *others]
    done = arm.run(arm.program("sanitizers/driver.c", broken, tmp_path))
    assert done.returncode == 1 and done.stderr.startswith("neon") and "instead of" in done.stderr, done


@pytest.mark.parametrize(("stem", "product"), [("neon", "fmla"), ("neon_bf16", "bfdot")])
def test_sums_stay_in_registers(stem: str, product: str, kernels: list[Path]) -> None:
    """The tiles that the kernels use: one instruction a product, no lane filled, no vector on the stack."""
    if shutil.which(arm.DISASSEMBLER) is None:
        pytest.skip(f"there is no {arm.DISASSEMBLER} here")
    (compiled,) = (path for path in kernels if path.stem == stem)
    text = subprocess.run([arm.DISASSEMBLER, "-d", compiled], capture_output=True, text=True, check=True).stdout
    functions = dict(re.findall(r"<gemm_part_(\d_\d+)>:\n(.*?)\n\n", text, re.DOTALL))
    most = {1: 8, 2: 8, 3: 8, 4: 6, 5: 2, 6: 2} | dict.fromkeys(range(7, 13), 1)  # rows of a tile by its width: gemm.h
    assert len(functions) == 4 * 8 + 2 * 2 + 6
    for name, code in functions.items():
        rows, width = map(int, name.split("_"))
        if rows > most[width]:
            continue
        assert len(re.findall(rf"\t{product}\tv\d+\.4s, v\d+\.\w+, v\d+\.\w+\[0\]", code)) >= rows * width, name
        assert not re.search(r"\t(dup|ld1r)\t", code), f"{name} fills lanes"
        assert not re.search(r"\tq\d+, .*\[sp", code), f"{name} keeps a sum on the stack"
