"""What this package raises that torch does not."""


class CannotRun(RuntimeError):
    """An implementation was named, by `impl=`, that cannot run this case here; the message says why."""
