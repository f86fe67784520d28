"""How the source is built: short files, of tests and benchmarks too; nothing said twice, no circle of imports, private
names at home.
"""

from __future__ import annotations

import ast
import io
import keyword
import re
import tokenize
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parents[2]
PYTHON = sorted(
    p
    for top in ("fastcells", "kernels")
    for p in (ROOT / top).rglob("*.py")
    if "kernels" not in p.parts[-3:-1] or top == "kernels"
)
C = sorted((ROOT / "kernels/cpu").glob("*.[ch]"))
PROOF = sorted(  # of tests and benchmarks; what these have written down, as CSV and SVG, may be as long as it is
    p for top in ("tests", "bench") for p in (ROOT / top).rglob("*") if p.suffix in (".py", ".c", ".h", ".sh")
)
LONGEST = 350
SHARED = 12  # lines of the same shape that two places may not have


def python_lines(text: str) -> list[tuple[int, str]]:
    """(number, shape) of each line of code, where names, numbers and texts stand for one another.

    Imports, docstrings, signatures and bare lists of names are left out: they state what is there.
    """
    left_out = set()
    for node in ast.walk(ast.parse(text)):
        docstring = (
            isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        )
        if docstring or isinstance(node, ast.Import | ast.ImportFrom):
            left_out.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
        if isinstance(node, ast.FunctionDef):
            left_out.update(range(node.lineno, node.body[0].lineno))
    shapes: dict[int, list[str]] = defaultdict(list)
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT):
            continue
        if token.type == tokenize.NAME:
            shapes[token.start[0]].append(token.string if keyword.iskeyword(token.string) else "name")
        elif token.type in (tokenize.NUMBER, tokenize.STRING):
            shapes[token.start[0]].append("value")
        elif token.type == tokenize.OP:
            shapes[token.start[0]].append(token.string)
    bare = {("name", ","), ("value", ",")}
    return [(n, " ".join(s)) for n, s in sorted(shapes.items()) if n not in left_out and tuple(s) not in bare]


def c_lines(text: str) -> list[tuple[int, str]]:
    """As `python_lines`, for C."""
    text = re.sub(r"/\*.*?\*/", lambda m: "\n" * m.group().count("\n"), text, flags=re.S)
    lines = []
    for number, line in enumerate(text.splitlines(), 1):
        line = re.sub(r"//.*", "", line).strip()
        if line and not line.startswith("#"):
            keep = (
                r"\b(?!(?:if|else|for|while|switch|case|return|break|static|const|void|int|struct|float)\b)[A-Za-z_]\w*"
            )
            lines.append((number, re.sub(keep, "name", re.sub(r"\b\d[\w.]*", "value", line))))
    return lines


def shared_runs(files: Iterable[tuple[str, list[tuple[int, str]]]]) -> list[str]:
    """Where two places have SHARED lines of the same shape, one after another."""
    seen: dict[tuple[str, ...], tuple[str, int, int]] = {}
    found = []
    for name, lines in files:
        for i in range(len(lines) - SHARED + 1):
            window = tuple(shape for _, shape in lines[i : i + SHARED])
            first = seen.setdefault(window, (name, i, lines[i][0]))
            if first[:2] != (name, i) and (first[0] != name or i - first[1] >= SHARED):
                found.append(f"{name}:{lines[i][0]} and {first[0]}:{first[2]}")
    return found


def python_imports(path: Path, module: str, modules: set[str]) -> set[str]:
    """The project's modules that one imports when it is itself imported; those under `if TYPE_CHECKING` too."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in modules else node.module)
    return found & modules - {module}


def circle(graph: dict[str, set[str]]) -> list[str]:
    """A way from a node back to itself, or nothing."""
    done: set[str] = set()

    def visit(node: str, way: list[str]) -> list[str]:
        if node in way:
            return [*way[way.index(node) :], node]
        if node in done:
            return []
        for other in sorted(graph[node]):
            back = visit(other, [*way, node])
            if back:
                return back
        done.add(node)
        return []

    return next((back for node in sorted(graph) if (back := visit(node, []))), [])


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = ("fastcells", *parts) if parts[0] == "kernels" else parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def private_names(text: str, module: str) -> list[str]:
    """Names with a leading underscore that come from a module in another folder; not the compiled module."""
    folder = module.rsplit(".", 1)[0]
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("fastcells"):
            home = node.module.rsplit(".", 1)[0]
            names = [a.name for a in node.names if a.name.startswith("_") and a.name != "_cpu"]
            found += [f"{module} takes {node.module}.{name}" for name in names if home != folder]
    return found


def long_files(files: Iterable[Path]) -> dict[str, int]:
    """How many lines the files have that have too many."""
    lines = {str(p): len(p.read_text().splitlines()) for p in files}
    return {name: n for name, n in lines.items() if n > LONGEST}


def test_no_file_is_long() -> None:
    assert len(PROOF) > 100
    assert not long_files(PYTHON + C + PROOF)


def test_a_long_file_is_seen(tmp_path: Path) -> None:
    for name, lines in (("longest.py", LONGEST), ("long.py", LONGEST + 1)):
        (tmp_path / name).write_text("pass\n" * lines)
    assert long_files(tmp_path.iterdir()) == {str(tmp_path / "long.py"): LONGEST + 1}


def test_nothing_is_said_twice() -> None:
    python = [(str(p.relative_to(ROOT)), python_lines(p.read_text())) for p in PYTHON]
    c = [(str(p.relative_to(ROOT)), c_lines(p.read_text())) for p in C]
    assert not shared_runs(python) + shared_runs(c)


def test_no_circle_of_imports() -> None:
    modules = {module_of(p): p for p in PYTHON}
    assert len(modules) > 50
    assert not circle({m: python_imports(p, m, set(modules)) for m, p in modules.items()})


def test_no_circle_of_includes() -> None:
    names = {p.name for p in C}
    graph = {p.name: set(re.findall(r'^#include "(.+)"', p.read_text(), re.M)) & names for p in C}
    assert any(graph.values())
    assert not circle(graph)


def test_private_names_stay_in_their_folder() -> None:
    assert not [taken for p in PYTHON for taken in private_names(p.read_text(), module_of(p))]


def alike(name: str, lines: int) -> str:
    return "\n".join(f"{name}{i} = f({i}, {name!r})" for i in range(lines))


def test_the_checks_see_what_is_wrong() -> None:
    for lines, shared in ((SHARED, True), (SHARED - 1, False)):
        assert bool(shared_runs([(name, python_lines(alike(name, lines))) for name in "ab"])) == shared
    assert shared_runs([(name, c_lines("\n".join(f"{name}[{i}] = {i};" for i in range(SHARED)))) for name in "ab"])
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"a"}}) and not circle({"a": {"b", "c"}, "b": {"c"}, "c": set()})
    assert private_names("from fastcells.spec.gru import _step", "fastcells.layers")
    assert not private_names("from fastcells.spec.gru import _step", "fastcells.spec.rnn")
