"""Lines of predictions per step, which grow chunk by chunk in a temporary file."""

import tempfile
import weakref
from collections.abc import Iterator
from typing import Any

import orjson

# Bytes of lines that are in memory before the temporary file is on disk.
_MEMORY_BYTES = 4 * 2**20


class StepLines:
    """Lines of JSON whose lists get longer with each chunk of their records, {"id": …, "labels": […], …}.

    The lists of all lines are in one temporary file, piece by piece, in the order in which they are made.

    Args:
        ids: The id of each line.
    """

    def __init__(self, ids: list[str]) -> None:
        self.ids = ids
        self._file = tempfile.SpooledTemporaryFile(_MEMORY_BYTES)
        weakref.finalize(self, self._file.close)  # if an error keeps the caller from `close`
        # For each line, the pieces of each list as (first byte, number of bytes).
        self._pieces: list[dict[str, list[tuple[int, int]]]] = [{} for _ in ids]
        self._end = 0

    def add(self, row: int, prediction: dict[str, Any]) -> None:
        """Adds the predictions for the next steps of a record: a list of at least one value for each key."""
        for key, values in prediction.items():
            piece = orjson.dumps(values, option=orjson.OPT_SERIALIZE_NUMPY)[1:-1]
            self._file.write(piece)
            self._pieces[row].setdefault(key, []).append((self._end, len(piece)))
            self._end += len(piece)

    def num_bytes(self, row: int) -> int:
        """Returns the size of a line, without that of the names of its keys."""
        return sum(size + 1 for pieces in self._pieces[row].values() for _, size in pieces)

    def read(self, row: int) -> Iterator[bytes]:
        """Yields the bytes of a line in pieces: the line that `LineEncoder` makes of all steps at once."""
        yield b'{"id":' + orjson.dumps(self.ids[row])
        for key, pieces in self._pieces[row].items():
            yield b"," + orjson.dumps(key) + b":["
            for number, (first, size) in enumerate(pieces):
                self._file.seek(first)
                yield (b"," if number else b"") + self._file.read(size)
            yield b"]"
        yield b"}\n"

    def close(self) -> None:
        """Removes the temporary file."""
        self._file.close()
