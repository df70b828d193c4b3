"""One run of a job: the names of what it writes, and the dataset as it was when the run began."""

from typing import NamedTuple

from pipeline.format.summary import NO_LEFT_OUT, NO_REJECTS, GenerationSummary, LeftOut, Rejects
from pipeline.schema.schema import Schema
from pipeline.schema.windows import EventWindows
from pipeline.writing.base import Base, Mode
from pipeline.writing.open_base import open_base
from pipeline.writing.paths import new_generation, runs_folder


class JobFiles(NamedTuple):
    """The names of what one run writes.

    Attributes:
        output: Folder of the results.
        generation: Name of the run, which no other run has.
        folder: Folder of its temporary files.
        is_fenced: Whether the process that submitted the run keeps a fence (see fence.py) while it waits.
    """

    output: str
    generation: str
    folder: str
    is_fenced: bool = False


class Recent(NamedTuple):
    """The number of records that a round of a stream read, and how many of them it rejected."""

    records: int
    rejected: int

    @classmethod
    def of(cls, summary: GenerationSummary) -> "Recent":
        """Returns the numbers of the round that wrote a generation."""
        rejected = summary.rejected.total
        return cls(sum(split.records for split in summary.splits.values()) + rejected, rejected)


class DatasetJob(NamedTuple):
    """One run that writes a generation of a dataset.

    Attributes:
        files: The names of what it writes.
        base: The dataset as it was when the run began.
        replayed: Rejects of earlier generations that the run takes back, because it parses their records again.
        left_out: The files in the folders of raw files that the run does not read.
        recent: For a round of a stream, what the rounds before it read, the newest first. `--max_rejected` then applies
            to the newest rounds that have at least 1,000 records, and not to fewer. None for any other job.
        keep_vocabularies: For a round of a stream, whether the dataset keeps its vocabularies.
    """

    files: JobFiles
    base: Base
    replayed: Rejects = NO_REJECTS
    left_out: LeftOut = NO_LEFT_OUT
    recent: tuple[Recent, ...] | None = None
    keep_vocabularies: bool = False


def name_files(output: str, *, is_fenced: bool = False) -> JobFiles:
    """Returns the names for a new generation of the dataset in a folder."""
    generation = new_generation()
    return JobFiles(output, generation, runs_folder(output, generation), is_fenced)


def begin_job(
    output: str, mode: Mode, schema: Schema, seed: int | None, windows: EventWindows | None = None
) -> DatasetJob:
    """Returns the job of a run that begins now. See `open_base` for the arguments and errors."""
    return DatasetJob(name_files(output), open_base(output, mode, schema, seed, windows=windows))
