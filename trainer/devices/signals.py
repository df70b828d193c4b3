"""Handles SIGTERM, so that training saves the run and ends after the current update."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, Self

from pipeline.errors import UserError


class Preempted(UserError):
    """SIGTERM stopped the run after a checkpoint. The same command resumes it."""

    status = 75  # EX_TEMPFAIL of sysexits.h: try again later


@contextlib.contextmanager
def _handle_sigterm(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Calls `handler` on SIGTERM inside the block, and restores the previous handler after it.

    Only the main thread of a process can set a handler. In another thread, this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def exit_on_sigterm() -> Iterator[None]:
    """Ends the process with the status of `Preempted` on SIGTERM inside the block.

    A `StopSignal` inside the block takes over while it is active. Outside of it there is nothing to save.
    """

    def end(number: int, frame: FrameType | None) -> None:
        message = (
            b"lengthwise train: SIGTERM came before the first or after the last update: nothing to save. "
            b"Run the same command again to continue.\n"
        )
        os.write(2, message)
        os._exit(Preempted.status)

    with _handle_sigterm(end):
        yield


class StopSignal:
    """A context manager that records whether SIGTERM was received inside its block.

    Attributes:
        received: Whether SIGTERM was received.
    """

    def __init__(self) -> None:
        self.received = False

    def __enter__(self) -> Self:
        self._handler = _handle_sigterm(self._receive)
        self._handler.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._handler.__exit__(*error)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = True
