"""Publishes predictions: the parts of a job become the predictions in a folder in one step, or not at all."""

import dataclasses
import json
import os
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

from pipeline.errors import UserError, counted, rate
from pipeline.files import (
    exists,
    is_local,
    join,
    list_files,
    list_named,
    list_temporary,
    move,
    read_bytes,
    remove,
    remove_folder,
    replace,
    size,
)
from pipeline.format.manifest import FILE_NAME as MANIFEST
from pipeline.format.merge_counts import COUNTS_RUN_ENDING
from pipeline.shuffle.chunk_runs import CHUNK_RUN_ENDING
from pipeline.shuffle.reject_runs import REJECT_RUN_ENDING
from pipeline.writing.job import JobFiles
from pipeline.writing.paths import (
    FENCE_PATTERN,
    GENERATION_PATTERN,
    HEX32_PATTERN,
    REJECTS_PATTERN,
    TEMPORARY_PATTERN,
    paths_pattern,
)
from pipeline.writing.publish import check_rejected
from pipeline.writing.rejects import RejectsFile, count_rejects, find_first
from trainer.serving.duplicate_ids import count_duplicates

# The summary of the predictions in a folder. It lists the parts, and is replaced in one step when all parts are there.
SUMMARY = "predictions.json"
# Parts are first written to this folder, where no reader of part-*.jsonl sees them.
_STAGING = ".staging"
_FOLDERS = (_STAGING, "rejected")

# The names of the files that `predict` writes, by path inside the folder. A later job may delete a file only if its
# path matches: all other files belong to someone else.
_PART_PATTERN = rf"part-{GENERATION_PATTERN}-\d{{5,}}\.jsonl"
_STAGED_PATTERN = (
    rf"{re.escape(_STAGING)}/{GENERATION_PATTERN}/{HEX32_PATTERN}"
    rf"(\.jsonl|{re.escape(REJECT_RUN_ENDING)}|{re.escape(CHUNK_RUN_ENDING)}|{re.escape(COUNTS_RUN_ENDING)})({TEMPORARY_PATTERN})?"
)
_FENCE_PATTERN = rf"{re.escape(_STAGING)}/{GENERATION_PATTERN}/{FENCE_PATTERN}"
_WRITTEN = paths_pattern(_PART_PATTERN, _STAGED_PATTERN, _FENCE_PATTERN, f"{REJECTS_PATTERN}({TEMPORARY_PATTERN})?")


def is_of_predictions(path: str) -> bool:
    """Returns whether a file inside the output folder may be one of predictions, by its path there."""
    return path == SUMMARY or _WRITTEN.fullmatch(path) is not None


class Part(NamedTuple):
    """A file of predictions in the staging folder.

    Attributes:
        name: Name of the file.
        records: Number of records.
        num_bytes: Size of the file.
        ids: Path of the file of the ids in it (see duplicate_ids.py).
    """

    name: str
    records: int
    num_bytes: int
    ids: str


@dataclasses.dataclass(frozen=True)
class PredictionsPublisher:
    """Publishes the predictions of one job.

    Attributes:
        output: Folder of the predictions, on any file system that Beam knows.
        generation: Name of the job, which no other job has.
        max_rejected: Share of the records, from 0 to 1, that may be rejected.
        overwrite: Whether to replace predictions in `output`.
        model: Entries of the summary that describe the model.
    """

    output: str
    generation: str
    max_rejected: float
    overwrite: bool
    model: dict[str, Any]

    @property
    def staging(self) -> str:
        """The folder for the parts and the sorted rejects of this job, until they are published."""
        return join(self.output, _STAGING, self.generation)

    def check_output(self) -> None:
        """Raises a UserError if `output` is no place for predictions, or contains some that must not be replaced."""
        output = self.output
        if is_local(output) and os.path.lexists(output) and not os.path.isdir(output):
            raise UserError(f"{output}: a file is in the way, expected a folder or nothing. Choose another --output.")
        if exists(join(output, MANIFEST)):
            raise UserError(f"{output}: a dataset or a run is there. Choose another --output.")
        if exists(join(output, SUMMARY)) and not self.overwrite:
            raise UserError(
                f"{output}: predictions are there already. Choose another --output, or replace them with --overwrite."
            )
        foreign = [name for name in map(self._path_inside, self._list_parts()) if not _WRITTEN.fullmatch(name)]
        if foreign:
            raise UserError(
                f"{output}: contains {foreign[0]}, which `predict` did not write and which readers would take for "
                "predictions. Choose another --output."
            )

    def publish(self, parts: Iterable[Part], rejects: Iterable[RejectsFile]) -> dict[str, Any]:
        """Moves the parts into the output folder, writes the summary, and removes files that the summary does not list.

        A call that is retried after it wrote the summary returns the same.

        Returns:
            The summary: the content of predictions.json.

        Raises:
            UserError: Too many records were rejected, there is no record, a part is missing, or another job published
                predictions in the meantime. Nothing is published then, and the rejects files remain.
        """
        published = self.read_published()
        if published is not None:
            self._remove_unlisted(published)
            return published
        if not self.overwrite and exists(join(self.output, SUMMARY)):
            raise UserError(
                f"{self.output}: another job published predictions there in the meantime. Choose another --output."
            )
        rejects = list(rejects)
        ordered, rejected = sorted(parts), count_rejects(rejects)
        records = sum(part.records for part in ordered)
        check_rejected(rejected, records, first=find_first(rejects), max_rejected=self.max_rejected, output=self.output)
        duplicates = count_duplicates([part.ids for part in ordered], folder=self.staging)
        names = {part: f"part-{self.generation}-{number:05d}.jsonl" for number, part in enumerate(ordered)}
        for part, name in names.items():
            self._move(part, name)
        summary = {
            "records": records,
            "duplicate_ids": duplicates,
            "rejected": rejected.model_dump(mode="json"),
            **self.model,
            "generation": self.generation,
            "parts": [{"path": name, "records": part.records, "bytes": part.num_bytes} for part, name in names.items()],
        }
        with replace(join(self.output, SUMMARY)) as file:
            file.write(json.dumps(summary, indent=1, ensure_ascii=False).encode() + b"\n")
        self._remove_unlisted(summary)
        return summary

    def read_published(self) -> dict[str, Any] | None:
        """Returns the summary in the output folder if this job wrote it, else None.

        Raises:
            UserError: There is a summary, but it cannot be read.
        """
        return _read_published(self.output, self.generation)

    def discard(self) -> None:
        """Removes the files of this job, which was not published, except its rejects files, which users may read."""
        remove(list_named(join(self.output, f"part-{self.generation}-"), ".jsonl"))
        remove_folder(self.staging)

    def _move(self, part: Part, name: str) -> None:
        staged, final = join(self.staging, part.name), join(self.output, name)
        # A retried call of `publish` finds its parts already moved.
        if exists(staged):
            move(staged, final)
        if not exists(final) or size(final) != part.num_bytes:
            raise UserError(f"{self.output}: {name} changed while predictions were made. Run predict again.")

    def _remove_unlisted(self, summary: dict[str, Any]) -> None:
        """Removes older predictions and rejects, and the files of killed jobs."""
        listed = {part["path"] for part in summary["parts"]} | set(summary["rejected"]["files"])
        found = [*self._list_parts(), *(path for name in _FOLDERS for path in list_files(join(self.output, name)))]
        names = {path: self._path_inside(path) for path in found}
        unlisted = [path for path, name in names.items() if _WRITTEN.fullmatch(name) and name not in listed]
        remove(unlisted + list_temporary(join(self.output, SUMMARY)))
        remove_folder(self.staging)

    def _list_parts(self) -> list[str]:
        return list_named(join(self.output, "part-"), ".jsonl")

    def _path_inside(self, path: str) -> str:
        return path.removeprefix(join(self.output, ""))


def read_published(files: JobFiles) -> dict[str, Any] | None:
    """Returns the summary in the output folder of a job if the job wrote it, else None.

    Raises:
        UserError: There is a summary, but it cannot be read.
    """
    return _read_published(files.output, files.generation)


def _read_published(output: str, generation: str) -> dict[str, Any] | None:
    path = join(output, SUMMARY)
    if not exists(path):
        return None
    try:
        summary = json.loads(read_bytes(path))
    except ValueError:
        return None
    return summary if isinstance(summary, dict) and summary.get("generation") == generation else None


def print_summary(summary: dict[str, Any], output: str) -> None:
    """Prints a summary of predictions in a few lines.

    Args:
        summary: The return value of `publish`, and the total time under `seconds`.
        output: Folder of the predictions.
    """
    records, seconds, rejected = summary["records"], summary["seconds"], summary["rejected"]
    speed = rate(records, "record", seconds)
    print(f"{counted(records, 'record')} predicted in {seconds:,.1f} s ({speed}, start included).")
    if rejected["total"]:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in rejected["by_reason"].items())
        print(f"{counted(rejected['total'], 'record')} rejected: {reasons}; see {join(output, 'rejected')}.")
    print(f"Model: {summary['checkpoint']} checkpoint of {summary['run']}.")
    print(f"Predictions: {join(output, 'part-*.jsonl')} ({counted(len(summary['parts']), 'file')}).")
