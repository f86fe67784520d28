"""The fused kernels. Imported as `fastcells.kernels`; the folder lies at the top of the repository."""

if __name__ != "fastcells.kernels":
    raise ImportError(
        f"this folder is the package fastcells.kernels, but it was imported as {__name__!r}: "
        "write `from fastcells import kernels` (a top-level `kernels` belongs to another package)"
    )
