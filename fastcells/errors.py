"""What this package raises that torch does not."""


class CannotRun(RuntimeError):
    """An implementation was named, by `impl=`, that cannot run this case here; `obstacle` says why."""

    def __init__(self, what: str, obstacle: str) -> None:
        super().__init__(f"{what} cannot run: {obstacle}")
        self.obstacle = obstacle


class KernelFault(RuntimeError):
    """The programs of a GPU kernel waited for each other in vain and gave up: what that launch returned holds NaN."""


class DefinitionError(ValueError):
    """A cell of the user's own that cannot be derived: the message names what is wrong and the line where it stands."""
