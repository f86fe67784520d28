"""The implementation `impl="torch"`: ATen's fused recurrence, and a recurrence of our own where ATen has none."""
