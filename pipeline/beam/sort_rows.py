"""Sorts the elements of a bundle through files."""

from collections.abc import Callable, Iterator
from typing import Any

import apache_beam as beam
from apache_beam.transforms.window import GlobalWindows

from pipeline.shuffle.row_runs import RowBuffer, RowRun
from pipeline.writing.job import JobFiles


class SortRows(beam.DoFn):
    """Sorts the elements of a bundle: values, and the JobFiles of the run -> RowRun, a sorted file in its folder.

    Args:
        make_buffer: Returns an empty buffer that writes to a folder: RejectBuffer or ChunkBuffer.
    """

    def __init__(self, make_buffer: Callable[[str], RowBuffer[Any]]) -> None:
        self._make_buffer = make_buffer

    def start_bundle(self) -> None:
        self._buffer: RowBuffer[Any] | None = None

    def process(self, element: Any, files: JobFiles) -> Iterator[RowRun]:
        if self._buffer is None:
            self._buffer = self._make_buffer(files.folder)
        yield from self._buffer.add(element)

    def finish_bundle(self) -> Iterator[Any]:
        if self._buffer is not None:
            yield from map(GlobalWindows.windowed_value, self._buffer.flush())
