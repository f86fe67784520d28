"""The implementation `impl="torch"`: ATen's fused recurrence, and loops of our own where ATen has none."""
