"""Writes and reads the lines of a run's metrics.jsonl."""

import json
import re
import time
from collections.abc import Iterator
from typing import Any

import tensorflow as tf

from pipeline.files import is_local
from trainer.runs.contents import METRICS, METRICS_PART, metrics_part
from trainer.runs.run import Run

Line = dict[str, Any]

# Seconds between two parts on an object store. They double from the first number to the second, so that the beginning
# of a run is seen at once.
_FIRST_SECONDS, _LONGEST_SECONDS = 1.0, 60.0
# Number of parts that are merged into metrics.jsonl while a run trains.
_MAX_PARTS = 100


class MetricsLog:
    """The lines of a run's metrics.jsonl: one for each update, and one for each epoch.

    On a disk, lines are appended to the file. An object store cannot append: TensorFlow would read the whole object and
    write it again, and a store allows about one change of an object a second. So the lines there go to new objects,
    `metrics-00001.jsonl` and so on, until `compact` merges them into metrics.jsonl: when there are 100 of them, when
    the run resumes and when it ends.
    """

    def __init__(self, run: Run) -> None:
        self._run, self._in_parts = run, not is_local(run.path)
        self._waiting: list[Line] = []
        self._parts = 0
        self._written_at, self._seconds = time.monotonic(), _FIRST_SECONDS

    def append(self, lines: list[Line]) -> None:
        """Adds lines at the end. On an object store they may wait for `flush`, up to a minute."""
        if not self._in_parts:
            with tf.io.gfile.GFile(self._run.file(METRICS), "ab") as file:
                file.write(_serialize(lines))
            return
        self._waiting += lines
        if time.monotonic() - self._written_at >= self._seconds:
            self._seconds = min(2 * self._seconds, _LONGEST_SECONDS)
            self.flush()

    def flush(self) -> None:
        """Writes the lines that wait. Call it before a checkpoint, which a resumed run continues from."""
        if not self._waiting:
            return
        self._parts += 1
        with tf.io.gfile.GFile(self._run.file(metrics_part(self._parts)), "wb") as file:
            file.write(_serialize(self._waiting))
        self._waiting, self._written_at = [], time.monotonic()
        if self._parts >= _MAX_PARTS:
            self.compact()

    def truncate(self, *, epoch: int, update: int) -> list[Line]:
        """Removes the lines that are newer than a checkpoint, and returns the lines of epochs.

        Args:
            epoch: Number of complete epochs at the checkpoint.
            update: Number of updates at the checkpoint.
        """
        return self._replace([line for line in self._read() if _is_until(line, epoch=epoch, update=update)])

    def compact(self) -> None:
        """Writes the lines that wait, and merges all parts into metrics.jsonl."""
        self.flush()
        if self._parts:
            self._replace(list(self._read()))

    def _replace(self, lines: list[Line]) -> list[Line]:
        """Replaces metrics.jsonl, then removes the parts, and returns the lines of epochs.

        If the process is killed in between, the lines of the parts are in both: `_read` skips them.
        """
        self._run.write(METRICS, _serialize(lines))
        for name in self._part_names():
            tf.io.gfile.remove(self._run.file(name))
        self._parts = 0
        return [line for line in lines if "train" in line]

    def _read(self) -> Iterator[Line]:
        """Yields the lines of metrics.jsonl and of the parts, each once."""
        epoch = update = 0
        for name in [METRICS, *self._part_names()]:
            for text in self._run.read(name).splitlines():
                try:
                    line = json.loads(text)
                except ValueError:  # a crash while the line was written has cut it off, so it is the last one
                    return
                if _is_until(line, epoch=epoch, update=update):
                    continue
                epoch, update = (epoch, line["update"]) if "update" in line else (line["epoch"], update)
                yield line

    def _part_names(self) -> list[str]:
        return sorted(name for name in self._run.names() if re.fullmatch(METRICS_PART, name, re.ASCII))


def _is_until(line: Line, *, epoch: int, update: int) -> bool:
    """Returns whether a line is that of one of the first epochs or updates of a run."""
    return bool(line["update"] <= update if "update" in line else line["epoch"] <= epoch)


def _serialize(lines: list[Line]) -> bytes:
    return "".join(json.dumps(line) + "\n" for line in lines).encode()
