"""Sorts the elements of a bundle through files."""

from collections.abc import Callable, Iterator
from typing import Any

import apache_beam as beam
from apache_beam.transforms.window import GlobalWindows

from pipeline.shuffle.row_runs import RowBuffer, RowRun


class SortRows(beam.DoFn):
    """Sorts the elements of a bundle: values -> RowRun, a sorted file in `folder`.

    Args:
        make_buffer: Returns an empty buffer that writes to a folder: RejectBuffer or ChunkBuffer.
        folder: Folder for the files.
    """

    def __init__(self, make_buffer: Callable[[str], RowBuffer[Any]], folder: str) -> None:
        self._make_buffer = make_buffer
        self._folder = folder

    def start_bundle(self) -> None:
        self._buffer = self._make_buffer(self._folder)

    def process(self, element: Any) -> Iterator[RowRun]:
        yield from self._buffer.add(element)

    def finish_bundle(self) -> Iterator[Any]:
        yield from map(GlobalWindows.windowed_value, self._buffer.flush())
