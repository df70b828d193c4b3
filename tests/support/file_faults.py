"""Lets calls to the file system fail, or stop the process at one of them as `kill -9` does."""

import builtins
import contextlib
import errno
import io
import os
import shutil
import types

import pytest

from pipeline import create_once, files
from pipeline.writing import lock, marker, retention

# The calls that need free space, and all that can fail.
WRITES = ("makedirs", "open xb", "write", "fsync", "replace", "link", "lock")
ALL = (*WRITES, "open rb", "getsize", "unlink", "lstat", "open", "stat")


class WatchedFile(io.BufferedWriter):
    """A file that calls `before_call` before its first write, and after a failure before all others.

    One write for each file is enough: the later ones fail in the same block.
    """

    def __init__(self, path, mode, before_call):
        super().__init__(io.FileIO(path, mode.strip("b")))
        self._before_call, self._passed = before_call, False

    def write(self, data):
        if not self._passed:
            self._before_call("write", None)
            self._passed = True
        return super().write(data)

    def writelines(self, lines):
        self.write(b"".join(lines))


@contextlib.contextmanager
def watch_file_system(before_call):
    """Calls `before_call(name, path or None)` before each call to the file system that matters for a dataset."""

    def watched(function, name=None):
        def call_watched(path, *arguments, **named):
            before_call(name or function.__name__, path if isinstance(path, str) else None)
            return function(path, *arguments, **named)

        return call_watched

    def open_watched(path, mode):
        before_call(f"open {mode}", path)
        return builtins.open(path, mode) if mode == "rb" else WatchedFile(path, mode, before_call)

    def replaced(*functions):
        return types.SimpleNamespace(**vars(os) | {function.__name__: watched(function) for function in functions})

    in_files = replaced(os.makedirs, os.replace, os.unlink, os.fsync, os.link, os.lstat, os.open, os.rmdir)
    in_files.path = types.SimpleNamespace(**vars(os.path) | {"getsize": watched(os.path.getsize)})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "os", in_files)
        patch.setattr(create_once, "os", in_files)
        patch.setattr(files, "open", open_watched, raising=False)
        patch.setattr(files, "shutil", types.SimpleNamespace(**vars(shutil) | {"rmtree": watched(shutil.rmtree)}))
        patch.setattr(marker, "os", replaced(os.stat, os.unlink, os.rmdir))
        patch.setattr(retention, "os", replaced(os.rmdir))
        patch.setattr(lock, "acquire", watched(lock.acquire, "lock"))
        yield


class Faults:
    """Lets the calls with some names fail, from a number on.

    Args:
        first: Number of the call that fails, from 1. With 0 none fails, but all are counted.
        lasting: Whether all later calls with these names fail too.
        after: Name of a call before which no call is counted. None counts from the start.

    Attributes:
        calls: Number of calls that were counted.
        failed: Name and path of the first call that failed; None if none did.
        paths: Paths of all calls that failed; "" for a call that has none.
    """

    def __init__(self, names, code, *, first, lasting, after=None):
        self._names, self._first, self._lasting, self._after = names, first, lasting, after
        self.code, self.calls, self.failed, self.paths = code, 0, None, set()

    def before_call(self, name, path):
        if name == self._after:
            self._after = None
        if name not in self._names or self._after:
            return
        self.calls += 1
        if self._first and (self.calls == self._first or (self._lasting and self.calls > self._first)):
            self.failed = self.failed or (name, path)
            self.paths.add(path or "")
            # Like the system: an error of an open file names no path.
            raise OSError(self.code, os.strerror(self.code), *([path] if path else []))


class Kill(Faults):
    """Stops a process at a call: from there on it changes nothing, not even to clean up.

    This leaves the files that `kill -9` leaves at this moment.
    """

    def __init__(self, *, first, after=None):
        super().__init__((*ALL, "rmdir", "rmtree"), errno.EIO, first=first, lasting=True, after=after)


class KillAt(Kill):
    """Stops a process at the first call with a name whose path has a part."""

    def __init__(self, name, part):
        super().__init__(first=0)
        self._at = name, part

    def before_call(self, name, path):
        if not self._first and name == self._at[0] and path and self._at[1] in path:
            self._first = self.calls + 1
        super().before_call(name, path)
