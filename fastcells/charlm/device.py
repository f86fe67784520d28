"""The device that the command line names."""

from __future__ import annotations

import torch

from fastcells.charlm.errors import InputError


def device_of(name: str) -> torch.device:
    """The device, after a try. "auto" is a GPU where there is one.

    Raises:
        InputError: it cannot be used here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # AssertionError: torch without CUDA
        raise InputError(f"--device {name}: {str(error).splitlines()[0]}") from error
    return device
