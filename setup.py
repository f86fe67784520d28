"""The only source of metadata. The version is read as text, so that building needs no torch."""

import re
from pathlib import Path

from setuptools import setup

HERE = Path(__file__).parent
VERSION = re.search(r'^__version__ = "(.+)"$', (HERE / "fastcells/__init__.py").read_text("utf-8"), re.M).group(1)

TEST = [
    "expecttest",  # torch.testing._internal.common_modules imports it
    "matplotlib",
    "pytest",
    "pytest-benchmark",
    "setuptools",
    "triton>=3.6,<3.9; sys_platform == 'linux'",  # torch's CUDA builds bring it; its interpreter runs on CPU tensors
    "wheel",
]

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
    packages=["fastcells", "fastcells.charlm", "fastcells.data", "fastcells.kernels", "fastcells.torch_impl"],
    package_dir={"fastcells.kernels": "kernels"},
    package_data={"fastcells": ["py.typed"], "fastcells.data": ["*.txt"]},
    install_requires=["torch>=2.11", "numpy", "safetensors", "tqdm"],
    extras_require={"test": TEST, "dev": [*TEST, "build", "mypy", "ruff"], "plot": ["matplotlib"]},
    entry_points={"console_scripts": ["fastcells = fastcells.charlm.cli:main"]},
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3 :: Only",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
)
