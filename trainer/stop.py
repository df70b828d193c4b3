"""Hears SIGTERM, so that a run ends after the update it is at, with all of it saved."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Self

from pipeline.errors import UserError


class Preempted(UserError):
    """The run was told to stop, and did so with a checkpoint; the same command goes on."""

    status = 75  # EX_TEMPFAIL of sysexits.h: try again


@contextlib.contextmanager
def ended_at_once() -> Iterator[None]:
    """SIGTERM ends the process with the same status where no `StopSignal` listens: nothing is there to save."""

    def end(number: int, frame: FrameType | None) -> None:
        told = b"lengthwise train: SIGTERM before or after all updates: nothing to save. The same command goes on.\n"
        os.write(2, told)
        os._exit(Preempted.status)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class StopSignal:
    """Whether SIGTERM came while the block runs; what was heard before the block hears again after it.

    Only a process's main thread may listen: in another, nothing is ever asked.
    """

    def __init__(self) -> None:
        self.asked = False

    def __enter__(self) -> Self:
        self._listens = threading.current_thread() is threading.main_thread()
        if self._listens:
            self._before = signal.signal(signal.SIGTERM, self._hear)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._listens:
            signal.signal(signal.SIGTERM, self._before)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
