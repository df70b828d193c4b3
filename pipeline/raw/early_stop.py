"""Ends a job early if the first records of a file are all rejected: the file or the schema is probably a wrong one."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple, TypeAlias

from pipeline.errors import UserError
from pipeline.raw.find_files import TOPIC_SCHEME, RawFile
from pipeline.raw.json_lines import LineBatch
from pipeline.raw.rejects import Origin, Reject
from pipeline.schema.record import ParsedRecord

# The number of first records of a file that end a job if all of them are rejected.
_RECORDS = 10_000
# Fewer are enough if they take so much memory, in bytes. Of a compressed file, several processes parse batches of about
# twice the size.
_LARGE_RECORDS, _LARGE_BYTES = 1_000, 2 * 2**20

Result: TypeAlias = tuple[ParsedRecord, Origin] | Reject


class EarlyStop(NamedTuple):
    """The condition that ends a job.

    Attributes:
        file_bytes: Only a larger file ends the job. If all records of a smaller one are rejected, these may still be
            fewer than `--max_rejected` allows.
    """

    file_bytes: int


def stop_early(files: Iterable[RawFile], max_rejected: float) -> EarlyStop | None:
    """Returns the condition that ends a job over these files; None, which never ends it, if all may be rejected.

    Args:
        max_rejected: Share of the records, from 0 to 1, that may be rejected.
    """
    return EarlyStop(int(max_rejected * sum(file.num_bytes for file in files))) if max_rejected < 1 else None


class FirstRecords:
    """Watches the first records of each file that is read from its start.

    Args:
        stop: The condition that ends the job; None watches nothing.
    """

    def __init__(self, stop: EarlyStop | None) -> None:
        self._stop = stop
        # The file that is watched, and the rejects so far: their number, their bytes and the first of them.
        self._path: str | None = None
        self._rejects = self._bytes = 0
        self._first: Reject | None = None
        # The file and the bytes of the batch.
        self._batch: tuple[str | None, int] = None, 0

    def begin(self, batch: LineBatch) -> None:
        """Begins a batch. The batches of a file must follow in their order, one file after another."""
        if self._stop is None:
            return
        if batch.offsets[0] == 0:
            self._path = batch.path if batch.file_bytes > self._stop.file_bytes else None
            self._rejects, self._bytes, self._first = 0, 0, None
        self._batch = batch.path, batch.num_bytes

    def watch(self, results: Iterator[Result], *, record: int | None = None) -> Iterator[Result]:
        """Returns the same results, those of lines of the batch.

        Args:
            record: Number of the first line of the batch that is a record, if such lines are not in the results.

        Raises:
            UserError: The first records of a file were all rejected. Raised while the results are consumed.
        """
        path, num_bytes = self._batch
        is_watched = self._path is not None and path == self._path
        return self._count(results, num_bytes, record) if is_watched else results

    def _count(self, results: Iterator[Result], num_bytes: int, record: int | None) -> Iterator[Result]:
        for result in results:
            if not isinstance(result, Reject) or (record is not None and result.origin.number > record):
                self._path = None
            elif self._path is not None:
                self._rejects += 1
                self._first = self._first or result
                if self._rejects == _RECORDS:
                    raise self._error(self._first)
            yield result
            del result  # frees the record before the next one is parsed
        if record is not None:
            self._path = None
        self._bytes += num_bytes
        if self._path is not None and self._first and self._rejects >= _LARGE_RECORDS and self._bytes >= _LARGE_BYTES:
            raise self._error(self._first)

    def _error(self, first: Reject) -> UserError:
        is_topic = (self._path or "").startswith(TOPIC_SCHEME)
        place = f"at offset {first.origin.byte_offset:,}" if is_topic else f"in line {first.origin.number + 1:,}"
        return UserError(
            f"{self._path}: its first {self._rejects:,} records were all rejected, the first of them {place} "
            f"as {first.reason}: {first.message}. The job ended, and nothing was "
            "published. Correct the records or the schema, leave out the file, or process all records with "
            "--max_rejected 1."
        )
