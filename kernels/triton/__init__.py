"""The recurrences as Triton kernels. Importing this package alone does not import triton."""
