"""Hears SIGTERM, so that a run ends after the update it is at, with all of it saved."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, Self

from pipeline.errors import UserError


class Preempted(UserError):
    """The run was told to stop, and did so with a checkpoint; the same command goes on."""

    status = 75  # EX_TEMPFAIL of sysexits.h: try again


@contextlib.contextmanager
def _on_sigterm(hear: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Has a function hear SIGTERM in the block; what heard it before hears it again after.

    Only a process's main thread may listen: in another, nothing is ever heard.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, hear)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def exit_on_sigterm() -> Iterator[None]:
    """SIGTERM ends the process with the same status where no `StopSignal` listens: nothing is there to save."""

    def end(number: int, frame: FrameType | None) -> None:
        told = b"lengthwise train: SIGTERM before or after all updates: nothing to save. The same command goes on.\n"
        os.write(2, told)
        os._exit(Preempted.status)

    with _on_sigterm(end):
        yield


class StopSignal:
    """Whether SIGTERM came while the block runs."""

    def __init__(self) -> None:
        self.asked = False

    def __enter__(self) -> Self:
        self._listening = _on_sigterm(self._hear)
        self._listening.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._listening.__exit__(*error)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
