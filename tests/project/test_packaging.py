"""What gets installed: wheel and sdist are built, and used from outside the tree."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
# Nor what `make test-on` says to the make that runs these tests: VENV= would come to theirs.
ENVIRONMENT = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "MAKE", "MFLAGS")) and k != "VENV"}
ENVIRONMENT["CFLAGS"] = "-O1"  # C compiles in a third of the time


def pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT)
    assert done.returncode == 0, done.stdout + done.stderr


# Otherwise the finder of this environment's editable install would supply what an installed package lacks.
NO_EDITABLE = "import sys; sys.meta_path = [f for f in sys.meta_path if 'editable' not in str(f).lower()]\n"


def python(code: str, *, path: Path, cwd: Path) -> str:
    """Run code with `path` ahead of everything else, from another folder."""
    environment = {**ENVIRONMENT, "PYTHONPATH": str(path)}
    command = [sys.executable, "-c", NO_EDITABLE + code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what git would publish, so that building leaves nothing in the checkout."""
    copy = tmp_path_factory.mktemp("tree") / "fastcells"
    ignore = shutil.ignore_patterns(".git", ".venv*", "build", "*.egg-info", "__pycache__", "runs", ".*_cache")
    shutil.copytree(ROOT, copy, symlinks=True, ignore=ignore)
    return copy


@pytest.fixture(scope="module")
def wheel(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(tree))
    (found,) = folder.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def sdist(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sdist")
    command = [sys.executable, "setup.py", "--quiet", "sdist", "--dist-dir", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tree, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    (found,) = folder.glob("*.tar.gz")
    return found


def installed(what: Path, folder: Path) -> Path:
    pip("install", "--no-deps", "--no-build-isolation", "--target", str(folder), str(what))
    return folder


USE = """
import fastcells, fastcells.kernels, torch
from fastcells.charlm import bundled_corpus
assert len(bundled_corpus("zh")) > 12000 and len(bundled_corpus("en")) > 20000
out, h = fastcells.GRU(5, 3)(torch.tensor([[1], [4]]))
print(fastcells.__file__, fastcells.kernels.__file__)
"""


def check_use(site: Path, cwd: Path) -> None:
    package, kernels = python(USE, path=site, cwd=cwd).split()
    assert package == str(site / "fastcells" / "__init__.py")
    assert kernels == str(site / "fastcells" / "kernels" / "__init__.py")


def test_wheel_from_outside_the_tree(wheel: Path, tmp_path: Path) -> None:
    check_use(installed(wheel, tmp_path / "site"), tmp_path)


def test_wheel_from_the_repository_root(wheel: Path, tmp_path: Path) -> None:
    """Python puts the current folder first, so the checkout is what gets imported: its link must give the kernels."""
    site = installed(wheel, tmp_path / "site")
    assert python(USE, path=site, cwd=ROOT).split() == [
        str(ROOT / "fastcells" / "__init__.py"),
        str(ROOT / "fastcells" / "kernels" / "__init__.py"),
    ]


def test_sdist_from_outside_the_tree(sdist: Path, tmp_path: Path) -> None:
    check_use(installed(sdist, tmp_path / "site"), tmp_path)


def test_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {t for t in tops if not t.endswith(".dist-info")} == {"fastcells"}  # no top-level `kernels`
    assert {"fastcells/py.typed", "fastcells/kernels/__init__.py", "fastcells/data/lyrics_zh.txt"} <= set(names)
    sources = {str(p.relative_to(ROOT)) for p in (ROOT / "fastcells").glob("**/*.py")}
    sources |= {f"fastcells/{p.relative_to(ROOT)}" for p in (ROOT / "kernels").glob("**/*.py")}
    assert {n for n in names if n.endswith(".py")} == sources


def test_sdist_holds_what_a_build_needs(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.split("/", 1)[-1] for name in archive.getnames()}
    needed = {"setup.py", "README.md", "LICENSE", "CHANGELOG.md", "kernels/__init__.py", "fastcells/data/lyrics_en.txt"}
    needed |= {f"kernels/cpu/{path.name}" for path in (ROOT / "kernels" / "cpu").glob("*.[ch]")}
    assert needed <= names
    assert not [name for name in names if name.endswith((".so", ".o"))]


INSTRUCTIONS = "from fastcells.backends.cpu import native; print(native.instruction_set() or native.obstacle())"


@pytest.mark.skipif(
    not any(map(shutil.which, ("cc", "gcc", "clang"))) and os.environ.get("CI") != "true", reason="no C compiler"
)
def test_c_module_is_in_the_wheel(wheel: Path, tmp_path: Path) -> None:
    """One file for all Pythons from 3.10 on."""
    assert [n for n in zipfile.ZipFile(wheel).namelist() if n.endswith(".so")] == ["fastcells/kernels/_cpu.abi3.so"]
    assert "-cp310-abi3-" in wheel.name
    site = installed(wheel, tmp_path / "site")
    assert python(INSTRUCTIONS, path=site, cwd=tmp_path) in ("avx512", "avx2", "neon", "portable")


USE_C = """
import os, shutil, torch, fastcells
assert not any(map(shutil.which, ("cc", "gcc", "clang"))), os.environ["PATH"]
layer = fastcells.GRU(64, 64)
x = torch.randn(35, 32, 64)
assert "site-packages/fastcells" in fastcells.__file__
print(fastcells.explain(layer, x)["l0"].impl)
out, plain = layer(x)[0], fastcells.to_torch(layer)(x)[0]
torch.testing.assert_close(out, plain)
out.sum().backward()
"""


@pytest.fixture(scope="module")
def manylinux(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `make wheel` repairs it."""
    if find_spec("auditwheel") is None and os.environ.get("CI") != "true":
        pytest.skip("auditwheel, of the dev extra, is not here")
    folder = tmp_path_factory.mktemp("manylinux")
    environment = {**ENVIRONMENT, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{ENVIRONMENT['PATH']}"}
    command = [sys.executable, "-m", "auditwheel", "repair", "--wheel-dir", str(folder), str(wheel)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    (found,) = folder.glob("fastcells-*-cp310-abi3-manylinux*.whl")
    return found


def test_the_repaired_wheel_runs_c_in_a_fresh_environment_without_a_compiler(manylinux: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=False)
    fresh = tmp_path / "venv/bin/python"
    (site,) = tmp_path.glob("venv/lib/python*/site-packages")
    # torch and the rest, but not this environment's editable install, whose own .pth nobody reads there.
    (site / "others.pth").write_text(f"{Path(torch.__file__).parents[1]}\n")
    pip("--python", str(fresh), "install", "--no-deps", "--no-index", str(manylinux))
    (tmp_path / "bin").mkdir()
    environment = {"PATH": str(tmp_path / "bin"), "HOME": str(tmp_path), "FASTCELLS_TUNE": "0"}
    done = subprocess.run([fresh, "-c", USE_C], capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0 and done.stdout.strip() == "cpu", done.stdout + done.stderr


ANY_PYTHON = """
import ctypes, importlib.util, sys
spec = importlib.util.spec_from_file_location("_cpu", sys.argv[1])
_cpu = importlib.util.module_from_spec(spec)
spec.loader.exec_module(_cpu)
x, s, t = ((ctypes.c_float * 5)(*[0.0] * 5) for _ in range(3))
_cpu.activations(len(_cpu.backends()) - 1, *map(ctypes.addressof, (x, s, t)), 5)
assert list(s) == [0.5] * 5 and list(t) == [0.0] * 5 and _cpu.team() == "threads"
"""


@pytest.mark.parametrize("version", ["3.10", "3.11", "3.12", "3.13"])
def test_the_module_loads_on_every_python(version: str, manylinux: Path, tmp_path: Path) -> None:
    """Without torch, which is not here for all of them."""
    python = shutil.which(f"python{version}")
    if python is None or subprocess.run([python, "-V"], capture_output=True).returncode:
        pytest.skip(f"there is no python{version} here")
    with zipfile.ZipFile(manylinux) as archive:
        module = archive.extract("fastcells/kernels/_cpu.abi3.so", tmp_path)
    done = subprocess.run([python, "-c", ANY_PYTHON, module], capture_output=True, text=True, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr


def test_without_a_compiler(tree: Path, tmp_path: Path) -> None:
    """It installs, works and says what is missing."""
    copy = tmp_path / "copy"
    ignore = shutil.ignore_patterns("*.so", "build")
    shutil.copytree(tree, copy, symlinks=True, ignore=ignore)
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--no-deps"]
    command += ["--no-build-isolation", "--target", str(tmp_path / "site"), str(copy)]
    environment = {**ENVIRONMENT, "CC": "no-such-compiler"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    said = python(USE + INSTRUCTIONS, path=tmp_path / "site", cwd=tmp_path).splitlines()[-1]
    assert said == "the C module was not built: fastcells was installed without a C compiler"


def test_metadata(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    (name,) = (n for n in archive.namelist() if n.endswith("METADATA"))
    metadata = archive.read(name).decode()
    assert "License-Expression: Apache-2.0" in metadata or "License: Apache-2.0" in metadata
    assert "Requires-Python: >=3.10" in metadata
    for extra in ("test", "dev", "plot"):
        assert f"Provides-Extra: {extra}" in metadata
    (entry,) = (n for n in archive.namelist() if n.endswith("entry_points.txt"))
    assert "fastcells = fastcells.charlm.cli:main" in archive.read(entry).decode()


def test_kernels_refuses_to_be_a_top_level_package(tmp_path: Path) -> None:
    code = "import kernels"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=ENVIRONMENT)
    assert done.returncode == 1
    assert "ImportError: this folder is the package fastcells.kernels" in done.stderr


def test_import_without_triton(tmp_path: Path) -> None:
    code = "sys.modules['triton'] = None; import fastcells, fastcells.charlm, fastcells.kernels; print('ok')"
    assert python(code, path=ROOT, cwd=tmp_path) == "ok"


def test_import_does_not_load_what_only_training_needs(tmp_path: Path) -> None:
    code = "import fastcells; print([m for m in ('matplotlib', 'triton', 'safetensors') if m in sys.modules])"
    assert python(code, path=ROOT, cwd=tmp_path) == "[]"


@pytest.mark.parametrize(
    ("script", "said"),
    [
        pytest.param("case $1 in -c) exit 0;; *) exit 1;; esac", "python3-venv", id="venv"),
        pytest.param(
            # An environment whose pip finds nothing.
            'case $1 in -c) exit 0;; esac; mkdir -p "$3/bin"; printf "#!/bin/sh\\necho no matching >&2; exit 1" '
            '> "$3/bin/python"; chmod +x "$3/bin/python"',
            "could not install what constraints.txt pins",
            id="pip",
        ),
    ],
)
def test_a_failed_install_says_what_to_do(script: str, said: str, tmp_path: Path) -> None:
    fake = tmp_path / "python"
    fake.write_text(f"#!/bin/sh\n{script}\n")
    fake.chmod(0o755)
    venv = tmp_path / "venv"
    command = [
        "make",
        "--no-print-directory",
        "-C",
        str(ROOT),
        f"PYTHON={fake}",
        f"VENV={venv}",
        str(venv / "installed"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT)
    assert done.returncode != 0
    assert said in done.stderr
    assert not (venv / "installed").exists()


def test_another_python_gets_an_environment_of_its_own() -> None:
    command = ["make", "--no-print-directory", "-C", str(ROOT), "test-on"]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT)
    assert done.returncode != 0
    assert "VENV=.venv-3.12" in done.stderr
