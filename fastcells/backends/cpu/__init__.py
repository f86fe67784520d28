"""The implementation `impl="cpu"`: the recurrence in C."""
