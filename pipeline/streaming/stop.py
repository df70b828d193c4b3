"""Lets SIGTERM and SIGINT end a stream: after the round that is at work, or without it if that takes too long."""

import os
import signal
import threading
import time
from types import FrameType
from typing import Any, Self

# Seconds that a round may still take after the signal. Schedulers often kill a process ten seconds after SIGTERM.
_PATIENCE = 8.0
# A signal does not end a sleep by itself.
_SLICE = 0.1


class StopSignals:
    """A context manager that handles the signals inside its block. Only the main thread of a process can do that.

    A second signal abandons the round at once. To abandon it, the process ends as a killed one does: nothing of the
    round is published, the next start reads its records again, and later commits remove its files.

    Attributes:
        requested: Whether the stream should end.
    """

    def __init__(self) -> None:
        self.requested = False

    def __enter__(self) -> Self:
        self._before: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            handlers = {signal.SIGTERM: self._request, signal.SIGINT: self._request, signal.SIGALRM: self._abandon}
            self._before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        return self

    def __exit__(self, *error: Any) -> None:
        if self._before:
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _request(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            self._abandon(number, frame)
        self.requested = True
        signal.setitimer(signal.ITIMER_REAL, _PATIENCE)

    def _abandon(self, number: int, frame: FrameType | None) -> None:
        os.write(2, b"prepare: the round at work was abandoned; its records are read again at the next start.\n")
        os._exit(0)

    def wait(self, seconds: float) -> None:
        """Waits, but not after a signal."""
        end = time.monotonic() + seconds
        while not self.requested and (left := end - time.monotonic()) > 0:
            time.sleep(min(left, _SLICE))
