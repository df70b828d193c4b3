"""Compares new raw files with those that a dataset was made from: which of them are new, taken already, or changed."""

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import progress
from pipeline.errors import UserError
from pipeline.format.sources import SPLIT, START, SourcesFile, read_sources
from pipeline.raw.find_files import RawFile
from pipeline.raw.json_lines import Chunk, ChunkSummary, split_file, summarize_chunk
from pipeline.raw.records import LIMITS
from pipeline.schema.record import Array
from pipeline.writing.write_sources import join_chunks

# Sources that are compared at the same time: about this number of rows, or of bytes. Each comparison also takes time in
# proportion to the number of new files.
_ROWS, _BYTES = 2**16, 2**24
# Sources that are kept in memory, in bytes. More are read twice.
_KEPT_BYTES = 2**24
_REPORT = "prepare: comparing raw files with the dataset"

# A function like `map` that computes the summaries of chunks, in order.
MapChunks: TypeAlias = Callable[[Callable[[Chunk], ChunkSummary], Iterable[Chunk]], Iterable[ChunkSummary]]


class Content(NamedTuple):
    """The content of a raw file: the number of bytes of its lines, and their digest, as `sources` defines them."""

    num_bytes: int
    sha256: bytes


class TakenInput(NamedTuple):
    """A raw file whose content the dataset has already.

    Attributes:
        file: The file.
        source: Path of the file that the dataset took it from, often the same.
        split: Split for which that file was given; None if files are not given by split.
    """

    file: RawFile
    source: str
    split: str | None = None


class ChangedInput(NamedTuple):
    """A raw file that the dataset took with other content.

    Attributes:
        file: The file.
        now: Its content.
        before: Its content when the dataset took it; the last time, if it did so more than once.
        split: Split for which it was given then.
        is_followed: Whether a stream has taken a part of it.
    """

    file: RawFile
    now: Content
    before: Content
    split: str | None = None
    is_followed: bool = False


class ClassifiedInputs(NamedTuple):
    """Raw files by what a dataset knows of them. Each list is in the order of the files."""

    new: list[RawFile]
    taken: list[TakenInput]
    changed: list[ChangedInput]

    def to_add(self, *, add_changed: bool) -> list[RawFile]:
        """Returns the files to add to the dataset, sorted by path.

        Args:
            add_changed: Whether to add changed files as well, as `--changed_inputs add` says.

        Raises:
            UserError: A file has changed, and `add_changed` is False. Or the dataset took a file for another split.
        """
        known = [(each.file, each.split) for each in self.taken] + [(each.file, each.split) for each in self.changed]
        for file, split in known:
            if split != file.split:
                raise UserError(
                    f"{file.path}: is given for the split {file.split}, but the dataset has it already in its split "
                    f"{split}. Give it for the same split, or leave it out; to move it, prepare all raw files again "
                    "with --overwrite."
                )
        followed = next((each.file for each in self.changed if each.is_followed), None)
        if followed is not None:
            raise UserError(
                f"{followed.path}: a stream has read a part of it into the dataset, so it cannot be added as a whole. "
                "Go on with `prepare --streaming` on its folder, or leave it out."
            )
        if self.changed and not add_changed:
            file, now, before, *_ = self.changed[0]
            more = f" (and {len(self.changed) - 1:,} more)" if len(self.changed) > 1 else ""
            raise UserError(
                f"{file.path}{more}: has {_describe(now)} now, but had {_describe(before)} when the dataset took it; "
                "expected the same content or another path. Restore the file, put new records into a new file, or add "
                "all records of changed files with --changed_inputs add."
            )
        return sorted([*self.new, *(changed.file for changed in self.changed)])


def describe_taken(taken: Sequence[TakenInput], *, most: int = 20) -> list[str]:
    """Returns lines that name the files that are skipped: the first `most` of them, and the number of the others."""
    lines = [
        f"{file.path}: skipped, the dataset has it already" + (f" as {source}." if source != file.path else ".")
        for file, source, _ in taken[:most]
    ]
    return [*lines, f"{len(taken) - most:,} more files: skipped, too."] if len(taken) > most else lines


def classify_inputs(
    files: Sequence[RawFile],
    dataset: str,
    sources: Sequence[SourcesFile],
    *,
    record_bytes: int = LIMITS.record_bytes,
    map_chunks: MapChunks = map,
) -> ClassifiedInputs:
    """Compares raw files with the sources of all generations of a dataset.

    A file is known by its absolute path and by the digest of its lines. A file is read only if it may be a known one:
    if its path is known, if it is plain and has the size of a known file, or if it is compressed. So a copy that
    differs in blank lines or line breaks counts as new, unless its path is known. A symbolic link is a path of its own.
    Memory holds the new files, and a part of the sources.

    Args:
        files: The new files, as `find_files` returns them.
        dataset: Folder of the dataset.
        sources: The sources of its generations, from the oldest to the newest.
        record_bytes: Largest record that the dataset takes. The digest of a file with a larger record depends on it.
        map_chunks: Applies a function to many chunks: `map`, or `WorkerPool.map` to use several processes.

    Raises:
        UserError: A raw file or a file of sources cannot be read.
    """
    if not any(source.files for source in sources):
        return ClassifiedInputs(list(files), [], [])
    comparison, known = _Comparison(files), _KnownRows(dataset, sources)
    with progress.report(_REPORT):
        for rows in known:
            comparison.compare_names(rows)
        candidates = comparison.find_candidates()
    with progress.report(_REPORT, total_bytes=sum(files[number].num_bytes for number in candidates)):
        comparison.hash(candidates, record_bytes, map_chunks)
        for rows in known if candidates else ():
            comparison.compare_contents(rows)
    return comparison.classify()


class _Comparison:
    """Compares files with sources. What is known of the files is in columns, because there may be a million of them."""

    def __init__(self, files: Sequence[RawFile]) -> None:
        self._files = files
        self._paths = pa.array([file.path for file in files], pa.string())
        self._sizes = pa.array([file.num_bytes for file in files], pa.int64())
        # Whether a source has as many bytes as the file.
        self._same_size = np.zeros(len(files), bool)
        # The content of the newest source with the path of the file, and that of the file. The digest is None if there
        # is no such source, or if the file was not read.
        self._before, self._now = _Contents(len(files)), _Contents(len(files))
        # Path of the newest source with the content of the file, or None.
        self._taken = np.full(len(files), None, object)
        # The splits of the source with the same content, and of the one with the same path.
        self._taken_split, self._before_split = (np.full(len(files), None, object) for _ in range(2))
        # Whether a stream has taken a part of the file with the same path.
        self._is_followed = np.zeros(len(files), bool)

    def compare_names(self, rows: pa.Table) -> None:
        """Compares the paths and sizes of the files with those of the next sources."""
        self._same_size |= pc.is_in(self._sizes, value_set=rows["bytes"]).to_numpy(zero_copy_only=False)
        numbers, found = _look_up(self._paths, rows, "path")
        self._before.set(numbers, found["bytes"].to_numpy(), found["sha256"].to_pylist())
        if SPLIT in found.column_names:
            self._before_split[numbers] = found[SPLIT].to_pylist()
        if START in found.column_names:
            self._is_followed[numbers] |= pc.is_valid(found[START]).to_numpy()

    def find_candidates(self) -> list[int]:
        """Returns the numbers of the files that must be read to find out whether the dataset has them."""
        has_name = self._before.known | self._same_size
        return [n for n, file in enumerate(self._files) if has_name[n] or next(_split(file)).compressed]

    def hash(self, candidates: Sequence[int], record_bytes: int, map_chunks: MapChunks) -> None:
        """Reads files and computes their digests."""
        chunks = (chunk for number in candidates for chunk in _split(self._files[number]))
        rows = join_chunks(map_chunks(functools.partial(summarize_chunk, record_bytes=record_bytes), chunks))
        for number, row in zip(candidates, rows, strict=True):
            self._now.num_bytes[number], self._now.sha256[number] = row.num_bytes, row.sha256
        self._digests = pa.array(self._now.sha256, pa.binary(32))

    def compare_contents(self, rows: pa.Table) -> None:
        """Compares the digests of the files that were read with those of the next sources."""
        numbers, found = _look_up(self._digests, rows, "sha256")
        for number, path in zip(numbers.tolist(), found["path"].to_pylist(), strict=True):
            own = self._files[number].path
            self._taken[number] = own if path == own else path  # most are equal: keeps one string of them
        if SPLIT in found.column_names:
            self._taken_split[numbers] = found[SPLIT].to_pylist()

    def classify(self) -> ClassifiedInputs:
        """Returns the classes of the files."""
        classified = ClassifiedInputs([], [], [])
        known = self._before.known
        for number, file in enumerate(self._files):
            if self._taken[number] is not None:
                classified.taken.append(TakenInput(file, self._taken[number], self._taken_split[number]))
            elif known[number]:
                contents = self._now.get(number), self._before.get(number)
                more = self._before_split[number], bool(self._is_followed[number])
                classified.changed.append(ChangedInput(file, *contents, *more))
            else:
                classified.new.append(file)
        return classified


class _Contents:
    """The contents of files in columns: `num_bytes`, int64[files], and `sha256`, objects: bytes or None."""

    def __init__(self, num_files: int) -> None:
        self.num_bytes = np.zeros(num_files, np.int64)
        self.sha256 = np.full(num_files, None, object)

    def set(self, numbers: Array, num_bytes: Array, sha256: list[bytes]) -> None:
        self.num_bytes[numbers] = num_bytes
        self.sha256[numbers] = sha256

    def get(self, number: int) -> Content:
        return Content(int(self.num_bytes[number]), self.sha256[number])

    @property
    def known(self) -> Array:
        """bool[files], whether the content of each file is known."""
        return np.array([digest is not None for digest in self.sha256], bool)


def _look_up(values: pa.Array, rows: pa.Table, column: str) -> tuple[Array, pa.Table]:
    """Returns int64[found], the places of the values that a column has, and a table with the last row of each."""
    # index_in finds the first place.
    backwards = rows.take(pa.array(np.arange(len(rows))[::-1]))
    places = pc.index_in(values, value_set=backwards[column], skip_nulls=True)
    return np.flatnonzero(places.is_valid().to_numpy(zero_copy_only=False)), backwards.take(places.drop_null())


class _KnownRows:
    """The rows of all sources, in tables of moderate size. Iterates over them any number of times.

    Few rows are kept in memory after the first time: there may be thousands of small files.
    """

    def __init__(self, dataset: str, sources: Iterable[SourcesFile]) -> None:
        self._dataset, self._sources = dataset, sources
        self._kept: list[pa.Table] | None = None

    def __iter__(self) -> Iterator[pa.Table]:
        if self._kept is not None:
            yield from self._kept
            return
        kept, num_bytes = [], 0
        for table in _read_all(self._dataset, self._sources):
            yield table
            num_bytes += table.nbytes
            if num_bytes <= _KEPT_BYTES:
                kept.append(table)
            else:
                kept.clear()
        if num_bytes <= _KEPT_BYTES:
            self._kept = kept


def _read_all(dataset: str, sources: Iterable[SourcesFile]) -> Iterator[pa.Table]:
    """Yields all rows in tables of moderate size: there may be thousands of small files."""
    pending: list[pa.Table] = []
    num_rows = num_bytes = 0
    for block in _read_blocks(dataset, sources):
        pending.append(block)
        num_rows += len(block)
        num_bytes += block.nbytes
        if num_rows >= _ROWS or num_bytes >= _BYTES:
            yield pa.concat_tables(pending)
            pending, num_rows, num_bytes = [], 0, 0
    if pending:
        yield pa.concat_tables(pending)


def _read_blocks(dataset: str, sources: Iterable[SourcesFile]) -> Iterator[pa.Table]:
    for file in sources:
        try:
            yield from read_sources(dataset, file)
        except ValueError as error:
            raise UserError(f"{error} Restore the file from a copy; `lengthwise verify` lists all errors.") from None
        except OSError as error:
            raise UserError(f"{dataset}/{file.path}: cannot be read: {error.strerror or error}.") from None


def _split(file: RawFile) -> Iterator[Chunk]:
    try:
        yield from split_file(file)
    except OSError as error:
        raise UserError(f"{file.path}: cannot be read: {error.strerror or error}.") from None


def _describe(content: Content) -> str:
    return f"{content.num_bytes:,} bytes with the digest {content.sha256.hex()[:12]}"
