"""The only source of metadata. The version is read as text, so that building needs no torch."""

import os
import re
from pathlib import Path

from setuptools import Extension, setup

HERE = Path(__file__).parent
VERSION = re.search(r'^__version__ = "(.+)"$', (HERE / "fastcells/__init__.py").read_text("utf-8"), re.M).group(1)

TEST = [
    "expecttest",  # torch.testing._internal.common_modules imports it
    "matplotlib",
    "pytest",
    "pytest-benchmark",
    "pytest-xdist",
    "setuptools",
    "triton>=3.6,<3.9; sys_platform == 'linux'",  # torch's CUDA builds bring it; its interpreter runs on CPU tensors
    "wheel",
]

# The recurrences on the CPU, in C. Each file asks for its own instructions, so that one build serves every machine.
# Optional: where there is no compiler, the package installs and works without it.
C_SOURCES = sorted(str(path.relative_to(HERE)) for path in (HERE / "kernels/cpu").glob("*.c"))
C_HEADERS = sorted(str(path.relative_to(HERE)) for path in (HERE / "kernels/cpu").glob("*.h"))
OPTIMIZED = [] if re.search(r"-O\w", os.environ.get("CFLAGS", "")) else ["-O3"]  # or as CFLAGS says
CPU = Extension(
    "fastcells.kernels._cpu",
    C_SOURCES,
    depends=C_HEADERS,
    extra_compile_args=[*OPTIMIZED, "-std=gnu11", "-Wno-psabi"],
    libraries=["dl", "m", "pthread"],
    py_limited_api=True,
    optional=True,
)

setup(
    name="fastcells",
    version=VERSION,
    description="Fused GRU, LSTM and RNN layers for PyTorch, and a character language model trained with them",
    long_description=(HERE / "README.md").read_text("utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.10",
    # Spelled out: find_packages() would install a top-level `kernels`, which belongs to another package.
    packages=[
        "fastcells",
        "fastcells.backends",
        "fastcells.backends.cpu",
        "fastcells.backends.gluon",
        "fastcells.backends.torch",
        "fastcells.backends.triton",
        "fastcells.charlm",
        "fastcells.data",
        "fastcells.defined",
        "fastcells.kernels",
        "fastcells.kernels.gluon",
        "fastcells.kernels.triton",
        "fastcells.spec",
        "fastcells.tuning",
        "fastcells.weights",
    ],
    package_dir={"fastcells.kernels": "kernels"},
    package_data={"fastcells": ["py.typed"], "fastcells.data": ["*.txt", "*.json"]},
    ext_modules=[CPU],
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
    install_requires=["torch>=2.11", "charset-normalizer", "filelock", "numpy", "platformdirs", "safetensors", "tqdm"],
    extras_require={
        "test": TEST,
        "dev": [*TEST, "build", "mypy", "ruff", "uv"],
        "plot": ["matplotlib"],
        "onnx": ["onnx", "onnxruntime", "onnxscript"],  # of load_onnx and to_onnx, to run and to export by torch
    },
    entry_points={"console_scripts": ["fastcells = fastcells.charlm.cli:main"]},
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3 :: Only",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
)
