"""Keeps a file fresh while a process lives, so that others see by its age when the process was killed."""

import contextlib
import os
import threading
import time

from pipeline.errors import UserError
from pipeline.files import exists, is_local, modified, replace

# An object store cannot touch an object, which is written again: two small requests.
_REFRESH_SECONDS, _REWRITE_SECONDS = 20.0, 60.0
# A process that has not refreshed its file for this time counts as killed. It may have been suspended, its file system
# may have been slow, and its clock may differ from that of another host, for less than that.
_FRESH_SECONDS = 600.0


class RefreshedFile:
    """A file that a thread of this process refreshes. It is not made again if someone removes it.

    Args:
        content: Content of the file, for people.
    """

    def __init__(self, path: str, content: bytes) -> None:
        self._path, self._content = path, content
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._refresh, daemon=True)

    def start(self) -> None:
        """Writes the file, and refreshes it from now on."""
        self._write()
        self._thread.start()

    def stop(self) -> None:
        """Ends the refreshing. The file stays."""
        self._ended.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _write(self) -> None:
        with replace(self._path) as file:
            file.write(self._content)

    def _refresh(self) -> None:
        while not self._ended.wait(_REFRESH_SECONDS if is_local(self._path) else _REWRITE_SECONDS):
            # The next attempt may succeed. If none does, the process counts as killed.
            with contextlib.suppress(OSError, UserError):
                if is_local(self._path):
                    os.utime(self._path)
                elif exists(self._path):
                    self._write()


def is_fresh(path: str) -> bool:
    """Whether a file was refreshed in the last ten minutes, or in the future: the clocks of two hosts differ."""
    refreshed = modified(path)
    return refreshed is not None and time.time() - refreshed < _FRESH_SECONDS
