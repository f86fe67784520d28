"""The implementations `impl="triton"` and `"triton-step"`."""
