"""What C says of cells and of its kernels' arguments, and the order among its headers."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from fastcells.backends.cpu import arguments, native
from fastcells.spec import SPECS

if native.obstacle() is not None and os.environ.get("CI") != "true":
    pytest.skip(native.obstacle() or "", allow_module_level=True)

KERNELS = Path(native.__file__).resolve().parents[3] / "kernels" / "cpu"


def test_facts_of_cells() -> None:
    """Those of C are the spec's."""
    facts = {s.name: (s.num_gates, s.num_states, s.num_saved, s.same_gradient) for s in SPECS.values()}
    in_c = {name: (*rest, apart == 0) for name, *rest, apart in native._cpu.cells()}
    assert in_c == {name: facts[name] for name in in_c} and len(in_c) >= 5


def test_every_argument_is_understood() -> None:
    """C's words for types, shapes and conditions are those that Python reads, whatever the cell."""
    for kernel in ("forward", "backward"):
        for cell in SPECS:
            shapes = arguments.shapes(cell, 2, 3, 4)
            plan = arguments.recurrence(kernel, cell, True, True)
            assert {shape for *_, shape, _ in plan.reads} | {shape for *_, shape in plan.writes} <= set(shapes)
        kinds = {a.kind for a in arguments.TABLES[kernel]}
        assert kinds == {"number", "read", "write", "keep"}


def test_named_arguments_have_to_be_in_their_places() -> None:
    w, x, out = torch.eye(3), torch.ones(3), torch.empty(3)
    given = {"rows": 3, "columns": 3, "w": w.data_ptr(), "x": x.data_ptr(), "b": 0, "out": out.data_ptr()}
    native._cpu.matvec(native._instructions, 1, **given)
    assert torch.equal(out, x)
    with pytest.raises(TypeError, match="argument 2 is w, got x"):
        native._cpu.matvec(native._instructions, 1, **{n: given[n] for n in ("rows", "columns", "x", "w", "b", "out")})
    for wrong in ({**given, "more": 0}, {n: v for n, v in given.items() if n != "out"}):
        with pytest.raises(TypeError, match=r"expected 6 arguments, got [57]"):
            native._cpu.matvec(native._instructions, 1, **wrong)


def included(source: Path) -> list[str]:
    """The headers of ours that a file includes."""
    return re.findall(r'^#include "(.+)"', source.read_text(), re.M)


def circle(graph: dict[str, list[str]]) -> list[str]:
    """Names that lead from one back to itself; [] where there is no circle."""
    done: set[str] = set()

    def visit(path: list[str]) -> list[str]:
        if path[-1] in path[:-1]:
            return path
        found = next((c for name in graph[path[-1]] if name not in done and (c := visit([*path, name]))), [])
        done.add(path[-1])
        return found

    return next((c for name in graph if (c := visit([name]))), [])


def test_no_circle_among_the_headers() -> None:
    assert circle({path.name: included(path) for path in KERNELS.glob("*.h")}) == []
    assert circle({"a": ["b"], "b": ["c"], "c": ["d", "b"], "d": []}) == ["a", "b", "c", "b"]


@pytest.mark.parametrize("header", sorted(path.name for path in KERNELS.glob("*.h")))
def test_each_header_stands_alone(header: str, tmp_path: Path) -> None:
    """It compiles when it is included first, after what avx2.c and its like define."""
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        assert not os.environ.get("CI"), "CI needs a C compiler"
        pytest.skip("there is no C compiler here")
    source = tmp_path / "alone.c"
    start = "#define LANES 4\n#define REGISTERS 16\n#define BACKEND alone\nstatic int supported(void) { return 1; }\n"
    source.write_text(f'{start}int used(void) {{ return supported(); }}\n#include "{header}"\n')
    command = [compiler, "-std=gnu11", "-fsyntax-only", "-Wno-psabi", f"-I{KERNELS}", str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
