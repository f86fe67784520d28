"""Ctrl-C and SIGTERM: asked once, a run ends after the step under way; asked twice, at once."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator

ASKED = b"\nstopping after this step, and saving; once more to stop at once, without saving\n"


class StopRequest:
    """`asked` says whether the user wants the run to end."""

    def __init__(self) -> None:
        self.asked = False

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Take the signals. A lost terminal (SIGHUP) is no request: training goes on.

        Raises:
            KeyboardInterrupt: at the second request.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        handlers: dict[str, object] = {"SIGINT": self._ask, "SIGTERM": self._ask, "SIGHUP": signal.SIG_IGN}
        before = {
            name: signal.signal(getattr(signal, name), handler)  # type: ignore[arg-type]
            for name, handler in handlers.items()
            if hasattr(signal, name)
        }
        try:
            yield
        finally:
            for name, handler in before.items():
                signal.signal(getattr(signal, name), handler)

    def _ask(self, *_: object) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        with contextlib.suppress(OSError):  # not print: the signal may have come in the middle of one
            os.write(2, ASKED)
