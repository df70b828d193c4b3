"""Decides when a stream chooses the vocabularies of its dataset again."""

import datetime
import time

from pipeline.format.history import read_commit, reader
from pipeline.writing.base import Base


class Refresh:
    """Knows when the vocabularies of a dataset were chosen: at the time of the commit that chose them.

    So a stream that starts again, also after `kill -9`, continues the interval.

    Args:
        output: Folder of the dataset.
        interval: Seconds for which the vocabularies are kept.
    """

    def __init__(self, output: str, interval: float) -> None:
        self._output, self._interval = output, interval
        # The commit that chose the vocabularies, and its time, in seconds since 1970.
        self._number, self._chosen = 0, 0.0

    def is_due(self, base: Base) -> bool:
        """Whether the vocabularies of a dataset are older than the interval, or there is no dataset yet.

        Raises:
            UserError: The commit that chose them is damaged.
        """
        number = base.vocabularies_of or base.number
        if not number:
            return True
        if number != self._number:
            made = read_commit(reader(self._output), number, origin=self._output).commit
            self._number, self._chosen = number, datetime.datetime.fromisoformat(made.time).timestamp()
        return time.time() - self._chosen >= self._interval
