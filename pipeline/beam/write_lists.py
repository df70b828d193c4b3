"""Writes the two lists of a job, each to one file sorted by place: the rejects, and the raw files."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import apache_beam as beam

from pipeline.beam.fenced import while_wanted
from pipeline.beam.outputs import in_global_window
from pipeline.files import join, local_folder
from pipeline.format.sources import SourcesFile
from pipeline.shuffle.chunk_runs import ChunkLinesBuffer, ChunkRun, write_chunk_lines
from pipeline.shuffle.reject_runs import RejectLinesBuffer, RejectRun, write_reject_lines
from pipeline.shuffle.row_runs import LINES_BYTES, RowBuffer, read_lines
from pipeline.writing.fence import IsPublished, remove_if_unwanted
from pipeline.writing.job import JobFiles
from pipeline.writing.rejects import RejectsFile, write_rejects
from pipeline.writing.write_sources import list_sources

# The names of the two PCollections of blocks of lines.
REJECT_LINES, CHUNK_LINES = "reject_lines", "chunk_lines"


class WrittenLists(NamedTuple):
    """The files that were written.

    Attributes:
        rejects: None if there are no rejects.
        sources: None if the raw files are not listed.
    """

    rejects: RejectsFile | None
    sources: SourcesFile | None


@dataclasses.dataclass
class WriteLists(beam.PTransform):
    """Merges sorted runs: {"reject_runs": RejectRun, "chunk_runs": ChunkRun} -> one WrittenLists.

    Attributes:
        files: The JobFiles of the run, or a side input of them.
        lists_sources: Whether the raw files are listed, too.
    """

    files: Any
    lists_sources: bool = True

    def expand(self, inputs: Any) -> Any:
        runs = (beam.pvalue.AsList(inputs[name]) for name in ("reject_runs", "chunk_runs"))
        return (
            inputs["reject_runs"].pipeline
            | "OnceForLists" >> beam.Create([self.lists_sources], reshuffle=False)
            | "WriteLists" >> beam.Map(_write_lists, self.files, *runs)
        )


def _write_lists(
    lists_sources: bool, files: JobFiles, reject_runs: list[RejectRun], chunk_runs: list[ChunkRun]
) -> WrittenLists:
    place = {"output": files.output, "generation": files.generation}
    rejects = write_rejects(reject_runs, chunk_runs, **place)
    return WrittenLists(rejects, list_sources(chunk_runs, **place) if lists_sources else None)


@dataclasses.dataclass
class WriteListsByKey(beam.PTransform):
    """Sorts rows of an engine's shuffle: {REJECT_LINES: blocks of lines, CHUNK_LINES: the same} -> one WrittenLists.

    All rows have the same key, so one worker gets them. It sorts them on its local disk.

    Attributes:
        files, lists_sources: As for WriteLists.
        is_published: As for `remove_if_unwanted`.
    """

    files: Any
    is_published: IsPublished
    lists_sources: bool = True

    def expand(self, inputs: Any) -> Any:
        # With an empty block, there is a key even if there are no rows.
        nothing = inputs[REJECT_LINES].pipeline | "NoLines" >> beam.Create([(CHUNK_LINES, b"")], reshuffle=False)
        tagged = [
            inputs[name] | f"Tag {name}" >> beam.Map(lambda lines, name=name: (name, lines))
            for name in (REJECT_LINES, CHUNK_LINES)
        ]
        return (
            (*tagged, nothing)
            | "AllLines" >> beam.Flatten()
            | "OneKey" >> beam.Map(lambda tagged: (0, tagged)).with_output_types(tuple[int, tuple[str, bytes]])
            | "GroupLines" >> beam.GroupByKey()
            | "WriteLists" >> beam.ParDo(_WriteGroupedLists(self.lists_sources, self.is_published), self.files)
        )


class _WriteGroupedLists(beam.DoFn):
    """Writes the lists: (key, (REJECT_LINES or CHUNK_LINES, lines)) -> WrittenLists."""

    def __init__(self, lists_sources: bool, is_published: IsPublished) -> None:
        self._lists_sources, self._is_published = lists_sources, is_published

    def process(self, element: tuple[int, Iterable[tuple[str, bytes]]], files: JobFiles) -> Iterator[WrittenLists]:
        yield from while_wanted(files, self._write(element[1], files))

    def _write(self, blocks: Iterable[tuple[str, bytes]], files: JobFiles) -> Iterator[WrittenLists]:
        with local_folder("lengthwise-lists-") as folder:
            buffers: dict[str, RowBuffer[Any]] = {
                REJECT_LINES: RejectLinesBuffer(folder),
                CHUNK_LINES: ChunkLinesBuffer(folder),
            }
            runs: dict[str, list[Any]] = {name: [] for name in buffers}
            for name, lines in blocks:
                for row in read_lines(lines):
                    runs[name] += buffers[name].add(row)
            for name, buffer in buffers.items():
                runs[name] += buffer.flush()
            lists = _write_lists(self._lists_sources, files, runs[REJECT_LINES], runs[CHUNK_LINES])
            rejects = [] if lists.rejects is None else [join(files.output, lists.rejects.path)]
            remove_if_unwanted(files, self._is_published, *rejects)
            yield lists


def pack_rejects(rejects: Any) -> Any:
    """Returns a PCollection of Reject as blocks of lines."""
    return rejects | "PackRejects" >> beam.ParDo(_Pack(write_reject_lines))


def pack_chunks(chunks: Any) -> Any:
    """Returns a PCollection of ChunkSummary as blocks of lines."""
    return chunks | "PackChunks" >> beam.ParDo(_Pack(write_chunk_lines))


class _Pack(beam.DoFn):
    """Packs the elements of a bundle into blocks of lines.

    Args:
        write_lines: Returns some elements as lines.
    """

    def __init__(self, write_lines: Callable[[Iterable[Any]], bytes]) -> None:
        self._write_lines = write_lines

    def start_bundle(self) -> None:
        self._lines: list[bytes] = []
        self._num_bytes = 0

    def process(self, element: Any) -> Iterator[bytes]:
        lines = self._write_lines([element])
        self._lines.append(lines)
        self._num_bytes += len(lines)
        if self._num_bytes >= LINES_BYTES:
            yield self._flush()

    def finish_bundle(self) -> Iterator[Any]:
        if self._lines:
            yield in_global_window(self._flush())

    def _flush(self) -> bytes:
        lines, self._lines, self._num_bytes = self._lines, [], 0
        return b"".join(lines)
