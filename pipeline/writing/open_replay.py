"""Finds and checks the files of rejects whose records a job takes again."""

import collections
import os
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from pipeline.errors import UserError
from pipeline.files import absolute, file_sha256, is_local, join, open_read, size
from pipeline.format.reject_rows import read_row
from pipeline.format.summary import NO_REJECTS, GenerationSummary, Rejects, RejectsFile
from pipeline.raw.find_files import RawFile
from pipeline.writing.base import Base
from pipeline.writing.commit_log import read_summaries


class Replay(NamedTuple):
    """The rejects that a job takes again.

    Attributes:
        files: Their files.
        rejects: Their number and the digests of the files, for the summary of the new generation.
    """

    files: tuple[RawFile, ...] = ()
    rejects: Rejects = NO_REJECTS


def open_replay(output: str, base: Base, paths: Sequence[str]) -> Replay:
    """Returns the rejects in some files of a dataset, after a check that all of them can be parsed again.

    Args:
        output: Folder of the dataset.
        paths: Paths of files of rejects of the dataset, or of the folder of all of them.

    Raises:
        UserError: A path is not one of the dataset's files of rejects, the file was changed, or it lacks raw lines.
    """
    if not base.summaries:
        raise UserError(
            f"{output}: there is no dataset whose rejects could be replayed. Prepare the raw files without --replay."
        )
    live = _find_live(read_summaries(output, base.summaries))
    chosen = _choose(output, live, paths)
    reasons = collections.Counter[str]()
    for path in chosen:
        _check(join(output, path), live[path], reasons)
    return Replay(
        tuple(RawFile(join(output, path), size(join(output, path))) for path in chosen),
        Rejects(
            total=reasons.total(),
            by_reason=dict(sorted(reasons.items())),
            files=tuple(live[path] for path in chosen),
        ),
    )


def _find_live(summaries: Sequence[GenerationSummary]) -> dict[str, RejectsFile]:
    """Returns the files of rejects that count, by path."""
    replayed = {file.path for summary in summaries for file in summary.replayed.files}
    files = (file for summary in summaries for file in summary.rejected.files)
    return {file.path: file for file in files if file.path not in replayed}


def _choose(output: str, live: Iterable[str], paths: Iterable[str]) -> list[str]:
    """Returns the files that paths name, as paths inside the dataset, each once and in the order of the dataset."""
    by_place = {_place(join(output, path)): path for path in live}
    chosen = set()
    for path in paths:
        place = _place(path)
        if place == _place(join(output, "rejected")):
            chosen |= {*live}
        elif place in by_place:
            chosen.add(by_place[place])
        else:
            known = ", ".join(join(output, path) for path in live)
            raise UserError(
                f"{path}: is not a file of rejects that {output} counts: it is another file, or was replayed already. "
                + (f"Expected {join(output, 'rejected')} or some of {known}." if known else "The dataset has none.")
            )
    return [path for path in live if path in chosen]


def _place(path: str) -> str:
    """Returns a path in a form that is the same for all paths of one file."""
    return os.path.realpath(absolute(path)) if is_local(path) else path.rstrip("/")


def _check(path: str, file: RejectsFile, reasons: collections.Counter[str]) -> None:
    """Counts the rejects of a file by reason, after a check that it was not changed and has all raw lines."""
    total = missing = 0
    try:
        if file_sha256(path) != file.sha256:
            raise UserError(f"{path}: is not the file that was written. `lengthwise verify` lists all errors.")
        with open_read(path) as lines:
            for line in lines:
                row = read_row(line)
                reasons[row["reason"]] += 1
                total += 1
                missing += not {"raw", "raw_base64"} & row.keys()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}.") from None
    except ValueError as error:
        raise UserError(f"{path}: line {total + 1}: {error}.") from None
    if missing:
        raise UserError(
            f"{path}: {missing:,} of {total:,} rejects lack the raw record, which only a job with --keep_raw stores. "
            "Prepare all raw files again with --overwrite and --keep_raw."
        )
